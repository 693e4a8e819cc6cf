"""Each claim of the five papers beside what the cells and the other results show: `docs/claims.md`.

    python benchmarks/claims.py

Reads the cells that `study_cells.py` left, the traces of `mpnet_traces.py`, and the results of other scripts; what is
not there yet is "not run". `claims_policies.py`, `claims_berxit.py` and `claims_models.py` have the comparisons,
`claims_elsewhere.py`, `claims_tokens.py` and `claims_earlier.py` those of other scripts, `claims_measure.py` the
statistics, `claims_page.py` the verdicts and the page. Writes `results/claims.json`, `docs/claims.md`, and the
figures of the pages that quote it (`--pages`: these alone). Differences whose cells have not changed are taken up
from `--cache`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import claims_measure
import study_cells
from claims_base import ALL, TRACES, WHOLE, Claim
from claims_berxit import BERXIT
from claims_bleu import bleu_row
from claims_earlier import earlier, not_run
from claims_elsewhere import rows_elsewhere
from claims_measure import HALVES, Difference, Gap, Half, counts_of, gap_of, halves_of, interval, mean_gap, rounded
from claims_models import BADGE, MPEE
from claims_page import RESULT, load, verdict, write_pages
from claims_policies import PABEE, PCEE
from claims_theorem import theorem_row
from claims_tokens import axes, similarity, tokens
from machine import provenance
from offramp.model.flops import encoder_macs, plain_macs
from offramp.studies.papers import mpee, pabee
from offramp.studies.selection import EvaluationSplit
from offramp.types.trace import Trace

TRACE_FOLDER = Path(__file__).parent / "results" / "traces"
WITH_MACS = {mpee.BOTH.name, mpee.LAYERS_ALONE.name, mpee.FAST_BERT.name, mpee.TWO_STAGE.name, pabee.WEIGHTED.name}
CLAIMS = (*PABEE, *BERXIT, *PCEE, *MPEE, *BADGE)
COMMAND = "python benchmarks/claims.py"


@dataclass(frozen=True)
class Models:
    """The models of a case that are there.

    Attributes:
        name: of the case.
        files: of its traces, by training and seed.
        metrics: the score is their mean.
        case: None for the traces that are no cells.
    """

    name: str
    files: Mapping[tuple[str, int], Path]
    metrics: tuple[str, ...]
    case: study_cells.Case | None = None

    @cached_property
    def digests(self) -> dict[tuple[str, int], str]:
        """The content of every trace."""
        return {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in self.files.items()}

    def seeds_of(self, trainings: Iterable[str]) -> tuple[int, ...]:
        """Return the seeds, where all of them have run with all these trainings; else none."""
        wanted = study_cells.SEEDS if self.case else (0,)
        there = all((training, seed) in self.files for training in trainings for seed in wanted)
        return wanted if there else ()

    def split(self, training: str, seed: int) -> EvaluationSplit:
        """Return the rows of a model; with multiply-accumulates, where MPEE's comparisons ask for them."""
        if self.case is None:
            trace = Trace.load(self.files[training, seed])
            assert trace.fit_rows is not None
            trace = trace.take(
                (~trace.fit_rows).nonzero().squeeze(-1)
            )  # those that fitted the lexical exit report nothing
            trace = trace.select([layer for layer in trace.layer_numbers if layer > 0])
            return EvaluationSplit(trace, trace.layer_numbers[-1], self.metrics)
        trained = study_cells.load(cell_of(self.case, training, seed))
        trace = trained.traces["validation"]
        plain = (WHOLE, seed)
        if training not in WITH_MACS or plain not in self.files or trace.tokens is None:
            return EvaluationSplit(trace, self.depth, self.metrics)
        config = study_cells.load(cell_of(self.case, *plain)).config
        costs = encoder_macs(trained.config, trace.tokens), plain_macs(config, trace.tokens)
        return EvaluationSplit(trace, self.depth, self.metrics, *costs)

    def counts(self, rows: int) -> Tensor:
        """Return how often each row is drawn; cases of one task draw the same rows."""
        if self.case is not None:
            return counts_of(rows, self.case.task)
        fit_rows = Trace.load(self.files[pabee.WEIGHTED.name, 0]).fit_rows
        assert fit_rows is not None
        return counts_of(len(fit_rows), self.name.partition("-")[2])[:, ~fit_rows]

    @cached_property
    def depth(self) -> int:
        """Layers of the encoder, uncut."""
        return max(json.loads(file.with_suffix(".json").read_text())["layers"][-1] for file in self.files.values())


