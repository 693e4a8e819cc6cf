"""Thresholds chosen on some rows of a trained model and evaluated on others.

traces = split_traces(trained, plain, metrics, with_macs)
candidate = select(budget, candidates(traces.selection, policies), plain_score)
result = Selected(candidate, evaluate(traces.test, candidate, plain_test_score))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.calibration.certify import losses
from offramp.errors import InvalidInput
from offramp.evaluation.metrics import layerwise, metric_for, score
from offramp.evaluation.sweep import sweep
from offramp.model.flops import encoder_macs, plain_macs
from offramp.policies.registry import load_policy
from offramp.policies.replay import finite_outputs, replay, run_policy
from offramp.studies.spec import Budget, LayersSaved, MacsReduced, SpeedupBetween
from offramp.studies.training_runs import Trained
from offramp.types.outputs import ExitOutput
from offramp.types.trace import Trace, labels_of

NEAR = 0.02
"""Policies whose distances from the budget differ by less, in share of the cost, are ranked by their score."""
FAR = 0.125
"""The largest distance from the budget, in share of the cost, that still meets it."""

Figures = dict[str, float]
"""score, mean_exit, saving, speedup; relative (1 = the plain model's score), where the plain model scores above 0;
macs_ratio, where multiply-accumulates are counted."""


@dataclass(frozen=True)
class EvaluationSplit:
    """Rows of a trained model with the cost of each exit.

    Attributes:
        trace: (L, N, C).
        depth: layers of the plain model.
        metrics: the score is their mean.
        macs: (L, N) multiply-accumulates of a row that leaves at an exit; None = not counted.
        plain_macs: (N,) those of the plain model.
    """

    trace: Trace
    depth: int
    metrics: tuple[str | None, ...] = (None,)
    macs: Tensor | None = None
    plain_macs: Tensor | None = None

    def costs(self) -> Tensor:
        """Return layers and multiply-accumulates of every exit, (L, N, 2); the second are 0 where not counted."""
        layers = torch.tensor(self.trace.layer_numbers, dtype=torch.float64).view(-1, 1).expand(-1, len(self.trace))
        return torch.stack((layers, torch.zeros_like(layers) if self.macs is None else self.macs), dim=-1)

    def score(self, logits: Tensor) -> float:
        """Score answers, logits (N, C)."""
        out, labels = ExitOutput(logits, problem_type=self.trace.problem_type), labels_of(self.trace)
        values = [score(metric_for(self.trace, metric)[1], out, labels).item() for metric in self.metrics]
        return sum(values) / len(values)

    def exit_scores(self) -> list[float]:
        """Return the score of every exit, shallowest first."""
        values = torch.tensor([layerwise(self.trace, metric) for metric in self.metrics], dtype=torch.float64)  # (M, L)
        return values.mean(dim=0).tolist()

    def figures(self, score: float, layers: float, macs: float) -> Figures:
        """Return a score and sums of layers and of multiply-accumulates over the rows as figures."""
        mean_exit = layers / len(self.trace)
        figures = {
            "score": score,
            "mean_exit": mean_exit,
            "saving": 1 - mean_exit / self.depth,
            "speedup": self.depth / mean_exit,
        }
        if self.plain_macs is not None:
            figures["macs_ratio"] = self.plain_macs.sum().item() / macs
        return figures


@dataclass(frozen=True)
class Candidate:
    """A threshold of a policy, with its figures on the selection rows."""

    policy: Mapping[str, Any]
    threshold: float
    figures: Figures

    def to_json(self) -> dict[str, Any]:
        """Return plain data; an infinite threshold is written as "never"."""
        threshold = "never" if self.threshold == math.inf else self.threshold
        return {"policy": dict(self.policy), "threshold": threshold, "figures": self.figures}


@dataclass(frozen=True)
class SplitTraces:
    """A trained model's rows: those that choose thresholds, and those that are reported."""

    selection: EvaluationSplit
    test: EvaluationSplit


@dataclass(frozen=True)
class Selected:
    """A system's result at one budget with one seed.

    Attributes:
        candidate: the threshold chosen; None = the system has no policy, the last exit answers.
        figures: on the test rows.
    """

    candidate: Candidate | None
    figures: Figures

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"option": self.candidate and self.candidate.to_json(), "figures": self.figures}


