"""What do requests gain in torch where rows of several batches go on together, and are answered as they leave?

    python benchmarks/serving_merge.py --data ../shared/data
    python benchmarks/serving_merge.py --data ../shared/data --encoder mpnet    # twelve layers
    python benchmarks/serving_merge.py --only sst2 --rounds 1 --seconds 2       # a try

`offramp serve --engine torch` as it is, against the same server whose process answers one batch after the other; the
two take turns. The folders of `speed_models.py` at their default points; texts of the half that reports, one a request,
over loopback, from a client in a process of its own (`serving_client.py`: Poisson arrivals, times count from when a
request was due). Both are asked at shares of the rate at which the second one is saturated, and the highest rate at
which the 99th percentile stays within each bound is searched. What is measured lies under `--state`, and a run goes on
where it was stopped. Writes `benchmarks/results/serving_merge.json` and `.md`. Four minutes an encoder on two idle
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from machine import as_lines, provenance
from serving_process import Server, running
from serving_rates import RateSearch, Texts
from speed_models import Prepared, add_options, all_prepared

RESULTS = Path(__file__).parent / "results"
TASKS = ("clinc150", "sst2", "mpnet-clinc150", "mpnet-sst2")
TOGETHER, APART = "together", "one batch after the other"
SHARES = (0.25, 0.5)
"""Of the rate at which APART is saturated."""
BOUNDS_MS, STEPS, SECONDS, ROUNDS = {False: (50, 100), True: (100, 200)}, 3, 4.0, 2
"""Bounds of the 99th percentile by whether the encoder is deep; rates that are searched; seconds of each; rounds."""
ONE_BATCH = """
import sys

if "offramp.serving.worker" in sys.orig_argv:
    import offramp.serving.stages

    offramp.serving.stages.Stages = lambda engine, plan: None
"""
"""Python runs it in each process of the server that answers one batch after the other."""


@contextmanager
def serving(folder: Path, side: str) -> Iterator[Server]:
    """Run a server in torch."""
    paths = os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory() as patch:
        Path(patch, "sitecustomize.py").write_text(ONE_BATCH)
        os.environ["PYTHONPATH"] = paths if side == TOGETHER else os.pathsep.join(filter(None, (patch, paths)))
        try:
            with running(["-m", "offramp", "serve", str(folder), "--port", "{port}", "--engine", "torch"]) as server:
                yield server
        finally:
            os.environ["PYTHONPATH"] = paths


def measure_side(prepared: Prepared, texts: Texts, side: str, seconds: float, rate: float | None) -> dict[str, Any]:
    """Return the figures of a server in a round.

    Args:
        prepared: the model.
        texts: one a request.
        side: which server.
        seconds: of a step.
        rate: at which APART is saturated; None = this one is.
    """
    bounds = BOUNDS_MS[prepared.is_deep]

    def at(rate: float, seed: int) -> dict[str, Any]:
        plan = {"mode": "open", "phases": [[rate, seconds]], "seed": seed, "late_s": max(bounds) / 1000 * 5}
        report = texts.ask(server, plan)
        texts.settle(server)
        return report

    with serving(prepared.folder, side) as server:
        answers = texts.answers(server)
        saturated = texts.saturated(server)["a_second"]
        base = rate or saturated
        steps = {str(share): at(share * base, number) for number, share in enumerate(SHARES)}
        search = RateSearch.start(bounds, base, None)
        for step in range(STEPS):
            search.add(at(search.rate, 10 + step))
    kept = ("p50_ms", "p99_ms", "server_cores", "client_cores", "other_cores")
    return {
        "answers": answers,
        "saturated": saturated,
        "steps": {
            share: {"rate": float(share) * base} | {key: step[key] for key in kept} for share, step in steps.items()
        },
        "limits": search.limits,
    }


def measure(prepared: Prepared, state: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Return the figures of a task: medians over the rounds, of which those that are there are not measured again."""
    texts = Texts.reporting(prepared)
    runs: list[dict[str, Any]] = json.loads(state.read_text()) if state.exists() else []
    while len(runs) < rounds:
        apart = measure_side(prepared, texts, APART, seconds, None)
        together = measure_side(prepared, texts, TOGETHER, seconds, apart["saturated"])
        pairs = zip(apart.pop("answers"), together.pop("answers"), strict=True)
        runs.append({APART: apart, TOGETHER: together, "other_answers": sum(one != two for one, two in pairs)})
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(json.dumps(runs, indent=1))
        print(f"  round {len(runs)}: {together['limits']} against {apart['limits']}", flush=True)

    def middle(side: str, *path: str) -> float:
        values = []
        for run in runs:
            value: Any = run[side]
            for key in path:
                value = value[key]
            values.append(value)
        return median(values)

    sides = {
        side: {
            "saturated": middle(side, "saturated"),
            "steps": {
                share: {key: middle(side, "steps", share, key) for key in runs[0][side]["steps"][share]}
                for share in map(str, SHARES)
            },
            "limits": {bound: middle(side, "limits", bound) for bound in runs[0][side]["limits"]},
        }
        for side in (TOGETHER, APART)
    }
    return {"texts": len(texts.rows), "other_answers": [run["other_answers"] for run in runs], "sides": sides}


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["# Rows of several batches together, in torch", ""]
    lines += [
        "`offramp serve --engine torch`: rows of different requests that stand before the same layer go on together",
        "where measured prices say so, each answered as it leaves; against a process that answers one batch after",
        "the other. Milliseconds at the median and the 99th percentile; requests a second within a bound of the latter",
        "(0 = no rate that was tried kept it), and with 32 connections that always ask. Medians of the rounds.",
        "",
    ]
    for task, figures in results["tasks"].items():
        lines += [f"## {task}", "", as_lines(figures["about"]), ""]
        different = ", ".join(map(str, figures["other_answers"]))
        lines += [f"{figures['texts']} texts; answered with other labels: {different}.", ""]
        sides = figures["sides"]
        steps, limits = sides[APART]["steps"], sides[APART]["limits"]
        head = [f"{step['rate']:.0f} a second: p50, p99" for step in steps.values()]
        head += [f"p99 <= {bound} ms" for bound in limits]
        lines += [f"| | {' | '.join(head)} | saturation |", "|---|" + "---|" * (len(head) + 1)]
        for side in (TOGETHER, APART):
            cells = [f"{step['p50_ms']:.1f}, {step['p99_ms']:.1f}" for step in sides[side]["steps"].values()]
            cells += [f"{rate:.0f}" for rate in sides[side]["limits"].values()]
            lines.append(f"| {side} | {' | '.join(cells)} | {sides[side]['saturated']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure the tasks that are asked for; those measured before stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--state", type=Path, default=Path("runs/serving"), help="where unfinished runs lie")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a step")
    options = parser.parse_args()
    file = RESULTS / "serving_merge.json"
    results = json.loads(file.read_text()) if file.exists() else {"tasks": {}}
    for prepared in all_prepared(options):
        if prepared.cell.task in TASKS:
            print(prepared.folder.name, flush=True)
            state = options.state / prepared.folder.name / "merge.json"
            figures = measure(prepared, state, options.seconds, options.rounds)
            results["tasks"][prepared.cell.task] = {"about": provenance(), **figures}
            file.write_text(json.dumps(results, indent=1) + "\n")
            (RESULTS / "serving_merge.md").write_text(page(results))


if __name__ == "__main__":
    main()