def cell_of(case: study_cells.Case, training: str, seed: int) -> study_cells.Cell:
    """Return the cell of a training by name."""
    named = {cell.training.name: cell.training for cell in study_cells.cells() if cell.case == case}
    return study_cells.Cell(case, named[training], seed)


def all_models() -> dict[str, Models]:
    """Return what is there of every case."""
    found = {}
    for case in study_cells.CASES.values():
        files = {
            (cell.training.name, cell.seed): cell.file.with_suffix(".safetensors")
            for cell in study_cells.cells()
            if cell.case == case and cell.file.exists()
        }
        found[case.name] = Models(case.name, files, case.metrics, case)
    for name in TRACES:
        file = TRACE_FOLDER / f"{name}.safetensors"
        found[name] = Models(name, {(pabee.WEIGHTED.name, 0): file} if file.exists() else {}, ("accuracy",))
    return found


def trainings_of(claim: Claim) -> tuple[str, ...]:
    """Return the trainings that a claim compares."""
    return tuple(dict.fromkeys(name for pair in claim.pairs for side in pair for name in side.trainings))


def compare_case(models: Models, claims: Sequence[Claim]) -> dict[str, Difference | None]:
    """Return the claims' differences on a case; None where a budget is out of reach."""
    needed = {training for claim in claims for training in trainings_of(claim)}
    gaps: dict[str, list[list[Gap | None]]] = {claim.name: [] for claim in claims}
    for seed in models.seeds_of(()):
        splits = {training: models.split(training, seed) for training in needed}
        rows = len(next(iter(splits.values())).trace)
        counts, kept = models.counts(rows), {}
        for claim in claims:
            gaps[claim.name].append([])
        for chosen_on in (torch.tensor([], dtype=torch.long), *halves_of(rows)):
            half = Half(splits, chosen_on, counts, kept)
            for claim in claims:
                if any(side.chooses for pair in claim.pairs for side in pair) == (len(chosen_on) > 0):
                    gaps[claim.name][-1].append(gap_of(half, claim.pairs, claim.factor))
    return {name: mean_gap(by_seed) for name, by_seed in gaps.items()}


def cached(models: Models, claims: Sequence[Claim], cache: Path) -> dict[str, Difference | None]:
    """Return `compare_case`; of claims whose cells and statistics have not changed from their files."""
    code = hashlib.sha256(Path(claims_measure.__file__).read_bytes()).hexdigest()

    def file_of(claim: Claim) -> Path:
        cells = sorted((key, models.digests[key]) for key in models.files if key[0] in {*trainings_of(claim), WHOLE})
        key = repr((models.name, models.metrics, cells, claim.pairs, claim.factor, code))
        return cache / f"{claim.name}-{models.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"

    missing = [claim for claim in claims if not file_of(claim).exists()]
    if missing:
        started = time.perf_counter()
        cache.mkdir(parents=True, exist_ok=True)
        found = compare_case(models, missing)
        for claim in missing:
            value = found[claim.name]
            torch.save(value and {"draws": value.draws, "costs": dict(value.costs)}, file_of(claim))
        print(f"{models.name}: {len(missing)} claims, {time.perf_counter() - started:.0f} s", flush=True)
    stored = {claim.name: torch.load(file_of(claim), weights_only=True) for claim in claims}
    return {name: value and Difference(**value) for name, value in stored.items()}


