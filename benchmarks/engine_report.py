"""What `engine.py` found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from machine import as_lines

HEAD = (
    *("batch", "engine", "point", "score", "mean exit", "p50, ms", "p99, ms", "speed-up over plain"),
    *("ideal", "efficiency", "against the best"),
)


def page(results: Mapping[str, Any]) -> str:
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
        parts = [entry for name, entry in results.items() if name.startswith(prefix)]
        if parts:
            rows = [row_of(result) for part in parts for result in part["results"]]
            lines += [title, "", *table(HEAD, rows), "", *abouts(parts), ""]
    lines += [*loops(results), *cold(results), *switch(results)]
    return "\n".join(lines).rstrip() + "\n"


def row_of(figures: Mapping[str, Any]) -> list[str]:
    """One result."""
    return [
        str(figures["batch_size"]),
        "" if figures["rival"] else figures["engine"],
        figures["name"],
        "" if figures["score"] is None else f"{figures['score']:.3f}",
        f"{figures['mean_exit']:.2f}",
        f"{figures['p50_ms']:.2f}",
        f"{figures['p99_ms']:.2f}",
        ratio(figures["speedup"]),
        *("" if figures[name] is None else f"{figures[name]:.2f}" for name in ("ideal", "efficiency")),
        ratio(figures["against_best"]),
    ]


def loops(results: Mapping[str, Any]) -> list[str]:
    """The graphs against loops in torch."""
    lines = []
    for name, title in (("loops-sst2", "SST-2"), ("loops-base", "BERT-base, 32 tokens")):
        if name in results:
            rows = [
                [size, way, f"{figures['mean_exit']:.2f}", f"{figures['ms']:.2f}", ratio(figures["faster"])]
                for size, ways in results[name]["sizes"].items()
                for way, figures in ways.items()
            ]
            lines += [f"## Against loops in torch: {title}, 50 % of the layers saved", ""]
            lines += [*table(("batch", "what runs", "mean exit", "ms", "times as fast as the first"), rows), ""]
            lines += [*abouts([results[name]]), ""]
    return lines


def cold(results: Mapping[str, Any]) -> list[str]:
    """Cold start, size, memory."""
    if "cold" not in results:
        return []
    figures = results["cold"]
    rows = [
        [
            *(entry["model"], entry["engine"], entry["kind"], f"{entry['mb']:.1f}", f"{entry['mib']:.0f}"),
            f"{entry['seconds']:.2f} ({entry['low']:.2f}-{entry['high']:.2f})",
        ]
        for entry in figures["files"]
    ]
    nothing = figures["nothing"]
    return [
        "## A fresh process to its first answer",
        "",
        f"Without torch; medians of {figures['starts']}. A process that imports ONNX Runtime and loads nothing takes",
        f"{nothing['seconds']:.2f} s and {nothing['mib']:.0f} MiB.",
        "",
        *table(("model", "engine", "", "file, MB", "memory, MiB", "seconds"), rows),
        "",
        as_lines(figures["about"]),
        "",
    ]


def switch(results: Mapping[str, Any]) -> list[str]:
    """Another policy for a file."""
    if "switch" not in results:
        return []
    figures = {name: entry for name, entry in results["switch"].items() if name not in ("about", "rounds")}
    rows = [
        [name, f"{entry['seconds']:.2f} ({entry['low']:.2f}-{entry['high']:.2f})"] for name, entry in figures.items()
    ]
    head = ("model", "seconds")
    return [
        "## `offramp export --policy` on a file that is there",
        "",
        *table(head, rows),
        "",
        as_lines(results["switch"]["about"]),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def abouts(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the figures are from, each origin once."""
    return list(dict.fromkeys(f"{as_lines(part['about'])} {part['rounds']} rounds." for part in parts))


def ratio(figures: Mapping[str, float]) -> str:
    """Such as "1.52 (1.48-1.60)"."""
    return f"{figures['median']:.2f} ({figures['low']:.2f}-{figures['high']:.2f})"
