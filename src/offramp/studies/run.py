"""A paper's comparison on traces of one's own: for every system and seed what it does at each thing that is asked.

What is told is the median over the seeds, with the lowest and the highest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from offramp.calibration.certify import certify
from offramp.errors import CannotReach
from offramp.evaluation.metrics import metric_for
from offramp.studies.analyses import bleu_confidence, certainty_quartiles, overthinking
from offramp.studies.selection import (
    Candidate,
    Figures,
    Selected,
    SplitTraces,
    candidates,
    evaluate,
    model_of,
    quality_loss,
    select,
)
from offramp.studies.spec import AS_IT_IS, Budget, LayersSaved, Study, SystemSpec, TrainingSpec
from offramp.studies.training_runs import Trained
from offramp.types.problem_types import REGRESSION

Models = Mapping[tuple[str, int], SplitTraces]
"""By training and seed."""

LEVEL, DELTA = 0.05, 0.05
"""Of the promise that is asked of every policy."""


@dataclass(frozen=True)
class SeedSummary:
    """A row of the results.

    Attributes:
        system: its name.
        ask: the label of what was asked.
        readings: one for each seed; None where no threshold does what is asked.
        middle: median of the figures over the seeds that have some.
        low: the lowest.
        high: the highest.
    """

    system: str
    ask: str
    readings: tuple[Selected | None, ...]
    middle: Figures = field(init=False)
    low: Figures = field(init=False)
    high: Figures = field(init=False)

    def __post_init__(self) -> None:
        found = [reading.figures for reading in self.readings if reading is not None]
        names = [name for name in (found[0] if found else ()) if all(name in each for each in found)]
        for spread, take in (("middle", median), ("low", min), ("high", max)):
            object.__setattr__(self, spread, {name: take([each[name] for each in found]) for name in names})

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        readings = [reading and reading.to_json() for reading in self.readings]
        spread = {"middle": self.middle, "low": self.low, "high": self.high}
        return {"system": self.system, "ask": self.ask, "readings": readings, **spread}


def run_study(
    study: Study,
    runs: Mapping[tuple[str, int], Trained],
    seeds: Sequence[int],
    metrics: tuple[str | None, ...] = (None,),
    pairs: Sequence[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Everything that a study tells, as data for JSON.

    Args:
        study: what is compared.
        runs: its training runs, by name and seed (`offramp.studies.training_runs.load_or_train_all`).
        seeds: those to be told.
        metrics: the score is their mean; None = the usual one.
        pairs: the texts of the validation rows, to hold confidence against BLEU; None = do not.
    """
    plain = runs[study.plain.name, seeds[0]]
    regression = plain.traces["validation"].problem_type == REGRESSION
    systems, trainings = study.systems_for(regression), study.all_trainings(regression)
    priced = "macs_ratio" in study.shows
    models = {
        (training.name, seed): model_of(runs[training.name, seed], runs[study.plain.name, seed], metrics, priced)
        for training in trainings
        for seed in seeds
    }
    one = models[study.plain.name, seeds[0]]
    by_seed = zip(*(_seed(study, systems, models, seed) for seed in seeds), strict=True)
    rows = [SeedSummary(each[0][0], each[0][1], tuple(reading for *_, reading in each)) for each in by_seed]
    return {
        "study": study.name,
        "source": study.source,
        "seeds": list(seeds),
        "shows": list(study.shows),
        "rows_that_choose": len(one.chooses.trace),
        "rows_reported": len(one.reports.trace),
        "depth": one.reports.depth,
        "metrics": [metric_for(one.reports.trace, metric)[0] for metric in metrics],
        "exits": [_exits(training, models, seeds) for training in trainings],
        "rows": [row.to_json() for row in rows],
        "ahead": _ahead(study, rows),
        "reached": [_reached(system, models, seeds) for system in systems if _policies(system, one)],
        "analyses": [_analysis(training, runs, seeds, pairs) for training in trainings if not training.alone],
        "promises": [] if regression else [_promise(system, models, seeds) for system in systems if _leaves(system)],
    }


def _seed(
    study: Study, systems: Sequence[SystemSpec], models: Models, seed: int
) -> list[tuple[str, str, Selected | None]]:
    """System, label of the ask, and what came of it, for one seed."""
    plain = models[study.plain.name, seed]
    wanted, whole = plain.chooses.exits()[-1], plain.reports.exits()[-1]
    found, paces = [], _paces(study, systems, models, seed)
    for system in systems:
        model = models[system.training.name, seed]
        policies = _policies(system, model)
        seen = candidates(model.chooses, policies) if policies else []
        for ask in study.asks if policies else (None,):
            option = None if ask is None else select(paces.get(ask, ask), seen, wanted)
            missing = ask is not None and option is None
            reading = None if missing else Selected(option, evaluate(model.reports, option, whole))
            found.append((system.name, AS_IT_IS if ask is None else ask.label, reading))
    return found


