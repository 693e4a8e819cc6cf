"""Run a paper's comparison on traces: figures of every system at every budget, for every seed.

A summary is the median over the seeds, with the lowest and the highest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from offramp.calibration.certify import certify
from offramp.errors import CannotReach
from offramp.evaluation.metrics import metric_for
from offramp.studies.analyses import bleu_confidence, certainty_quartiles, overthinking
from offramp.studies.result import (
    CertifiedFigures,
    ExitAnalysis,
    ExitScores,
    ReachableExits,
    ScoreLead,
    SeedSummary,
    StudyResult,
    over_seeds,
)
from offramp.studies.selection import (
    Candidate,
    Selected,
    SplitTraces,
    candidates,
    evaluate,
    quality_loss,
    select,
    split_traces,
)
from offramp.studies.spec import AS_IT_IS, Budget, LayersSaved, Study, SystemSpec, TrainingSpec
from offramp.studies.training_runs import Trained
from offramp.types.problem_types import REGRESSION

Runs = Mapping[tuple[str, int], Trained]
"""By training and seed."""
Splits = Mapping[tuple[str, int], SplitTraces]
"""By training and seed."""

LEVEL, DELTA = 0.05, 0.05
"""Of the certificate that is computed for every policy."""


def run_study(
    study: Study,
    runs: Runs,
    seeds: Sequence[int],
    metrics: tuple[str | None, ...] = (None,),
    pairs: Sequence[tuple[str, str]] | None = None,
) -> StudyResult:
    """Compare a study's systems.

    Args:
        study: the comparison.
        runs: its training runs, by name and seed (`offramp.studies.training_runs.load_or_train_all`).
        seeds: those to report.
        metrics: the score is their mean; None = the default one.
        pairs: the texts of the validation rows, to compare confidence with BLEU; None = it is not compared.
    """
    first = runs[study.plain.name, seeds[0]].traces["validation"]
    regression = first.problem_type == REGRESSION
    systems, trainings = study.systems_for(regression), study.all_trainings(regression)
    with_macs = "macs_ratio" in study.shows
    splits = {
        (training.name, seed): split_traces(runs[training.name, seed], runs[study.plain.name, seed], metrics, with_macs)
        for training in trainings
        for seed in seeds
    }
    plain = splits[study.plain.name, seeds[0]]
    rows = _rows(study, systems, splits, seeds, regression)
    return StudyResult(
        study=study,
        seeds=tuple(seeds),
        selection_rows=len(plain.selection.trace),
        test_rows=len(plain.test.trace),
        depth=plain.test.depth,
        metrics=tuple(metric_for(plain.test.trace, metric)[0] for metric in metrics),
        exits=tuple(_exit_scores(training, splits, seeds) for training in trainings),
        rows=rows,
        leads=_leads(study, rows),
        reached=tuple(
            _reachable(system, splits, seeds, regression) for system in systems if system.policies_for(regression)
        ),
        analyses=tuple(_analysis(training, runs, seeds, pairs) for training in trainings if not training.alone),
        certified=() if regression else tuple(_certified(s, splits, seeds) for s in systems if _has_thresholds(s)),
    )


def _rows(
    study: Study, systems: Sequence[SystemSpec], splits: Splits, seeds: Sequence[int], regression: bool
) -> tuple[SeedSummary, ...]:
    by_seed = [_select_all(study, systems, splits, seed, regression) for seed in seeds]
    return tuple(SeedSummary(*key, tuple(selected[key] for selected in by_seed)) for key in by_seed[0])


def _select_all(
    study: Study, systems: Sequence[SystemSpec], splits: Splits, seed: int, regression: bool
) -> dict[tuple[str, str], Selected | None]:
    """Select a threshold for every system and budget, with one seed; by system and label of the budget."""
    plain = splits[study.plain.name, seed]
    plain_score, plain_test_score = plain.selection.exit_scores()[-1], plain.test.exit_scores()[-1]
    pace = _pace(study, systems, splits, seed, regression)
    rows: dict[tuple[str, str], Selected | None] = {}
    for system in systems:
        split, policies = splits[system.training.name, seed], system.policies_for(regression)
        if not policies:
            rows[system.name, AS_IT_IS] = Selected(None, evaluate(split.test, None, plain_test_score))
            continue
        options = candidates(split.selection, policies)
        for budget in study.budgets:
            candidate = select(pace.get(budget, budget), options, plain_score)
            selected = Selected(candidate, evaluate(split.test, candidate, plain_test_score)) if candidate else None
            rows[system.name, budget.label] = selected
    return rows


def _pace(
    study: Study, systems: Sequence[SystemSpec], splits: Splits, seed: int, regression: bool
) -> dict[Budget, Budget]:
    """Return the savings of the pace system in place of each budget of savings; nothing where no system sets it."""
    leader = next((system for system in systems if system.name == study.pace), None)
    if leader is None:
        return {}
    options = candidates(splits[leader.training.name, seed].selection, leader.policies_for(regression))
    chosen = {budget: select(budget, options, math.nan) for budget in study.budgets if isinstance(budget, LayersSaved)}
    return {budget: LayersSaved(option.figures["saving"]) for budget, option in chosen.items() if option is not None}


def _leads(study: Study, rows: Sequence[SeedSummary]) -> tuple[ScoreLead, ...]:
    pace = {row.budget: row.selected for row in rows if row.system == study.pace}
    leads = []
    for row in rows:
        pairs = zip(row.selected, pace.get(row.budget, ()), strict=False)
        seeds = [own.figures["score"] - other.figures["score"] for own, other in pairs if own and other]
        if seeds and row.system != study.pace:
            leads.append(ScoreLead(row.system, row.budget, seeds))
    return tuple(leads)


def _exit_scores(training: TrainingSpec, splits: Splits, seeds: Sequence[int]) -> ExitScores:
    scores = [splits[training.name, seed].test.exit_scores() for seed in seeds]
    averages, bests = [sum(row) / len(row) for row in scores], [max(row) for row in scores]
    return ExitScores(
        training=training.name,
        objective=training.objective,
        layers=splits[training.name, seeds[0]].test.trace.layer_numbers,
        scores=[median(column) for column in zip(*scores, strict=True)],
        average=median(averages),
        average_range=(min(averages), max(averages)),
        best=median(bests),
        best_range=(min(bests), max(bests)),
    )


def _has_thresholds(system: SystemSpec) -> bool:
    return bool(system.policies) and system.policies[0]["name"] != "fixed"


def _certified(system: SystemSpec, splits: Splits, seeds: Sequence[int]) -> CertifiedFigures:
    """Certify a system's first policy on the selection rows and evaluate it on the test rows."""
    policy = system.policies[0]
    figures = []
    for seed in seeds:
        split = splits[system.training.name, seed]
        try:
            point = certify(split.selection.trace, policy, level=LEVEL, delta=DELTA)
        except CannotReach:
            continue
        candidate = Candidate(policy, point.thresholds[0], {})
        test = evaluate(split.test, candidate, split.test.exit_scores()[-1])
        figures.append({**test, "lost": quality_loss(split.test.trace, candidate)})
    return CertifiedFigures(system.name, policy, LEVEL, DELTA, figures)


