"""What `speed.py` measured, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from machine import as_lines

Results = Mapping[str, Any]
"""By task; see `speed.measure`."""
TARGETS = {
    "sst2": {"1": 2.2, "8": 2.1, "32": 1.9},
    "clinc150": {"1": 4.0, "8": 3.8, "32": 3.3},
    "mpnet-clinc150": {"1": 8.0, "32": 8.0},
    "mpnet-sst2": {"1": 3.0, "32": 3.0},
}
"""Times as fast as the best full-depth contestant, by task and batch size."""
NAMES = {
    "clinc150": "CLINC150",
    "banking77": "Banking77",
    "trec": "TREC",
    "ag_news": "AG News",
    "sst2": "SST-2",
    "snli": "SNLI",
    "mpnet-clinc150": "CLINC150",
    "mpnet-sst2": "SST-2",
    "mpnet-snli": "SNLI",
}
HEADS = {"minilm": "MiniLM, six layers", "mpnet": "MPNet-base, twelve layers"}
MEANS = {"minilm": ("2.5", "1.3", "1.1"), "mpnet": ("none", "none", "none")}
"""Targets of the means over the tasks: against the best, and against the cascade at batch size 1 and 32."""
HEAD = """# Early exit against the best without it

{encoder}, a lexical exit, seed 0. From text to answer, tokenizer included; every contestant in its fastest
threads x workers on this machine, in turns; median of the rounds, lowest and highest in brackets. *Lost*: share of the
full model's right answers, on the rows that report, which fitted and chose nothing; the threshold was chosen on as many
other rows, from a trace of the engine that runs, with a standard error to spare. *Against the best*: speed over that of
the fastest contestant at full depth, in any engine. *Cascade*: the lexical exit, then that contestant; its threshold is
the loosest at which it is right as often as early exit on the rows that report, which favours it. *Ceiling*: what the
layers saved allow in the same engine, with tokenizer and lexical exit counted."""


def page(results: Results, encoder: str) -> str:
    """Write all tables of the tasks of an encoder that are there."""
    head = HEAD.format(encoder=HEADS[encoder])
    if not results:
        return f"{head}\n"
    parts = [head, "\n".join(abouts(results)), targets(results, MEANS[encoder]), *for_docs(results)]
    parts += ["## Every point", points(results)]
    parts += ["## Where the time goes", PROFILE, profiles(results), "## Every contestant", *contestants(results)]
    return "\n\n".join(parts) + "\n"


def abouts(results: Results) -> list[str]:
    """Return where the figures are from, each origin once."""
    return list(dict.fromkeys(f"{as_lines(task['about'])} {task['rounds']} rounds." for task in results.values()))


def targets(results: Results, means: Sequence[str]) -> str:
    """Write each target beside what was measured; `means` is a value of MEANS."""
    rows = []
    for task, by_size in TARGETS.items():
        for size, target in by_size.items():
            if task in results:
                speed = early(results[task], size)["against_best"]["median"]
                lost = delivered(results[task], size)
                losses = f"{lost['lost']:.2%} lost of {results[task]['allowed']:.1%} allowed"
                rows.append([f"{NAMES[task]}, batch {size}, {losses}", f"{target:g}", f"{speed:.2f}"])
    both = [(task, size) for task in results.values() for size in ("1", "32")]
    mean = geometric_mean([early(*cell)["against_best"]["median"] for cell in both])
    rows.append([f"geometric mean of {len(results)} tasks, batch 1 and 32", means[0], f"{mean:.2f}"])
    for size, target in zip(("1", "32"), means[1:], strict=True):
        mean = geometric_mean([against_cascade(task, size) for task in results.values()])
        rows.append([f"against the cascade, the same mean, batch {size}", target, f"{mean:.2f}"])
    cells = [(task, size) for task in results.values() for size in task["sizes"]]
    shares = [early(*cell)["share_of_ceiling"] for cell in cells]
    rows.append(["share of the ceiling, mean (least)", "0.9", f"{sum(shares) / len(shares):.2f} ({min(shares):.2f})"])
    return "\n".join(table(("", "target", "measured"), rows))


def for_docs(results: Results) -> list[str]:
    """Write the tables of docs/results.md."""
    losses = [
        [
            NAMES[task],
            f"{entry['rows']['choose']}, {entry['rows']['report']}",
            f"{entry['allowed']:.1%}",
            f"{lost['lost']:.2%}, {interval(lost['interval'])}",
            f"{lost['score']:.3f} of {lost['full_score']:.3f} ({lost['float32_score']:.3f})",
            ", ".join(map(str, lost["exit_layers"])),
            f"{lost['mean_exit']:.2f}",
            f"{lost['before_layer_1']:.0%}",
        ]
        for task, entry in results.items()
        for lost in [delivered(entry, "1")]
    ]
    head = ("task", "rows that choose, report", "asked", "lost, 95 % interval", "accuracy of full (float32)")
    speeds = [speed_row(task, entry, size) for task, entry in results.items() for size in entry["sizes"]]
    speed_head = ("task", "batch", "early exit", "texts a second", "against the best", "which", "against the cascade")
    parts = ["## What is lost", "\n".join(table((*head, "exits read", "layers run", "before layer 1"), losses))]
    parts += ["## How fast", "\n".join(table((*speed_head, "best cut", "ceiling", "share of it"), speeds))]
    return [*parts, "## Exact int8 against dynamic int8, both at full depth", int8_table(results)]


def points(results: Results) -> str:
    """Write what every point loses and how fast it is, with the cascade that is right as often."""
    rows = []
    for task, entry in results.items():
        for engine, by_name in entry["delivered"].items():
            for name, lost in by_name.items():
                speeds = []
                for size, cell in entry["sizes"].items():
                    row = next(one for one in kinds(cell, "adaptive") if (one["engine"], one["name"]) == (engine, name))
                    same = cell["as_replayed"][f"{engine}, {name}"]
                    against = f", {against_cascade(entry, size, row):.2f}" if engine == cell["adaptive"] else ""
                    speeds.append(f"{row['against_best']['median']:.2f}{against} ({same:.1%})")
                losses = f"{lost['lost']:.2%}, {interval(lost['interval'])}"
                float32 = f"{lost['lost_of_float32']:.2%}"
                layers = f"{lost['mean_exit']:.2f}"
                rows.append([NAMES[task], engine, name, losses, float32, layers, *speeds])
    sizes = [f"batch {size}" for size in next(iter(results.values()))["sizes"]]
    note = "Speed against the best, against its cascade, and the share of the texts answered as in the replay.\n\n"
    head = ("task", "engine", "point", "lost, 95 % interval", "lost of float32", "layers run", *sizes)
    return note + "\n".join(table(head, rows))


def speed_row(task: str, entry: Mapping[str, Any], size: str) -> list[str]:
    """Return a task's line at a batch size."""
    row, rival = early(entry, size), best(entry, size)
    return [
        NAMES[task],
        size,
        f"{row['engine']}, {setting(row)}",
        f"{row['texts_per_second']:.0f}",
        ratio(row["against_best"]),
        f"{rival['name']}, {setting(rival)}",
        f"{against_cascade(entry, size):.2f}",
        cut_text(entry, size),
        f"{row['ceiling']:.2f}",
        f"{row['share_of_ceiling']:.2f}",
    ]


