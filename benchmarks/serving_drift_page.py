"""The results of `serving_drift.py` as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from machine import as_lines


def phases(change: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield the pieces before the change, from it to the last alarm, and after that."""
    pieces, start = change["pieces"], change["before"]
    end = next((at for at in range(start, len(pieces)) if pieces[at]["alarms"] == pieces[-1]["alarms"]), start)
    yield "before", pieces[:start]
    yield "until the last alarm", pieces[start : end + 1]
    yield "after it", pieces[end + 1 :]


def page(state: Mapping[str, Any], seconds: float, about: dict[str, object]) -> str:
    """Return the results as Markdown; `seconds` of a piece."""
    change, quiet, simulated = state["change"], state["quiet"], state["simulated"]
    lines = [
        *("# Drift", "", as_lines(about), ""),
        f"CLINC150, then Banking77, {change['rate']:.0f} requests a second, audit of {change['share']:.0%} of the rows,"
        f" {change['rows_before']} of them before the change. Theory and simulation: with a chance of 50 % and 95 %.",
        "",
        "| point | certified: differ at most | differ before | after | rows until the alarm | theory | simulated |",
        "|---|---|---|---|---|---|---|",
    ]
    for alarm in change["alarms"]:
        theory = ", ".join("never" if rows is None else str(rows) for rows in alarm["allowed"])
        simulation = ", ".join(f"{rows:.0f}" for rows in alarm["simulated"])
        lines.append(
            f"| {alarm['point']} | {alarm['level']:.1%} | {alarm['differs_before']:.2%} | {alarm['differs']:.2%} |"
            f" {alarm['rows']} | {theory} | {simulation} |"
        )
    lines += [
        "",
        "| | seconds | requests | answered | refused | agreement with full depth | in force at the end | certified |",
        "|" + "---|" * 8,
    ]
    for name, pieces in phases(change):
        count = max(sum(one["answered"] for one in pieces), 1)
        agreement = sum(one["answered"] * one["agreement"] for one in pieces) / count
        sent, refused = (sum(one[key] for one in pieces) for key in ("requests", "refused"))
        point = pieces[-1]["point"] if pieces else ""
        cells = [name, f"{len(pieces) * seconds:.0f}", sent, count, refused, f"{agreement:.4f}", point]
        lines.append(f"| {' | '.join(map(str, cells))} | {1 - state['levels'].get(point, 0):.3f} |")
    false = sum(any(run["alarms"].values()) for run in quiet)
    lines += [
        "",
        "What is neither answered nor refused had not come a second after its run of requests: more layers take more"
        " time than there is.",
        "",
        f"Without a change {false} of {len(quiet)} servers had an alarm (audit of {state['quiet_share']:.0%};"
        f" {min((run['audited'] for run in quiet), default=0)} audited rows each, at least), and"
        f" {simulated['alarms']} of {simulated['runs']} simulated ones of {simulated['rows']} rows.",
        "",
    ]
    return "\n".join(lines)
