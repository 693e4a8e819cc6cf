"""Claims without cells: on exits from the runs of `training.py`, while few cells have run; and those not run."""

from __future__ import annotations

from random import Random
from statistics import mean

from claims_elsewhere import ABSENT, Figures, figures, result, row
from claims_page import HIGHER, LOWER, Rule, verdict, with_interval

EARLIER = {
    "berxit-1": ("alternating", "joint", "last"),
    "berxit-2": ("alternating", "two-stage", "last"),
    "berxit-3": ("joint", "two-stage", "last"),
    "berxit-4": ("two-stage", "joint", "early"),
    "berxit-5": ("alternating", "joint", "first half"),
    "badge-1": ("bypass", "joint", "all"),
    "badge-2": ("bypass", "two-stage", "all"),
    "badge-3": ("bypass", "alternating", "all"),
    "badge-4": ("bypass", "gradient-equilibrium", "all"),
}
"""Claims on the scores of exits that `training.py` answers as well: two objectives, and which exits."""


WHICH = {"last": slice(-1, None), "early": slice(-1), "first half": slice(3), "all": slice(None)}
"""Exits of six layers."""
ENOUGH = 3
"""With cells of so many tasks, these are the line's figures; else those of `training.py`'s seven tasks."""
SETTING = (
    "1,500 to 5,000 rows, linear heads, mean of three seeds; the interval resamples the seven tasks, which is rough."
)


def gaps_of(one: str, other: str, which: str) -> dict[str, float]:
    """Return the differences of two objectives in points, by task."""
    gaps = {}
    for table in result("training.json")["tables"]:
        if table["depth"] == 6:
            scores = [table["objectives"][name]["scores"][WHICH[which]] for name in (one, other)]
            gaps[table["task"]] = 100 * (mean(scores[0]) - mean(scores[1]))
    return gaps


def earlier(line: Figures) -> Figures:
    """Return a claim's line with the figures of `training.py`: its own where few cells have run, else in its note."""
    if line["name"] not in EARLIER:
        return line
    gaps = gaps_of(*EARLIER[line["name"]])
    random = Random(0)
    drawn = sorted(mean(random.choices(list(gaps.values()), k=len(gaps))) for _ in range(10_000))
    found = figures(mean(gaps.values()), drawn[249], drawn[9749])
    if len(line["tasks"]) >= ENOUGH:
        shown = with_interval({**found, "unit": "points"})
        note = f"Seven tasks of earlier runs (`training.py`): {shown} points; {SETTING}"
        return {**line, "note": f"{line['note']} {note}".strip()}
    note = f"{line['note']} From seven tasks of earlier runs: {SETTING}"
    if line["tasks"]:
        cells = ", ".join(f"{name} {with_interval(task)}" for name, task in line["tasks"].items())
        note += f" The cells that have run, not counted here: {cells}."
    tasks = {name: {**figures(gap, gap, gap), "unit": "points"} for name, gap in gaps.items()}
    source = {"command": "python benchmarks/training.py", "file": "benchmarks/results/training.json"}
    made = {**line, **found, **source, "seeds": [], "tasks": tasks, "left_out": {}, "note": note.strip()}
    return {**made, "verdict": verdict(made)}


NOT_RUN: tuple[tuple[str, str, str, str, Rule, str], ...] = (
    (
        "berxit-17",
        "Early exit adds up with DistilBERT.",
        "5.3, table 2",
        "97 % at 60 % saved (MRPC), 98 % at 75 % (SST-2)",
        HIGHER,
        "No distilled encoder was run.",
    ),
    (
        "berxit-18",
        "Self-distillation is unstable on large encoders.",
        "appendix A, figure 10",
        "plotted, not printed",
        LOWER,
        "No large encoder was run.",
    ),
    (
        "mpee-13",
        "Class attention chooses better tokens than the attention of all tokens.",
        "4.6, table 3",
        "+0.3 and +0.4 points, at slightly higher ratios",
        HIGHER,
        "Attention of all tokens is not built.",
    ),
    (
        "mpee-14",
        "The attention memory and the fusion token help.",
        "4.6, table 2",
        "+0.3 to +0.9 and +0.6 to +0.8 points",
        HIGHER,
        "Neither was taken out alone.",
    ),
    (
        "pabee-18",
        "A deeper encoder (24 layers) gains more speed.",
        "4.5, table 4",
        "2.42x against 1.57x",
        HIGHER,
        "No encoder of 24 layers was run.",
    ),
)


def not_run() -> list[Figures]:
    """Claims that nothing was run for."""
    file = "claims.json"
    return [
        row(name, text, where, printed, rule, ABSENT, "claims.py", file, note)
        for name, text, where, printed, rule, note in NOT_RUN
    ]
