"""Scores of systems on cells of `study_cells.py`, on rows that chose no threshold, with intervals over the rows.

A random half of a case's validation rows chooses a threshold, the other half is scored, HALVES times. A resample is a
count of each row; it is the same for every system, seed and half of a case, so that differences are paired. Thresholds
stay as they were chosen; the seeds are not resampled.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from offramp.evaluation.metrics import metric_for
from offramp.policies.registry import load_policy
from offramp.policies.replay import answers_at, run_policy
from offramp.studies.papers import badge, pabee, pcee
from offramp.studies.selection import Candidate, EvaluationSplit, candidates, select
from offramp.studies.spec import Budget, LayersSaved
from offramp.types.outputs import ExitOutput
from offramp.types.trace import labels_of

HALVES = 20
DRAWS = 1000
OPTIONS = 500
"""Of a policy's thresholds, evenly spread over all that differ, so that one budget costs milliseconds."""

POLICIES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "fixed": ({"name": "fixed"},),
    "entropy": (pabee.ENTROPY,),
    "max-prob": (pabee.LARGEST,),
    "certainty": (pcee.CERTAINTY,),
    "patience": (pabee.PATIENCE,),
    "stability": pabee.STABILITY,
    "pcee": pcee.PATIENT,
    "pcee, averaged": tuple({**policy, "ensemble": "all"} for policy in pcee.PATIENT),
    "pcee-v1": tuple({**policy, "measure": "max-prob"} for policy in pcee.PATIENT),
    "pcee-v2": tuple({**policy, "measure": "certainty"} for policy in pcee.PATIENT),
    "divergence": badge.DIVERGENCE,
    "divergence-kl": badge.KL,
    "divergence-js": badge.JS,
}


@dataclass(frozen=True)
class Side:
    """A system of a comparison: a training, and how its samples exit.

    Attributes:
        training: its name.
        policy: a name of POLICIES; None = all samples answer at `exits`.
        budget: chooses the threshold.
        pace: training and policy whose savings at `budget`, a `LayersSaved`, are the budget.
        share: a threshold of patience as a share of the exits, in place of a budget.
        exits: "last", or the mean score of "all", of the "early" (all but the last), of the "first half".
    """

    training: str
    policy: str | None = None
    budget: Budget | None = None
    pace: tuple[str, str] | None = None
    share: float | None = None
    exits: str = "last"

    @property
    def trainings(self) -> tuple[str, ...]:
        """Names of the trainings whose cells it needs."""
        return (self.training, *(self.pace or ())[:1])

    @property
    def chooses(self) -> bool:
        """Whether rows choose its threshold."""
        return self.budget is not None


@dataclass(frozen=True)
class Scores:
    """Scores of a side: (1 + DRAWS,), the first on all rows as they are; cost on the rows reported."""

    scores: Tensor
    saving: float
    macs_ratio: float | None


