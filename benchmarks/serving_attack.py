"""Texts made to run long, sent to a real server: what do they cost, and what does a budget for depth win back?

    python benchmarks/serving_attack.py --data ../shared/data

SST-2 (MiniLM, 6 layers) on the ladder of `serving_ladders.py`: the texts of the half that reports, and the same texts
after the search of `serving_attack_texts.py`, against the point without load, and against the floor (somebody who
knows of the budget). `offramp serve` runs at the point without load, then there with `--depth-budget`, then at the
floor. The target is a minute, so that load leads to no step. Of each kind of text SETTLE_ROWS are sent, at which the
budget may act, then as many as are answered in SECONDS, over CONNECTIONS connections; then each text once, for the
answers.

Writes `benchmarks/results/serving_attack.json` and `.md`. Three minutes on two cores, and once `--minutes` for the
search; exit code 3 = start it again for the nominal of the search.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from lexical_models import Cell
from machine import as_lines, provenance
from offramp.model.hub import load_config
from offramp.model.points import load_points
from offramp.serving.depth_budget import WINDOW
from serving_attack_texts import Victim, slowed
from serving_cost import ask
from serving_process import Server, running
from speed_models import Prepared

RESULTS = Path(__file__).parent / "results"
TASK, NOMINAL, FLOOR = "sst2", "2x", "4x"
CONNECTIONS, SETTLE_ROWS, SECONDS = 16, 2.5 * WINDOW, 5.0
ABOVE = 0.05
"""The budget is the mean depth of the point without load on the rows that chose it, and this share of all layers."""
HONEST, SLOWED, SLOWED_FLOOR = "honest", f"slowed at {NOMINAL}", f"slowed at {FLOOR}"
OFF = ("--latency-target-ms", "60000", "--audit-share", "0")


def settings(budget: float) -> dict[str, tuple[str, ...]]:
    """Return the options of the servers by their names."""
    ladder = ("--ladder", *OFF, "--operating-point")
    return {
        f"at {NOMINAL}": (*ladder, NOMINAL, "--floor", NOMINAL),
        f"at {NOMINAL}, with a budget": (*ladder, NOMINAL, "--floor", FLOOR, "--depth-budget", f"{budget:g}"),
        f"at {FLOOR}": (*ladder, FLOOR, "--floor", FLOOR),
    }


def layers_so_far(server: Server) -> tuple[float, float]:
    """Return the sum of the layers of all rows of a server, and their number."""
    with urlopen(f"http://127.0.0.1:{server.port}/metrics") as reply:
        families = {family.name: family for family in text_string_to_metric_families(reply.read().decode())}
    samples = [sample for sample in families["offramp_rows"].samples if sample.name == "offramp_rows_total"]
    return (
        sum(int(sample.labels["layer"]) * sample.value for sample in samples),
        sum(sample.value for sample in samples),
    )


def measure(server: Server, texts: Sequence[str], right: Sequence[str], full: Sequence[str]) -> dict[str, Any]:
    """Return what texts cost a server, and how good the answers are.

    Args:
        server: that runs.
        texts: that are sent.
        right: the label of each.
        full: the full model's answer to each.
    """
    bodies = [json.dumps({"inputs": text}) for text in texts]
    end = layers_so_far(server)[1] + SETTLE_ROWS
    while (before := layers_so_far(server))[1] < end:
        ask(server, bodies, {"mode": "closed", "seconds": 1.0})
    report = ask(server, bodies, {"mode": "closed", "seconds": SECONDS})
    after = layers_so_far(server)
    rows = ask(
        server, [json.dumps({"inputs": text, "early_exit": {"details": True}}) for text in texts], {"mode": "once"}
    )
    first = [json.loads(body)[0] for body in rows["bodies"]]
    answers, points = [row["label"] for row in first], [row["early_exit"]["operating_point"] for row in first]
    return {
        "failed": report["failed"],
        "mean_layers": (after[0] - before[0]) / (after[1] - before[1]),
        "accuracy": fmean(map(str.__eq__, answers, right)),
        "agreement": fmean(map(str.__eq__, answers, full)),
        "points": {point: points.count(point) for point in dict.fromkeys(points)},
    }


def full_depth(server: Server, texts: Sequence[str]) -> list[str]:
    """Return the full model's answers."""
    bodies = [json.dumps({"inputs": text, "early_exit": {"operating_point": "full"}}) for text in texts]
    return [json.loads(body)[0]["label"] for body in ask(server, bodies, {"mode": "once"})["bodies"]]