def early(entry: Mapping[str, Any], size: str) -> Mapping[str, Any]:
    """Return the row of early exit at its own point, in the engine that the trial found fastest."""
    cell = entry["sizes"][size]
    name = next(iter(entry["delivered"][cell["adaptive"]]))
    return next(row for row in kinds(cell, "adaptive") if (row["engine"], row["name"]) == (cell["adaptive"], name))


def delivered(entry: Mapping[str, Any], size: str) -> Mapping[str, Any]:
    """Return what that point loses."""
    return next(iter(entry["delivered"][entry["sizes"][size]["adaptive"]].values()))


def best(entry: Mapping[str, Any], size: str) -> Mapping[str, Any]:
    """Return the row of the fastest contestant at full depth."""
    return max(kinds(entry["sizes"][size], "full-depth"), key=lambda row: row["texts_per_second"])


def against_cascade(entry: Mapping[str, Any], size: str, point: Mapping[str, Any] | None = None) -> float:
    """Return the speed of early exit, or of a point's row, over that of the cascade that is right as often."""
    row = early(entry, size) if point is None else point
    name = f"cascade as right as {row['name']}"
    cascade = next(one for one in kinds(entry["sizes"][size], "cascade") if one["name"] == name)
    return row["texts_per_second"] / cascade["texts_per_second"]