def counts_of(rows: int, task: str) -> Tensor:
    """Return how often each row of a task is drawn, (1 + DRAWS, N) float64; in the first all rows once."""
    generator = torch.Generator().manual_seed(zlib.crc32(task.encode()))
    drawn = torch.randint(rows, (DRAWS, rows), generator=generator)
    counts = torch.zeros(DRAWS, rows, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return torch.cat((torch.ones(1, rows, dtype=torch.float64), counts))


def halves_of(rows: int) -> list[Tensor]:
    """Return HALVES random halves that choose, as row indices, the same ones on every call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(rows, generator=generator)[: rows // 2] for _ in range(HALVES)]


def resampled_score(split: EvaluationSplit, logits: Tensor, weights: Tensor) -> Tensor:
    """Score answers, logits (N, C), with weights of the rows, (R, N); (R,)."""
    out, labels = ExitOutput(logits, problem_type=split.trace.problem_type), labels_of(split.trace)
    rows, drawn = len(split.trace), weights.sum(dim=-1, keepdim=True)
    values = []
    for name in split.metrics:
        rule = metric_for(split.trace, name)[1]
        sums = weights @ rule.statistics(out, labels)  # (R, S)
        values.append(rule.value(sums * rows / drawn, rows))  # all scores are ratios, so the scale cancels
    return torch.stack(values).mean(dim=0)


@dataclass
class Half:
    """One division of the rows of a case, with one seed's models.

    Attributes:
        splits: all rows of every training.
        chosen_on: (M,) indices of the rows that choose; none = nothing is chosen, and all rows are reported.
        counts: (1 + DRAWS, N).
        ran: outputs of policies on all rows, shared by the halves.
    """

    splits: Mapping[str, EvaluationSplit]
    chosen_on: Tensor
    counts: Tensor
    ran: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _options: dict[tuple[str, str], list[Candidate]] = field(default_factory=dict)
    _scores: dict[Side, Scores | None] = field(default_factory=dict)

    @cached_property
    def reported(self) -> Tensor:
        """(N,) 1 for rows that are reported."""
        mask = torch.ones(self.counts.shape[1], dtype=torch.float64)
        mask[self.chosen_on] = 0
        return mask

    def options(self, training: str, policy: str) -> list[Candidate]:
        """Return thresholds with their figures on the rows that choose."""
        if (training, policy) not in self._options:
            split, rows = self.splits[training], self.chosen_on
            chosen = replace(
                split,
                trace=split.trace.take(rows),
                macs=None if split.macs is None else split.macs[:, rows],
                plain_macs=None if split.plain_macs is None else split.plain_macs[rows],
            )
            found = []
            for data in POLICIES[policy]:
                every = candidates(chosen, [data])
                found += every[:: max(1, len(every) // OPTIONS)]
            self._options[training, policy] = found
        return self._options[training, policy]

    def choose(self, side: Side) -> Candidate | None:
        """Return the threshold that meets a side's budget; None where there is none."""
        assert side.policy is not None
        budget = side.budget
        assert budget is not None
        if side.pace is not None:
            leader = select(budget, self.options(*side.pace), 0.0)
            if leader is None:
                return None
            budget = LayersSaved(leader.figures["saving"])
        return select(budget, self.options(side.training, side.policy), 0.0)

    def scores(self, side: Side) -> Scores | None:
        """Return a side's scores on the rows reported; None where its budget is out of reach."""
        if side not in self._scores:
            self._scores[side] = self._scores_of(side)
        return self._scores[side]

    def _scores_of(self, side: Side) -> Scores | None:
        split = self.splits[side.training]
        weights, depth = self.counts * self.reported, split.trace.depth
        if side.policy is None:
            exits = {"all": range(depth), "early": range(depth - 1), "first half": range(depth // 2)}
            answers = [split.trace.logits[at] for at in exits.get(side.exits, [depth - 1])]
            scores = torch.stack([resampled_score(split, logits, weights) for logits in answers])
            return Scores(scores.mean(dim=0), 0.0, self._ratio(split, torch.full((len(split.trace),), depth - 1)))
        if side.share is not None:
            data, threshold = POLICIES[side.policy][0], float(round(side.share * depth))
        else:
            candidate = self.choose(side)
            if candidate is None:
                return None
            data, threshold = candidate.policy, candidate.threshold
        key = (side.training, str(data))
        if key not in self.ran:
            self.ran[key] = run_policy(load_policy(data), split.trace)
        answered = answers_at(split.trace, *self.ran[key], threshold)
        layers = torch.tensor(split.trace.layer_numbers)
        saving = 1 - (answered.exit_layers * self.reported).sum().item() / self.reported.sum().item() / split.depth
        ratio = self._ratio(split, torch.searchsorted(layers, answered.exit_layers))
        return Scores(resampled_score(split, answered.logits, weights), saving, ratio)

    def _ratio(self, split: EvaluationSplit, exits: Tensor) -> float | None:
        if split.macs is None or split.plain_macs is None:
            return None
        spent = split.macs.gather(0, exits.view(1, -1))[0]
        return ((split.plain_macs * self.reported).sum() / (spent * self.reported).sum()).item()


@dataclass(frozen=True)
class Difference:
    """One side's score less another's on a case: (S, 1 + DRAWS) by seed, in points; costs are means over seeds.

    Attributes:
        draws: by seed.
        costs: of either side: layers saved, and multiply-accumulates of the plain model over those spent.
    """

    draws: Tensor
    costs: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return point, interval and seeds."""
        return {**interval(self.draws.mean(dim=0)), "seeds": rounded(self.draws[:, 0].tolist()), **self.costs}


def interval(draws: Tensor) -> dict[str, float]:
    """Return the point (the first) and the middle 95 % of the draws."""
    low, high = draws[1:].quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return dict(zip(("value", "low", "high"), rounded([draws[0].item(), low, high]), strict=True))


def rounded(values: Sequence[float]) -> list[float]:
    """Return values with two digits behind the point, without a minus before zero."""
    return [round(value, 2) + 0.0 for value in values]


Pair = tuple[Side, Side]
Costs = dict[str, list[float]]


@dataclass(frozen=True)
class Gap:
    """One side's score less another's on one half with one seed, mean over pairs: (1 + DRAWS,), and the costs."""

    draws: Tensor
    costs: Costs


def gap_of(half: Half, pairs: Sequence[Pair], factor: float) -> Gap | None:
    """Return the mean over pairs of one side's score less `factor` times the other's; None = a budget out of reach."""
    gaps, costs = [], {"saved": [], "saved_other": [], "macs": [], "macs_other": []}
    for one, other in ((half.scores(one), half.scores(other)) for one, other in pairs):
        if one is None or other is None:
            return None
        gaps.append(one.scores - factor * other.scores)
        for side, suffix in ((one, ""), (other, "_other")):
            costs[f"saved{suffix}"].append(side.saving)
            if side.macs_ratio is not None:
                costs[f"macs{suffix}"].append(side.macs_ratio)
    return Gap(torch.stack(gaps).mean(dim=0), costs)


def mean_gap(by_seed: Sequence[Sequence[Gap | None]]) -> Difference | None:
    """Return the mean over the halves of each seed; None where a budget is out of reach in more than half of them."""
    met = [[gap for gap in gaps if gap is not None] for gaps in by_seed]
    if any(len(some) * 2 < len(gaps) for some, gaps in zip(met, by_seed, strict=True)):
        return None
    every = [gap.costs for some in met for gap in some]
    costs = {name: [value for one in every for value in one[name]] for name in every[0]}
    means = {name: round(sum(values) / len(values), 3) for name, values in costs.items() if values}
    draws = [torch.stack([gap.draws for gap in some]).mean(dim=0) for some in met]
    return Difference(100 * torch.stack(draws), means)