def run(folder: Path, kinds: Mapping[str, Sequence[str]], right: Sequence[str], budget: float) -> dict[str, Any]:
    """Return the figures of each server for each kind of text, full depth's among them."""
    figures: dict[str, Any] = {}
    full: dict[str, list[str]] = {}
    for name, options in settings(budget).items():
        with running(["-m", "offramp", "serve", str(folder), "--port", "{port}", *options]) as server:
            full = full or {kind: full_depth(server, texts) for kind, texts in kinds.items()}
            figures[name] = {kind: measure(server, texts, right, full[kind]) for kind, texts in kinds.items()}
            print(name, flush=True)
    accuracy = {kind: fmean(map(str.__eq__, full[kind], right)) for kind in kinds}
    return {"servers": figures, "full_depth_accuracy": accuracy}


def won_back(figures: Mapping[str, Mapping[str, Any]], name: str, kind: str) -> float:
    """Return the share of the layers that an attack adds at the point without load and a server does not run."""
    nominal = figures[f"at {NOMINAL}"]
    added = nominal[kind]["mean_layers"] - nominal[HONEST]["mean_layers"]
    return float((nominal[kind]["mean_layers"] - figures[name][kind]["mean_layers"]) / added)


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    figures = results["servers"]
    lines = ["# Slowdown attacks through the server", "", as_lines(results["about"]), ""]
    lines += [
        f"SST-2, MiniLM, {results['depth']} layers, int8, {results['rows']} texts that chose nothing. Without load",
        f"the point is {NOMINAL}, the floor is {FLOOR}, the budget {results['budget']:.2f} layers a row. Synonyms are",
        f"searched that keep the answer and make the row leave later: at {NOMINAL}, or at {FLOOR}, by somebody who",
        "knows where the budget leads. *Agreement* is the share of answers equal to full depth's on the same text.",
        "",
        "| server | texts | layers a row | of those added, won back | accuracy | agreement |",
        "|---|---|---|---|---|---|",
    ]
    for name, kinds in figures.items():
        for kind, row in kinds.items():
            back = "" if kind == HONEST or name == f"at {NOMINAL}" else f"{won_back(figures, name, kind):.0%}"
            cells = [name, kind, f"{row['mean_layers']:.2f}", back]
            cells += [f"{row['accuracy']:.1%}", f"{row['agreement']:.1%}"]
            lines.append(f"| {' | '.join(cells)} |")
    nominal = {kind: row["mean_layers"] for kind, row in figures[f"at {NOMINAL}"].items()}
    least = (results["budget"] - nominal[HONEST]) / (nominal[SLOWED] - nominal[HONEST])
    full = ", ".join(f"{kind} {value:.1%}" for kind, value in results["full_depth_accuracy"].items())
    lines += ["", f"Accuracy at full depth: {full}.", ""]
    lines += [
        f"The budget acts where more than {least:.0%} of the texts are slowed; fewer add layers unnoticed.",
        "",
    ]
    lines += [
        f"What bounds it: no texts lead the server below its floor. The certificate of {FLOOR} allows",
        f"{results['level']:.0%} of the answers to differ from full depth's, for texts drawn like those that it was",
        "made on. Slowed texts are not, so for them it claims nothing: the agreement above is what was measured. Nor",
        "does it bound the depth: texts that are slowed at the floor itself run as many layers there as the table has.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Search, serve and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/speed"), help="the finished models of speed_models.py")
    parser.add_argument("--ladders", type=Path, default=Path("runs/ladders"), help="those of serving_ladders.py")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    parser.add_argument("--texts", type=Path, default=Path("runs/serving_attack"), help="where the texts found go")
    parser.add_argument("--minutes", type=float, default=5, help="for the search; then exit code 3")
    options = parser.parse_args()
    prepared = Prepared(Cell(TASK, 0, options.data, options.encoders), options.runs)
    folder, config = options.ladders / prepared.folder.name, load_config(options.ladders / prepared.folder.name)
    points, rows = load_points(folder), prepared.reporting().tolist()
    honest = [str(prepared.held_out.texts[row]) for row in rows]
    kinds = {HONEST: honest}
    for kind, point in ((SLOWED, NOMINAL), (SLOWED_FLOOR, FLOOR)):
        file = options.texts / f"{prepared.folder.name}-{point}.jsonl"
        texts = slowed(Victim.load(folder, point), honest, options.data, file, options.minutes)
        if texts is None:
            raise SystemExit(3)
        kinds[kind] = texts
    right = [config.id2label[int(prepared.held_out.labels[row])] for row in rows]
    depth, nominal, floor = max(config.layers), points[NOMINAL].measured, points[FLOOR].agreement
    if nominal is None or floor is None:
        raise SystemExit(f"{folder}: {NOMINAL} has no measured depth, or {FLOOR} no certificate of agreement")
    budget = round(nominal.mean_exit + ABOVE * depth, 2)
    results = {"about": provenance(), "rows": len(rows), "depth": depth, "budget": budget, "level": floor.bound}
    results |= run(folder, kinds, right, budget)
    (RESULTS / "serving_attack.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "serving_attack.md").write_text(page(results))


if __name__ == "__main__":
    main()