def row_of(claim: Claim, tasks: Mapping[str, Difference], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return a claim's line; without tasks it has no figures."""
    figures: dict[str, Any] = {"value": None, "low": None, "high": None, "seeds": []}
    if tasks:
        figures = interval(torch.stack([task.draws.mean(dim=0) for task in tasks.values()]).mean(dim=0))
        by_seed = [task.draws[:, 0] for task in tasks.values()]  # a trace has one seed, which then stands beside each
        seeds = max(map(len, by_seed))
        figures["seeds"] = rounded(torch.stack([values.expand(seeds) for values in by_seed]).mean(dim=0).tolist())
    row = {
        "name": claim.name,
        "paper": claim.name.partition("-")[0],
        "claim": claim.text,
        "where": claim.where,
        "printed": claim.printed,
        "rule": asdict(claim.rule),
        "unit": "points",
        **figures,
        "tasks": {name: {**task.to_json(), "unit": "points"} for name, task in tasks.items()},
        "left_out": dict(left_out),
        "note": claim.note,
        "command": COMMAND,
        "file": "benchmarks/results/claims.json",
    }
    return {**row, "verdict": verdict(row)}


def compare_all(cache: Path) -> list[dict[str, Any]]:
    """Return the lines of all claims on cells."""
    models = all_models()
    found: dict[str, dict[str, Difference | None]] = {}
    for name, some in models.items():
        mine = [claim for claim in CLAIMS if name in claim.cases and some.seeds_of(trainings_of(claim))]
        if mine:
            found[name] = cached(some, mine, cache)
    rows = []
    for claim in CLAIMS:
        results = {name: found[name][claim.name] for name in claim.cases if claim.name in found.get(name, {})}
        left_out = {name: "not run" for name in claim.cases if name not in results}
        left_out |= {name: "budget out of reach" for name, task in results.items() if task is None}
        row = row_of(claim, {name: task for name, task in results.items() if task is not None}, left_out)
        rows.append(earlier(row))
    return rows


def compare_texts(data: Path) -> dict[str, Any]:
    """Return the line of the claim that needs texts."""
    models = all_models()["minilm-mrpc"]
    assert models.case is not None
    return bleu_row(models.case, models.split if models.seeds_of([pabee.WEIGHTED.name]) else None, data)


def compare_promises() -> dict[str, Any]:
    """Return the line of PABEE's theorem on real layers."""
    name, found = pabee.WEIGHTED.name, {}
    for case in ALL:
        models = all_models()[case]
        splits = [models.split(name, seed) for seed in models.seeds_of([name])]
        found[case] = [(split, models.counts(len(split.trace))) for split in splits]
    return theorem_row(found)


def main() -> None:
    """Compare, and write the result and the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/claims"), help="differences of cases compared before")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the tasks, for BLEU of MRPC")
    parser.add_argument("--pages", action="store_true", help="write the pages from the result that is there")
    options = parser.parse_args()
    if not options.pages:
        rows = [
            *compare_all(options.cache),
            compare_texts(options.data),
            compare_promises(),
            *rows_elsewhere(),
            *tokens(),
            *axes(),
            *similarity(),
            *not_run(),
        ]
        order = {row["name"]: (row["paper"], int(row["name"].partition("-")[2])) for row in rows}
        about = provenance()
        setting = {"halves": HALVES, "draws": claims_measure.DRAWS, "date": about["date"]}
        made = {"about": about, "setting": setting, "rows": sorted(rows, key=lambda row: order[row["name"]])}
        unfinished = RESULT.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, RESULT)
    untrue = write_pages(load())
    print("\n".join(untrue) or "every quoted verdict is that of its row")
    sys.exit(1 if untrue else 0)


if __name__ == "__main__":
    main()
