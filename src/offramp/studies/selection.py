"""What policies do at each threshold, the threshold that does what is asked, and what it does on other rows.

All thresholds of all policies are scored on the rows that choose (`options`), one is picked for what is asked (`pick`),
and other rows say what it does (`read`).
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
from offramp.model.flops import macs, plain_macs
from offramp.policies.registry import load_policy
from offramp.policies.replay import finite_outputs, replay, run_policy
from offramp.studies.spec import Budget, LayersSaved, MacsReduced, SpeedupBetween
from offramp.studies.training_runs import Trained
from offramp.types.outputs import ExitOutput
from offramp.types.trace import Trace, labels_of

NEAR = 0.02
"""Policies that come as near to what is asked for, in share of the cost, are as good: the score decides."""
FAR = 0.125
"""What is farther from what is asked for, in share of the cost, is no answer."""

Figures = dict[str, float]
"""score, mean_exit, saving, speedup; relative (1 = as good as the plain model), where that scores above 0; macs_ratio,
where it is asked for."""


@dataclass(frozen=True)
class EvaluationSplit:
    """Some rows of a model, and what it costs to leave.

    Attributes:
        trace: (L, N, C).
        depth: layers of the plain model.
        metrics: the score is their mean.
        macs: (L, N) multiply-accumulates of who leaves at an exit; None = nobody asks.
        plain_macs: (N,) those of the plain model.
    """

    trace: Trace
    depth: int
    metrics: tuple[str | None, ...] = (None,)
    macs: Tensor | None = None
    plain_macs: Tensor | None = None

    def layers(self) -> Tensor:
        """(L, N) the layer at which a row would leave."""
        return torch.tensor(self.trace.layer_numbers, dtype=torch.float64).view(-1, 1).expand(-1, len(self.trace))

    def spent(self) -> Tensor:
        """(L, N, 2) layers and multiply-accumulates; the second are 0 where nobody asks."""
        layers = self.layers()
        return torch.stack((layers, torch.zeros_like(layers) if self.macs is None else self.macs), dim=-1)

    def value(self, logits: Tensor) -> float:
        """The score of answers, logits (N, C)."""
        out, labels = ExitOutput(logits, problem_type=self.trace.problem_type), labels_of(self.trace)
        found = [score(metric_for(self.trace, metric)[1], out, labels).item() for metric in self.metrics]
        return sum(found) / len(found)

    def exits(self) -> list[float]:
        """The score of every exit."""
        each = torch.tensor([layerwise(self.trace, metric) for metric in self.metrics], dtype=torch.float64)  # (M, L)
        return each.mean(dim=0).tolist()

    def told(self, value: float, layers: float, spent_macs: float) -> Figures:
        """A score, and sums of layers and of multiply-accumulates over the rows, as figures."""
        mean_exit = layers / len(self.trace)
        found = {
            "score": value,
            "mean_exit": mean_exit,
            "saving": 1 - mean_exit / self.depth,
            "speedup": self.depth / mean_exit,
        }
        if self.plain_macs is not None:
            found["macs_ratio"] = self.plain_macs.sum().item() / spent_macs
        return found


@dataclass(frozen=True)
class Candidate:
    """One threshold of one policy, and what it does on the rows that choose."""

    policy: Mapping[str, Any]
    threshold: float
    figures: Figures

    def to_json(self) -> dict[str, Any]:
        """Plain data; never is written as a word."""
        threshold = "never" if self.threshold == math.inf else self.threshold
        return {"policy": dict(self.policy), "threshold": threshold, "figures": self.figures}


@dataclass(frozen=True)
class SplitTraces:
    """A trained model: the rows that choose, and those that are reported."""

    chooses: EvaluationSplit
    reports: EvaluationSplit


@dataclass(frozen=True)
class Selected:
    """What a system did at one ask with one seed.

    Attributes:
        option: what was picked; None = nothing to be picked, the last exit answers.
        figures: on the rows reported.
    """

    option: Candidate | None
    figures: Figures

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"option": self.option and self.option.to_json(), "figures": self.figures}


def halves(trace: Trace) -> tuple[Trace, Trace]:
    """Two halves of the rows, drawn at random, the same ones each time.

    Raises:
        InvalidInput: fewer than two rows.
    """
    if len(trace) < 2:
        raise InvalidInput(f"{len(trace)} rows cannot both choose thresholds and report: give a test set")
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(0))
    return trace.take(order[: len(order) // 2]), trace.take(order[len(order) // 2 :])


def model_of(trained: Trained, plain: Trained, metrics: tuple[str | None, ...], priced: bool) -> SplitTraces:
    """A training run as rows that choose and rows that report: validation and test, or halves of validation.

    Args:
        trained: the run.
        plain: the run of the plain model.
        metrics: the score is their mean.
        priced: whether to count multiply-accumulates.
    """
    depth = trained_depth(plain)

    def part(trace: Trace) -> EvaluationSplit:
        if not priced or trace.tokens is None:
            return EvaluationSplit(trace, depth, metrics)
        costs = macs(trained.config, trace.tokens), plain_macs(plain.config, trace.tokens)
        return EvaluationSplit(trace, depth, metrics, *costs)

    traces = trained.traces
    both = (traces["validation"], traces["test"]) if "test" in traces else halves(traces["validation"])
    return SplitTraces(*map(part, both))


def trained_depth(trained: Trained) -> int:
    """Layers of a trained model."""
    return next(iter(trained.traces.values())).layer_numbers[-1]


def candidates(part: EvaluationSplit, policies: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Every threshold of every policy on some rows, each policy's from strictest to loosest.

    But not patience 0, which is no patience: everybody leaves at the first exit.
    """
    found = []
    for data in policies:
        seen, logits = finite_outputs(part.trace, load_policy(data))  # (L, N), (L, N, C)
        out, labels = ExitOutput(logits, problem_type=part.trace.problem_type), labels_of(part.trace)
        metrics = [metric_for(part.trace, metric)[1] for metric in part.metrics]
        statistics = [metric.statistics(out, labels) for metric in metrics]
        swept = sweep(seen, torch.cat((part.spent(), *statistics), dim=-1))
        sums = torch.split(swept.statistics[:, 2:], [each.shape[-1] for each in statistics], dim=-1)
        values = torch.stack(
            [metric.value(each, len(part.trace)) for metric, each in zip(metrics, sums, strict=True)]
        ).mean(dim=0)  # (K,)
        rows = zip(swept.thresholds.tolist(), values.tolist(), swept.statistics[:, :2].tolist(), strict=True)
        found += [
            Candidate(data, threshold, part.told(value, *spent))
            for threshold, value, spent in rows
            if threshold > 0 or data["name"] != "patience"
        ]
    return found


