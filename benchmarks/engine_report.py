"""What `engine.py` found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from machine import as_lines

HEAD = (
    *("batch", "engine", "point", "score", "mean exit", "p50, ms", "p99, ms", "speed-up over plain"),
    *("ideal", "efficiency", "against the best"),
)


def page(found: Mapping[str, Any]) -> str:
    """All pieces that are there."""
    lines = [
        "# One graph that leaves early",
        "",
        "Milliseconds a text; median of the rounds, lowest and highest in brackets. The rivals take turns, each with a",
        "whole pass over the texts behind a batch that does not count. *plain*: the same encoder with the last head",
        "alone; *speed-up*: over the faster plain model in the same engine; *ideal*: (embed + L block) / (embed +",
        "mean exit block), both measured; *efficiency*: speed-up / ideal; *against the best*: speed over that of the",
        "fastest full-depth model in any engine. ONNX Runtime takes one thread a core.",
        "",
    ]
    groups = {
        "## SST-2, six layers of width 384: points chosen on one half, reported on the other": "sst2-",
        "## BERT-base, random weights, 32 tokens": "base-32-",
        "## BERT-base, random weights, 128 tokens": "base-128-",
    }
    for title, prefix in groups.items():
        parts = [each for name, each in found.items() if name.startswith(prefix)]
        if parts:
            rows = [row_of(result) for part in parts for result in part["results"]]
            lines += [title, "", *table(HEAD, rows), "", *abouts(parts), ""]
    lines += [*loops(found), *cold(found), *switch(found)]
    return "\n".join(lines).rstrip() + "\n"


def row_of(told: Mapping[str, Any]) -> list[str]:
    """One result."""
    return [
        str(told["batch_size"]),
        "" if told["rival"] else told["engine"],
        told["name"],
        "" if told["score"] is None else f"{told['score']:.3f}",
        f"{told['mean_exit']:.2f}",
        f"{told['p50_ms']:.2f}",
        f"{told['p99_ms']:.2f}",
        ratio(told["speedup"]),
        *("" if told[name] is None else f"{told[name]:.2f}" for name in ("ideal", "efficiency")),
        ratio(told["against_best"]),
    ]


def loops(found: Mapping[str, Any]) -> list[str]:
    """The graphs against loops in torch."""
    lines = []
    for name, title in (("loops-sst2", "SST-2"), ("loops-base", "BERT-base, 32 tokens")):
        if name in found:
            rows = [
                [size, way, f"{told['mean_exit']:.2f}", f"{told['ms']:.2f}", ratio(told["faster"])]
                for size, ways in found[name]["sizes"].items()
                for way, told in ways.items()
            ]
            lines += [f"## Against loops in torch: {title}, 50 % of the layers saved", ""]
            lines += [*table(("batch", "what runs", "mean exit", "ms", "times as fast as the first"), rows), ""]
            lines += [*abouts([found[name]]), ""]
    return lines


def cold(found: Mapping[str, Any]) -> list[str]:
    """Cold start, size, memory."""
    if "cold" not in found:
        return []
    told = found["cold"]
    rows = [
        [
            *(each["model"], each["engine"], each["kind"], f"{each['mb']:.1f}", f"{each['mib']:.0f}"),
            f"{each['seconds']:.2f} ({each['low']:.2f}-{each['high']:.2f})",
        ]
        for each in told["files"]
    ]
    nothing = told["nothing"]
    return [
        "## A fresh process to its first answer",
        "",
        f"Without torch; medians of {told['starts']}. A process that imports ONNX Runtime and loads nothing takes",
        f"{nothing['seconds']:.2f} s and {nothing['mib']:.0f} MiB.",
        "",
        *table(("model", "engine", "", "file, MB", "memory, MiB", "seconds"), rows),
        "",
        as_lines(told["about"]),
        "",
    ]


def switch(found: Mapping[str, Any]) -> list[str]:
    """Another policy for a file."""
    if "switch" not in found:
        return []
    told = {name: each for name, each in found["switch"].items() if name not in ("about", "rounds")}
    rows = [[name, f"{each['seconds']:.2f} ({each['low']:.2f}-{each['high']:.2f})"] for name, each in told.items()]
    head = ("model", "seconds")
    return [
        "## `offramp export --policy` on a file that is there",
        "",
        *table(head, rows),
        "",
        as_lines(found["switch"]["about"]),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def abouts(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the figures are from, each origin once."""
    return list(dict.fromkeys(f"{as_lines(part['about'])} {part['rounds']} rounds." for part in parts))


def ratio(told: Mapping[str, float]) -> str:
    """Such as "1.52 (1.48-1.60)"."""
    return f"{told['median']:.2f} ({told['low']:.2f}-{told['high']:.2f})"
