"""What does the server itself take for a row that leaves before the first layer, above a route that returns a constant?

    python benchmarks/serving_cost.py --data ../shared/data

`offramp serve` on the folders of `speed_models.py` (CLINC150: 150 classes in an answer; SST-2: two), with the texts of
the half that reports that leave before layer 1, one a request, at `/predict`; beside it a bare Starlette route
(`serving_bare.py`) that answers the same requests with one of these answers, on the same settings of uvicorn. Both run
at the same time and are asked in turns, over CONNECTIONS connections; counted is the processor time of all processes of
a server, the idle ones too. Writes `benchmarks/results/serving_cost.json` and `.md`. A minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from machine import as_lines, provenance
from serving_process import Server, running
from speed_models import Prepared, add_options, all_prepared

HERE, RESULTS = Path(__file__).parent, Path(__file__).parent / "results"
TASKS, ALLOWED_MS = ("clinc150", "sst2"), 0.5
ROUNDS, SECONDS, CONNECTIONS = 7, 2.0, 4


def ask(server: Server, bodies: Sequence[str], plan: dict[str, Any]) -> dict[str, Any]:
    """Let a client carry out a plan of `serving_client.py`."""
    plan = {"port": server.port, "path": "/predict", "bodies": bodies, "connections": CONNECTIONS, **plan}
    done = subprocess.run(
        [sys.executable, str(HERE / "serving_client.py")],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def early(server: Server, prepared: Prepared) -> tuple[list[str], str]:
    """Return the bodies of the texts that leave before the first layer, and the answer to one of them."""
    texts = [prepared.held_out.texts[row] for row in prepared.reporting()]
    details = [json.dumps({"inputs": text, "early_exit": {"details": True}}) for text in texts]
    answers = ask(server, details, {"mode": "once"})["bodies"]
    layers = [json.loads(answer)[0]["early_exit"]["exit_layer"] for answer in answers]
    bodies = [json.dumps({"inputs": text}) for text, layer in zip(texts, layers, strict=True) if layer == 0]
    return bodies, ask(server, bodies[:1], {"mode": "once"})["bodies"][0]


def ms_each(server: Server, bodies: Sequence[str]) -> float:
    """Return the milliseconds of processor time that a request takes."""
    before = server.cpu_s()
    report = ask(server, bodies, {"mode": "closed", "seconds": SECONDS})
    if report["failed"]:
        raise RuntimeError(f"{report['failed']} requests failed")
    return 1000 * (server.cpu_s() - before) / report["count"]


def measure(prepared: Prepared) -> dict[str, Any]:
    """Return the milliseconds of a request by server and round."""
    with running(["-m", "offramp", "serve", str(prepared.folder), "--port", "{port}", "--workers", "1"]) as own:
        bodies, answer = early(own, prepared)
        with running([str(HERE / "serving_bare.py"), "{port}", answer]) as bare:
            ms: dict[str, list[float]] = {"offramp serve": [], "constant": []}
            for _ in range(ROUNDS):
                ms["offramp serve"].append(ms_each(own, bodies))
                ms["constant"].append(ms_each(bare, bodies))
    above = [one - other for one, other in zip(*ms.values(), strict=True)]
    return {"texts": len(bodies), "answer_bytes": len(answer), "ms": ms, "above_ms": above}


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["# What the server itself takes", "", as_lines(results["about"]), ""]
    lines += [
        "Milliseconds of processor time a request, for rows that leave before the first layer: all processes of",
        "`offramp serve`, a bare Starlette route that returns a constant, and the difference, of which",
        f"{ALLOWED_MS} are allowed. Medians of the rounds, lowest and highest in brackets.",
        "",
        "| task | texts | bytes of an answer | offramp serve | constant | above |",
        "|---|---|---|---|---|---|",
    ]
    for task, figures in results["tasks"].items():
        cells = [_spread(values) for values in (*figures["ms"].values(), figures["above_ms"])]
        lines.append(f"| {task} | {figures['texts']} | {figures['answer_bytes']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    """Measure both tasks, or the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    file = RESULTS / "serving_cost.json"
    tasks = json.loads(file.read_text())["tasks"] if file.exists() else {}
    for prepared in all_prepared(parser.parse_args()):
        if prepared.cell.task in TASKS:
            tasks[prepared.cell.task] = measure(prepared)
            print(prepared.folder.name, flush=True)
    results = {"about": provenance(), "rounds": ROUNDS, "tasks": tasks}
    file.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "serving_cost.md").write_text(page(results))


if __name__ == "__main__":
    main()