def select(ask: Budget, found: Sequence[Candidate], plain_score: float) -> Candidate | None:
    """The option that does what is asked; None where there is none.

    Args:
        ask: what is asked.
        found: as `options` gives them.
        plain_score: of the plain model on the same rows.
    """
    if isinstance(ask, LayersSaved):
        return _nearest(found, lambda option: abs(option.figures["saving"] - ask.share))
    if isinstance(ask, MacsReduced):  # distance in share of the cost
        return _nearest(found, lambda option: abs(1 / option.figures["macs_ratio"] - 1 / ask.times))
    if isinstance(ask, SpeedupBetween):
        fits = [option for option in found if ask.least <= option.figures["speedup"] <= ask.most]
    else:
        fits = _keeping(found, ask.share * plain_score)
        return max(fits, key=lambda option: option.figures["saving"], default=None)
    return max(fits, key=lambda option: (option.figures["score"], option.figures["saving"]), default=None)


def _nearest(found: Sequence[Candidate], distance: Callable[[Candidate], float]) -> Candidate | None:
    """Of each policy the nearest option; of those about as near the one that scores best, if it is not far."""
    nearest: dict[str, Candidate] = {}
    for option in found:
        name = str(option.policy)
        if name not in nearest or distance(option) < distance(nearest[name]):
            nearest[name] = option
    least = min(map(distance, nearest.values()))
    near = [option for option in nearest.values() if distance(option) <= least + NEAR]
    best = max(near, key=lambda option: option.figures["score"])
    return best if distance(best) <= FAR else None


def _keeping(found: Sequence[Candidate], wanted: float) -> list[Candidate]:
    """The options of each policy before the first that scores less than wanted."""
    good: list[Candidate] = []
    failed: set[str] = set()
    for option in found:
        if option.figures["score"] < wanted - 1e-12:
            failed.add(str(option.policy))
        elif str(option.policy) not in failed:
            good.append(option)
    return good


def evaluate(part: EvaluationSplit, option: Candidate | None, plain_score: float) -> Figures:
    """What an option does on some rows; None is the last exit."""
    policy, threshold = (option.policy, option.threshold) if option else ({"name": "fixed"}, math.inf)
    answers = replay(part.trace, policy, threshold)
    if answers.failed.any():
        raise InvalidInput(f"{int(answers.failed.sum())} of {len(part.trace)} samples have no finite answer")
    at = torch.searchsorted(torch.tensor(part.trace.layer_numbers), answers.exit_layers)  # (N,)
    layers, spent = part.spent().gather(0, at.view(1, -1, 1).expand(1, -1, 2))[0].sum(dim=0).tolist()
    value = part.value(answers.logits)
    relative = {"relative": value / plain_score} if plain_score > 0 else {}
    return {**part.told(value, layers, spent), **relative}


def quality_loss(trace: Trace, option: Candidate) -> float:
    """Share of the rows that are answered wrong where the last exit is right."""
    policy = load_policy(option.policy)
    loss, _ = losses(trace, run_policy(policy, trace)[1], "quality")  # (L, N)
    layers = replay(trace, policy, option.threshold).exit_layers
    at = torch.searchsorted(torch.tensor(trace.layer_numbers), layers)
    return loss.gather(0, at.unsqueeze(0)).double().mean().item()