def alternate_halves(trace: Trace) -> tuple[Trace, Trace]:
    """Return two random halves of the rows, the same ones on every call.

    Of an odd number the second half has the odd row, in `offramp.policies.fitting.halves` the first: published figures
    depend on either.

    Raises:
        InvalidInput: fewer than two rows.
    """
    if len(trace) < 2:
        raise InvalidInput(f"{len(trace)} rows cannot both choose thresholds and report: give a test set")
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(0))
    return trace.take(order[: len(order) // 2]), trace.take(order[len(order) // 2 :])


def split_traces(trained: Trained, plain: Trained, metrics: tuple[str | None, ...], with_macs: bool) -> SplitTraces:
    """Split a training run's rows: validation and test where both are recorded, else halves of validation.

    Args:
        trained: the run.
        plain: the run of the plain model.
        metrics: the score is their mean.
        with_macs: whether to count multiply-accumulates.
    """
    depth = trained_depth(plain)

    def split(trace: Trace) -> EvaluationSplit:
        if not with_macs or trace.tokens is None:
            return EvaluationSplit(trace, depth, metrics)
        costs = encoder_macs(trained.config, trace.tokens), plain_macs(plain.config, trace.tokens)
        return EvaluationSplit(trace, depth, metrics, *costs)

    traces = trained.traces
    both = (traces["validation"], traces["test"]) if "test" in traces else alternate_halves(traces["validation"])
    return SplitTraces(*map(split, both))


def trained_depth(trained: Trained) -> int:
    """Return the number of layers of a trained model."""
    return next(iter(trained.traces.values())).layer_numbers[-1]


def candidates(split: EvaluationSplit, policies: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Return every threshold of every policy with its figures, each policy's from strictest to loosest.

    Patience 0 is left out: every row would leave at the first exit.
    """
    rows = []
    for policy in policies:
        scores, logits = finite_outputs(split.trace, load_policy(policy))  # (L, N), (L, N, C)
        out, labels = ExitOutput(logits, problem_type=split.trace.problem_type), labels_of(split.trace)
        metrics = [metric_for(split.trace, metric)[1] for metric in split.metrics]
        statistics = [metric.statistics(out, labels) for metric in metrics]
        swept = sweep(scores, torch.cat((split.costs(), *statistics), dim=-1))
        sums = torch.split(swept.statistics[:, 2:], [values.shape[-1] for values in statistics], dim=-1)
        values = torch.stack(
            [metric.value(total, len(split.trace)) for metric, total in zip(metrics, sums, strict=True)]
        ).mean(dim=0)  # (K,)
        points = zip(swept.thresholds.tolist(), values.tolist(), swept.statistics[:, :2].tolist(), strict=True)
        rows += [
            Candidate(policy, threshold, split.figures(value, *costs))
            for threshold, value, costs in points
            if threshold > 0 or policy["name"] != "patience"
        ]
    return rows


def select(budget: Budget, options: Sequence[Candidate], plain_score: float) -> Candidate | None:
    """Return the candidate that meets a budget; None where there is none.

    Args:
        budget: savings or score to reach.
        options: from `candidates`.
        plain_score: of the plain model on the same rows.
    """
    if isinstance(budget, LayersSaved):
        return _nearest(options, lambda option: abs(option.figures["saving"] - budget.share))
    if isinstance(budget, MacsReduced):  # distance in share of the cost
        return _nearest(options, lambda option: abs(1 / option.figures["macs_ratio"] - 1 / budget.times))
    if isinstance(budget, SpeedupBetween):
        within = [option for option in options if budget.least <= option.figures["speedup"] <= budget.most]
        return max(within, key=lambda option: (option.figures["score"], option.figures["saving"]), default=None)
    keeping = _keeping(options, budget.share * plain_score)
    return max(keeping, key=lambda option: option.figures["saving"], default=None)


def _nearest(options: Sequence[Candidate], distance: Callable[[Candidate], float]) -> Candidate | None:
    """Return the best score among each policy's nearest candidate, those within NEAR of the least distance.

    None where it is farther than FAR from the budget.
    """
    nearest: dict[str, Candidate] = {}
    for option in options:
        name = str(option.policy)
        if name not in nearest or distance(option) < distance(nearest[name]):
            nearest[name] = option
    least = min(map(distance, nearest.values()))
    near = [option for option in nearest.values() if distance(option) <= least + NEAR]
    best = max(near, key=lambda option: option.figures["score"])
    return best if distance(best) <= FAR else None


def _keeping(options: Sequence[Candidate], least_score: float) -> list[Candidate]:
    """Return the candidates of each policy before its first that scores less than `least_score`."""
    keeping: list[Candidate] = []
    failed: set[str] = set()
    for option in options:
        if option.figures["score"] < least_score - 1e-12:
            failed.add(str(option.policy))
        elif str(option.policy) not in failed:
            keeping.append(option)
    return keeping


def evaluate(split: EvaluationSplit, candidate: Candidate | None, plain_score: float) -> Figures:
    """Return a candidate's figures on some rows; None is the last exit.

    Args:
        split: the rows.
        candidate: a policy and its threshold.
        plain_score: the score on these rows that `relative` is a share of.
    """
    policy, threshold = (candidate.policy, candidate.threshold) if candidate else ({"name": "fixed"}, math.inf)
    answers = replay(split.trace, policy, threshold)
    if answers.failed.any():
        raise InvalidInput(f"{int(answers.failed.sum())} of {len(split.trace)} samples have no finite answer")
    exits = _exit_indices(split.trace, answers.exit_layers)
    layers, total_macs = split.costs().gather(0, exits.view(1, -1, 1).expand(1, -1, 2))[0].sum(dim=0).tolist()
    value = split.score(answers.logits)
    relative = {"relative": value / plain_score} if plain_score > 0 else {}
    return {**split.figures(value, layers, total_macs), **relative}


def quality_loss(trace: Trace, candidate: Candidate) -> float:
    """Return the share of the rows that are answered wrong where the last exit is right."""
    policy = load_policy(candidate.policy)
    loss, _ = losses(trace, run_policy(policy, trace)[1], "quality")  # (L, N)
    exits = _exit_indices(trace, replay(trace, policy, candidate.threshold).exit_layers)
    return loss.gather(0, exits.unsqueeze(0)).double().mean().item()


def _exit_indices(trace: Trace, exit_layers: Tensor) -> Tensor:
    """Return exit indices, 0-based, of layer numbers (N,)."""
    return torch.searchsorted(torch.tensor(trace.layer_numbers), exit_layers)
