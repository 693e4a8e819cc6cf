"""When does a server notice that its texts have changed, what does it do, and how often is it wrong?

    python benchmarks/serving_drift.py --data ../shared/data
    python benchmarks/serving_drift.py --data ../shared/data --quiet-runs 2      # a try

The folder of `serving_ladders.py` for CLINC150, a server with its ladder, and a client in a process of its own
(`serving_client.py`: Poisson arrivals). The rate is RATE times what the server answers of the new texts at its loosest
point, so it is full with them. First it gets texts of CLINC150 that chose no threshold, then those of Banking77, until
the points that do not hold any more are closed, and on. The answers of each text at each point and at full depth come
from a recorded trace of the same engine: so the rate at which answers differ is known, with it the rows that theory
allows until it is noticed (`offramp.serving.drift_monitor.rows_to_notice`), and the agreement of the server's answers.

Without a change QUIET_RUNS servers run, each with other texts of the half that reports, until as many rows are audited
as were until the first alarm with a change (MOST_QUIET_S at most); there the audit's share is QUIET_SHARE, or they
would take half an hour. The same monitors run over random rows of the trace too, more often and longer.

Results lie under `--state`, and a run goes on where it was stopped. Writes `benchmarks/results/serving_drift.json` and
`.md`. Eight minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lexical_models import Cell
from machine import provenance
from offramp.data.columns import Columns
from offramp.data.examples import read_examples
from offramp.inference.record import record
from offramp.model.points import load_points
from offramp.policies.registry import as_policy
from offramp.policies.replay import replay
from offramp.serving.drift_monitor import DriftMonitor, rows_to_notice
from offramp.serving.ladder import ladder_of
from offramp.serving.setup import DELTA
from offramp.types.ladder_names import LADDER_NAMES
from offramp.types.proposal import Proposal
from resumable import load_state, save_state
from serving_counts import in_force, read_metrics
from serving_drift_page import page
from serving_process import Server, running
from serving_rates import Texts
from speed_models import INT8, Prepared

TASK, OTHER = "clinc150", "banking77"
SHARE, QUIET_SHARE, QUIET_RUNS, MOST_QUIET_S = 0.01, 0.05, 20, 30.0
RATE, PIECE_S = 0.9, 10.0
"""The share of what the server answers at its loosest point; how long the client runs before the metrics are read."""
BEFORE_S, MOST_S, AFTER_S = 20.0, 360.0, 20.0
"""Seconds before the change, after it at most, and once the points that do not hold any more are closed."""
CHANCES = (0.5, 0.95)
SIMULATED, SIMULATED_ROWS, SIMULATED_CHANGES = 200, 2000, 100
SERVER = ("--workers", "2", "--threads", "1", "--ladder", "--latency-target-ms", "50")
RESULTS = Path(__file__).parent / "results"
COUNTER = re.compile(r'^(offramp_\w+)\{(?:outcome|operating_point)="([^"]*)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Known:
    """Texts whose answers are known.

    Attributes:
        texts: that are sent.
        full: the label of each at full depth.
        differs: of each point with a certificate on agreement, whether its answer is another one.
    """

    texts: list[str]
    full: list[str]
    differs: Mapping[str, list[bool]]

    def rate(self, point: str) -> float:
        """Return the share of texts whose answers at a point differ from those at full depth."""
        return float(np.mean(self.differs[point]))

    def in_order(self, seed: int) -> Texts:
        """Return the texts in a random order, each with its label at full depth."""
        rows = list(zip(self.texts, self.full, strict=True))
        random.Random(seed).shuffle(rows)
        return Texts(rows)


@dataclass(frozen=True)
class Trial:
    """The runs; their state is a file.

    Attributes:
        prepared: the task.
        folder: of the model with a ladder.
        state_file: what is measured so far.
        share: of rows that are audited where the texts change.
    """

    prepared: Prepared
    folder: Path
    state_file: Path
    share: float

    @cached_property
    def state(self) -> dict[str, Any]:
        """Return what is measured so far."""
        return load_state(self.state_file, {"quiet": []})

    def save(self) -> None:
        """Write what is measured so far."""
        save_state(self.state_file, self.state)

    @cached_property
    def levels(self) -> dict[str, float]:
        """Return the levels of the watched points, from strict to loose."""
        points = {name: point for name, point in load_points(self.folder).items() if name in LADDER_NAMES}
        return {rung.name: rung.level for rung in ladder_of(points, None, None).rungs if rung.level}

    def known(self, texts: Sequence[Any]) -> Known:
        """Record texts, and return their answers."""
        trace, names = record(self.folder, list(texts), INT8), json.loads((self.folder / "config.json").read_text())
        full = trace.logits[-1].argmax(dim=-1)
        differs = {}
        for name, point in load_points(self.folder).items():
            if name in self.levels:
                rows = trace.select(point.layers_read(trace.layer_numbers))
                answers = replay(rows, as_policy(point.policy), point.thresholds).logits.argmax(dim=-1)
                differs[name] = (answers != full).tolist()
        return Known(list(texts), [names["id2label"][str(label)] for label in full.tolist()], differs)

    @cached_property
    def usual(self) -> Known:
        """Return the texts of the half that reports."""
        return self.known([text for text, _ in Texts.reporting(self.prepared).rows])

    @cached_property
    def other(self) -> Known:
        """Return the texts that come after the change."""
        file = self.prepared.cell.data / OTHER / "validation.jsonl.gz"
        columns = Columns("sentence1", None, "label")
        return self.known(read_examples(str(file), columns, split="validation", task="classification").texts)

    @property
    def broken(self) -> list[str]:
        """Return the points whose answers differ so often after the change that it can be noticed."""
        share = DELTA / len(self.levels)
        return [name for name, level in self.levels.items() if rows_to_notice(level, share, self.other.rate(name))]

    @contextmanager
    def serving(self, *options: str) -> Iterator[Server]:
        """Run a server that has answered a few texts."""
        common = ["-m", "offramp", "serve", str(self.folder), "--port", "{port}", "--engine", INT8]
        with running([*common, *options]) as server:
            yield server

    def rate(self, known: Known) -> float:
        """Return RATE times what the server answers of texts at its loosest point."""
        floor = list(self.levels)[-1]
        with self.serving("--workers", "2", "--threads", "1", "--operating-point", floor) as server:
            texts = known.in_order(0)
            texts.warm_up(server)
            return RATE * float(texts.saturated(server)["a_second"])

    def change(self) -> None:
        """Run a server through a change of its texts."""
        if "change" in self.state:
            return
        folder = self.state_file.parent / f"proposals-{int(time.time())}"
        rate, pieces = self.rate(self.other), []
        with self.serving(*SERVER, "--audit-share", str(self.share), "--proposals", str(folder)) as server:
            while len(pieces) * PIECE_S < BEFORE_S:
                pieces.append(piece(server, self.usual, rate, len(pieces)))
            before = len(pieces)
            while not _is_over(pieces[before:], self.broken):
                pieces.append(piece(server, self.other, rate, len(pieces)))
                print(f"  {pieces[-1]}", flush=True)
        proposals = [Proposal.load(path) for path in sorted(folder.glob("*.json"))]
        rows = pieces[before - 1]["audited"]
        self.state["change"] = {
            "rate": rate,
            "share": self.share,
            "pieces": pieces,
            "before": before,
            "rows_before": rows,
            "alarms": [self._alarm(proposal, rows) for proposal in sorted(proposals, key=lambda one: one.time)],
        }
        self.save()

    def _alarm(self, proposal: Proposal, before: int) -> dict[str, Any]:
        """Return the rows that an alarm took after the change, and those of theory and of simulated changes."""
        name, level, delta = proposal.operating_point, proposal.certificate.bound, proposal.evidence.delta
        rate = self.other.rate(name)
        return {
            "point": name,
            "in_force": proposal.in_force,
            "level": level,
            "differs_before": self.usual.rate(name),
            "differs": rate,
            "rows": proposal.evidence.rows - before,
            "allowed": [rows_to_notice(level, delta, rate, before, chance) for chance in CHANCES],
            "simulated": self._simulated_changes(name, level, delta, before),
        }

    def _simulated_changes(self, name: str, level: float, delta: float, before: int) -> list[float]:
        """Return the quantiles CHANCES of the rows that monitors take over random rows of the traces."""
        draw, rows = random.Random(0), []
        for _ in range(SIMULATED_CHANGES):
            monitor = DriftMonitor(level, delta)
            for _ in range(before):
                monitor.add(draw.choice(self.usual.differs[name]))
            while not monitor.alarm and monitor.rows < 20 * SIMULATED_ROWS:
                monitor.add(draw.choice(self.other.differs[name]))
            rows.append(monitor.rows - before)
        return [float(quantile) for quantile in np.quantile(rows, CHANCES)]

    def quiet(self, runs: int) -> None:
        """Run servers whose texts do not change."""
        change = self.state["change"]
        needed = change["rows_before"] + (change["alarms"][0]["rows"] if change["alarms"] else SIMULATED_ROWS)
        for seed in range(len(self.state["quiet"]), runs):
            rate = self.state.setdefault("quiet_rate", None) or self.rate(self.usual)
            self.state["quiet_rate"] = rate
            last: dict[str, Any] = {"audited": 0}
            with self.serving(*SERVER, "--audit-share", str(QUIET_SHARE), "--proposals", "/nowhere") as server:
                begin = time.monotonic()
                while last["audited"] < needed and time.monotonic() - begin < MOST_QUIET_S:
                    last = piece(server, self.usual, rate, 1000 * (seed + 1) + int(time.monotonic() - begin))
            self.state["quiet"].append({"seed": seed, **{key: last[key] for key in ("audited", "dropped", "alarms")}})
            self.save()
            print(f"  {self.state['quiet'][-1]}", flush=True)

    def simulate(self) -> None:
        """Let the monitors of the ladder run over random rows of the trace, without a change."""
        draw, alarms = np.random.default_rng(0), 0
        for _ in range(SIMULATED):
            rows = draw.integers(len(self.usual.texts), size=SIMULATED_ROWS)
            monitors = {name: DriftMonitor(level, DELTA / len(self.levels)) for name, level in self.levels.items()}
            alarms += any(monitors[name].add(self.usual.differs[name][row]) for row in rows for name in monitors)
        self.state["simulated"] = {"runs": SIMULATED, "rows": SIMULATED_ROWS, "alarms": alarms}
        self.save()


def piece(server: Server, known: Known, rate: float, seed: int) -> dict[str, Any]:
    """Send texts for PIECE_S seconds; return what became of them, and what the metrics say at the end."""
    texts = known.in_order(seed)
    plan = {"mode": "open", "phases": [[rate, PIECE_S]], "seed": seed, "late_s": 1e9, "keep": True}
    report = texts.ask(server, plan)
    answers = [label == texts.rows[text][1] for _, took, text, label in report["each"] if math.isfinite(took)]
    metrics = read_metrics(server)
    counts = {(name, label): float(value) for name, label, value in COUNTER.findall(metrics)}
    p99 = report["p99_ms"]
    return {
        "requests": report["requests"],
        "answered": len(answers),
        "refused": report["failed"],
        "p99_ms": p99 if math.isfinite(p99) else None,
        "agreement": sum(answers) / max(len(answers), 1),
        "point": in_force(metrics),
        "audited": int(counts["offramp_audit_rows_total", "audited"]),
        "dropped": int(counts["offramp_audit_rows_total", "dropped"]),
        "alarms": {
            name: int(count) for (metric, name), count in counts.items() if metric == "offramp_drift_alarms_total"
        },
    }


def _is_over(after: Sequence[Mapping[str, Any]], broken: Sequence[str]) -> bool:
    """Return whether the strictest of the points that do not hold any more was closed AFTER_S ago, or it takes long.

    A point that is closed closes the looser ones, which then have no alarm of their own.
    """
    last = int(AFTER_S / PIECE_S)
    closed = len(after) > last and after[-last - 1]["alarms"][broken[0]] > 0
    return closed or len(after) * PIECE_S >= MOST_S


def main() -> None:
    """Measure what is not measured yet, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/speed"), help="the folders of speed_models.py")
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    parser.add_argument("--ladders", type=Path, default=Path("runs/ladders"), help="the folders of serving_ladders.py")
    parser.add_argument("--state", type=Path, default=Path("runs/serving"), help="where unfinished runs lie")
    parser.add_argument("--quiet-runs", type=int, default=QUIET_RUNS, help="servers without a change")
    parser.add_argument("--share", type=float, default=SHARE, help="of rows that are audited where the texts change")
    options = parser.parse_args()
    prepared = Prepared(Cell(TASK, 0, options.data, options.encoders), options.runs)
    folder = options.ladders / prepared.folder.name
    trial = Trial(prepared, folder, options.state / prepared.folder.name / "drift.json", options.share)
    trial.change()
    trial.quiet(options.quiet_runs)
    trial.simulate()
    about = provenance()
    result = {"about": about, "task": TASK, "other": OTHER, "levels": trial.levels, "quiet_share": QUIET_SHARE}
    result |= trial.state
    (RESULTS / "serving_drift.json").write_text(json.dumps(result, indent=1) + "\n")
    text = page(result, PIECE_S, about)
    (RESULTS / "serving_drift.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