def _ahead(study: Study, rows: Sequence[SeedSummary]) -> list[dict[str, Any]]:
    """How much each system's score is above that of the one that sets the pace, for each seed that has both."""
    leader = {row.ask: row.readings for row in rows if row.system == study.pace}
    found = []
    for row in rows:
        pairs = zip(row.readings, leader.get(row.ask, ()), strict=False)
        ahead = [one.figures["score"] - other.figures["score"] for one, other in pairs if one and other]
        if ahead and row.system != study.pace:
            found.append({"system": row.system, "ask": row.ask, "seeds": ahead, "middle": median(ahead)})
    return found


def _paces(study: Study, systems: Sequence[SystemSpec], models: Models, seed: int) -> dict[Budget, Budget]:
    """What each ask for savings becomes where one system sets the pace."""
    leader = next((system for system in systems if system.name == study.pace), None)
    if leader is None:
        return {}
    part = models[leader.training.name, seed].chooses
    seen = candidates(part, _policies(leader, models[leader.training.name, seed]))
    picked = {ask: select(ask, seen, math.nan) for ask in study.asks if isinstance(ask, LayersSaved)}
    return {ask: LayersSaved(option.figures["saving"]) for ask, option in picked.items() if option is not None}


def _policies(system: SystemSpec, model: SplitTraces) -> tuple[Mapping[str, Any], ...]:
    if model.chooses.trace.problem_type == REGRESSION:
        return system.regression or ()
    return system.policies


def _exits(training: TrainingSpec, models: Models, seeds: Sequence[int]) -> dict[str, Any]:
    scores = [models[training.name, seed].reports.exits() for seed in seeds]
    averages, bests = [sum(each) / len(each) for each in scores], [max(each) for each in scores]
    return {
        "training": training.name,
        "objective": training.objective,
        "layers": models[training.name, seeds[0]].reports.trace.layer_numbers,
        "scores": [median(each) for each in zip(*scores, strict=True)],
        "average": median(averages),
        "average_range": [min(averages), max(averages)],
        "best": median(bests),
        "best_range": [min(bests), max(bests)],
    }


def _leaves(system: SystemSpec) -> bool:
    return bool(system.policies) and system.policies[0]["name"] != "fixed"


def _promise(system: SystemSpec, models: Models, seeds: Sequence[int]) -> dict[str, Any]:
    """Where a guarantee puts a system's first policy: on the rows that choose, then what it does on the others."""
    found = []
    for seed in seeds:
        model = models[system.training.name, seed]
        try:
            point = certify(model.chooses.trace, system.policies[0], level=LEVEL, delta=DELTA)
        except CannotReach:
            continue
        option = Candidate(system.policies[0], point.thresholds[0], {})
        figures = evaluate(model.reports, option, model.reports.exits()[-1])
        found.append({**figures, "lost": quality_loss(model.reports.trace, option)})
    told = {name: median([each[name] for each in found]) for name in (found[0] if found else ())}
    return {
        "system": system.name,
        "policy": dict(system.policies[0]),
        "level": LEVEL,
        "delta": DELTA,
        "middle": told,
        "seeds": found,
    }


def _reached(system: SystemSpec, models: Models, seeds: Sequence[int]) -> dict[str, Any]:
    """The mean exit layers that a system can be set to, on the rows that choose: ends, number and widest gap.

    PCEE-BERT's figure 8 has them at 100 thresholds a patience; here are all that differ.
    """
    found = []
    for seed in seeds:
        model = models[system.training.name, seed]
        seen = candidates(model.chooses, _policies(system, model))
        exits = sorted({option.figures["mean_exit"] for option in seen})
        gap = max((high - low for low, high in pairwise(exits)), default=0.0)
        found.append({"least": exits[0], "most": exits[-1], "settings": len(exits), "widest_gap": gap})
    return {"system": system.name, **{name: median([each[name] for each in found]) for name in found[0]}}


def _analysis(
    training: TrainingSpec,
    runs: Mapping[tuple[str, int], Trained],
    seeds: Sequence[int],
    pairs: Sequence[tuple[str, str]] | None,
) -> dict[str, Any]:
    """What a training's exits say of all validation rows, medians over the seeds; what does not apply is left out."""
    traces = [runs[training.name, seed].traces["validation"] for seed in seeds]
    found: dict[str, Any] = {"training": training.name}
    if traces[0].problem_type != REGRESSION:
        seen = [overthinking(trace) for trace in traces]
        found["entropy"] = _median([each.entropy for each in seen])
        found["error"] = _median([each.error for each in seen])
        found["spoilt"] = median([each.spoilt for each in seen])
    if traces[0].certainty is not None:
        found["certainty"] = _median([certainty_quartiles(trace) for trace in traces])
    if pairs is not None:
        found["bleu"] = _median([bleu_confidence(trace, pairs) for trace in traces])
    return found


def _median(each: Sequence[Tensor]) -> Any:
    """The median over the seeds of every element; None where a seed has none."""
    middle = torch.stack([one.double() for one in each]).quantile(0.5, dim=0)
    return _plain(middle.tolist())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if math.isnan(value) else value