def cut_text(entry: Mapping[str, Any], size: str) -> str:
    """Return the fastest cut that loses no more than is allowed, with its speed against the best at full depth."""
    cuts = {row["mean_exit"]: row for row in kinds(entry["sizes"][size], "cut")}
    kept = [row for layer, row in cuts.items() if entry["cuts"][str(int(layer))] <= entry["allowed"]]
    if not kept:
        return "none"
    row = max(kept, key=lambda one: one["texts_per_second"])
    return f"layer {row['mean_exit']:.0f}: {row['against_best']['median']:.2f}"


def kinds(cell: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    """Yield a cell's rows of a kind of contestant."""
    return (row for row in cell["rows"] if row["kind"] == kind)


def int8_table(results: Results) -> str:
    """Write the ratio of speeds by threads and batch size, and the scores."""
    cells = list(next(iter(results.values()))["exact_int8_against_dynamic"])
    ratios = {
        cell: [entry["exact_int8_against_dynamic"][cell]["median"] for entry in results.values()] for cell in cells
    }
    every = [value for values in ratios.values() for value in values]
    rows = []
    for task, entry in results.items():
        speeds = [f"{entry['exact_int8_against_dynamic'][cell]['median']:.2f}" for cell in cells]
        scores = f"{entry['full_scores']['onnx-int8']:.4f} ({entry['full_scores']['torch']:.4f})"
        rows.append([NAMES[task], *speeds, scores])
    rows.append(["geometric mean", *(f"{geometric_mean(values):.2f}" for values in ratios.values()), ""])
    heads = [f"{threads} thread(s), batch {size}" for threads, size in (cell.split(", ") for cell in cells)]
    lines = table(("task", *heads, "accuracy (float32)"), rows)
    return "\n".join([*lines, "", f"Geometric mean {geometric_mean(every):.2f}, least {min(every):.2f}."])


PROFILE = """Milliseconds a text at the point of the int8 graph, one thread. *layers*: those that run, as fast as in the
model without exits in full batches; *exits*: what exits and decisions behind a layer add; *smaller batches*: what
remains of the graph's time; *Python*: of `Predictor`, around tokenizer and graph."""


def profiles(results: Results) -> str:
    """Write where the time goes."""
    names = ("whole", "tokenizer", "lexical", "layers", "exits", "small_batches", "python", "without_exits")
    rows = [
        [NAMES[task], size, *(f"{cell['profile'][name]:.3f}" for name in names)]
        for task, entry in results.items()
        for size, cell in entry["sizes"].items()
    ]
    heads = (*names[:5], "smaller batches", "Python", "full depth without exits")
    return "\n".join(table(("task", "batch", *heads), rows))


def contestants(results: Results) -> Iterator[str]:
    """Yield a table of all contestants for each task and batch size."""
    head = ("contestant", "engine", "threads x workers", "accuracy", "layers", "texts a second", "against the best")
    for task, entry in results.items():
        for size, cell in entry["sizes"].items():
            rows = [
                [
                    *(row["name"], row["engine"], setting(row), f"{row['score']:.3f}", f"{row['mean_exit']:.2f}"),
                    *(f"{row['texts_per_second']:.0f}", ratio(row["against_best"])),
                ]
                for row in cell["rows"]
            ]
            slow = [f"{name} ({times:.1f} times)" for name, times in cell["not_raced"].items()]
            note = (
                f"Slower in the trial, and not raced (in torch, not tried again): {', '.join(slow)}.\n\n"
                if slow
                else ""
            )
            yield f"### {NAMES[task]}, batch {size}\n\n{note}" + "\n".join(table(head, rows))


def setting(row: Mapping[str, Any]) -> str:
    """Return threads and workers, such as "1 x 2"."""
    return f"{row['threads']} x {row['workers']}"


def interval(ends: Sequence[float] | None) -> str:
    """Return an interval in percent."""
    return "no interval" if ends is None else f"{ends[0]:.2%} to {ends[1]:.2%}"


def ratio(figures: Mapping[str, float]) -> str:
    """Return a ratio such as "1.52 (1.48-1.60)"."""
    return f"{figures['median']:.2f} ({figures['low']:.2f}-{figures['high']:.2f})"


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