def _reachable(system: SystemSpec, splits: Splits, seeds: Sequence[int], regression: bool) -> ReachableExits:
    """Return the mean exit layers that a system can be set to, on the selection rows.

    PCEE-BERT's figure 8 has them at 100 thresholds a patience; here all that differ count.
    """
    rows = []
    for seed in seeds:
        split = splits[system.training.name, seed].selection
        options = candidates(split, system.policies_for(regression))
        exits = sorted({option.figures["mean_exit"] for option in options})
        gap = max((high - low for low, high in pairwise(exits)), default=0.0)
        rows.append({"least": exits[0], "most": exits[-1], "settings": len(exits), "widest_gap": gap})
    return ReachableExits(system.name, **over_seeds(rows, median))


def _analysis(
    training: TrainingSpec, runs: Runs, seeds: Sequence[int], pairs: Sequence[tuple[str, str]] | None
) -> ExitAnalysis:
    """Analyse a training's exits on all validation rows; medians over the seeds."""
    traces = [runs[training.name, seed].traces["validation"] for seed in seeds]
    analyses: dict[str, Any] = {}
    if traces[0].problem_type != REGRESSION:
        rows = [overthinking(trace) for trace in traces]
        analyses["entropy"] = _median([row.entropy for row in rows])
        analyses["error"] = _median([row.error for row in rows])
        analyses["became_wrong"] = median([row.became_wrong for row in rows])
    if traces[0].certainty is not None:
        analyses["certainty"] = _median([certainty_quartiles(trace) for trace in traces])
    if pairs is not None:
        analyses["bleu"] = _median([bleu_confidence(trace, pairs) for trace in traces])
    return ExitAnalysis(training.name, **analyses)


def _median(seeds: Sequence[Tensor]) -> Any:
    """Return the median over the seeds of every element as lists; None where a seed has NaN."""
    values = torch.stack([tensor.double() for tensor in seeds]).quantile(0.5, dim=0)
    return _without_nan(values.tolist())


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(element) for element in value]
    return None if math.isnan(value) else value
