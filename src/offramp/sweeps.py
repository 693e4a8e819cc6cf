"""Which threshold, which policy? All of them on one trace, with intervals, in seconds.

Every policy is swept exactly (`offramp.thresholds`), read at evenly spread mean exits, and bootstrapped over samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluate import labels_of, layerwise, metric_for
from offramp.policies.base import Policy
from offramp.policies.fitting import fit_lines, fit_policy, halves
from offramp.policies.replay import replay
from offramp.registry import FITTED, POLICIES, load_policy
from offramp.thresholds import Curve, at_exits, checked, sweep
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace

POINTS = 200
RESAMPLES = 200
SURE = 0.95


@dataclass(frozen=True)
class Band:
    """Speed against quality with intervals, (K,) each, from full depth to the first exit.

    Attributes:
        thresholds: falling; the first is inf.
        mean_exits: mean exit layer, falling.
        scores: in the metric's unit.
        low: lower end of each score's interval, at this threshold, over draws of samples.
        high: upper end.
    """

    thresholds: Tensor
    mean_exits: Tensor
    scores: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Comparison:
    """Every policy on the same rows.

    Attributes:
        metric: its name; "agreement" where there are no labels, and the full model's answers stand in for them.
        trace: the rows that were compared on, with labels.
        policies: by name.
        bands: of each policy.
        oracle: see `oracle`; None for regression.
    """

    metric: str
    trace: Trace
    policies: dict[str, Policy]
    bands: dict[str, Band]
    oracle: Curve | None

    @property
    def limits(self) -> tuple[float, float]:
        """The mean exits that every policy reaches, the same for all areas."""
        return max(band.mean_exits[-1].item() for band in self.bands.values()), float(self.trace.layer_numbers[-1])


def compare(trace: Trace, metric: str | None = None, seed: int = 0) -> Comparison:
    """Every policy that has a meaning for a trace, on a half of its rows on which nothing was fitted.

    Args:
        trace: without labels the score is agreement with the full model; for regression its correlation with it.
        metric: a name of `offramp.evaluate.METRICS`; None = the usual one.
        seed: of the halves and of the resamples.

    Raises:
        InvalidInput: fewer than two rows; a single exit; samples whose scores or logits are not finite.
        NotApplicable: the metric has no meaning for this kind of problem.
    """
    name, _ = metric_for(trace, metric)
    policies, rows = comparison(trace, seed)
    if rows.labels is None:
        name, rows = "agreement" if name == "accuracy" else f"{name} with the full model", against_full(rows)
    bands = {each: band(rows, policy, metric, seed=seed) for each, policy in policies.items()}
    return Comparison(name, rows, policies, bands, None if rows.problem_type == REGRESSION else oracle(rows, metric))


def comparison(trace: Trace, seed: int = 0) -> tuple[dict[str, Policy], Trace]:
    """Every policy of the table that has a meaning for a trace, with its usual parameters, and the rows to compare on.

    And margin with a threshold for each exit. Consistency, gain and what that needs are fitted on a random half of the
    rows; the other half is for all. Gain needs labels.

    Raises:
        InvalidInput: fewer than two rows; rows whose logits are not finite.
    """
    ours, rest = halves(trace, seed)
    found: dict[str, Policy] = {}
    for name in POLICIES:
        if name == "gain" and trace.labels is None:
            continue
        try:
            policy = fit_policy(name, ours) if name in FITTED else load_policy(name)
            policy.step(0, rest.exit(0), ())
        except NotApplicable:
            continue
        found[name] = policy
    if "margin" in found:
        found["margin, per exit"] = load_policy("margin", **fit_lines("margin", ours))
    return found, rest


def against_full(trace: Trace) -> Trace:
    """The trace with the full model's answers as labels: accuracy is then agreement."""
    last = trace.exit(trace.depth - 1)
    given = last.logits if trace.problem_type == REGRESSION else predictions(last)
    return replace(trace, labels=given.squeeze(-1) if trace.problem_type == SINGLE_LABEL else given)


def band(
    trace: Trace,
    policy: Policy,
    metric: str | None = None,
    *,
    points: int = POINTS,
    resamples: int = RESAMPLES,
    confidence: float = SURE,
    seed: int = 0,
) -> Band:
    """Mean exit layer and score at thresholds spread evenly over the mean exits, with intervals.

    Percentile bootstrap over samples: a resample is how often each sample is there, and the score at a threshold is of
    weighted sums. From one threshold to the next only the samples that leave elsewhere change their part, so all
    thresholds together cost about as much as the samples have exits. The mean exit is taken as it is.

    Args:
        trace: with labels.
        policy: scores the exits.
        metric: a name of `offramp.evaluate.METRICS`; None = the usual one.
        points: at most so many thresholds; fewer where there are fewer.
        resamples: of N samples with replacement; the same ones for every policy.
        confidence: of the interval, above 0, below 1.
        seed: of the resamples.

    Raises:
        InvalidInput: no labels; a single exit; samples whose scores or logits are not finite.
        NotApplicable: policy or metric have no meaning for this kind of problem.
    """
    _, found = metric_for(trace, metric)
    labels = labels_of(trace)
    score, logits = checked(trace, policy)
    swept = sweep(score, at_exits(trace, trace.layer_numbers))
    mean_exits = swept.statistics[:, 0] / len(trace)
    wanted = torch.linspace(mean_exits[0].item(), mean_exits[-1].item(), points, dtype=torch.float64)
    chosen = torch.unique(torch.searchsorted(-mean_exits, -wanted).clamp(max=len(mean_exits) - 1))
    thresholds = swept.thresholds[chosen]
    reached = score[:-1].cummax(dim=0).values  # (L-1, N)
    exits = torch.stack([(reached < threshold).sum(dim=0) for threshold in thresholds])  # (K, N)
    times = _times(len(trace), resamples, seed)
    if found.resampled is None:
        statistics = found.statistics(ExitOutput(logits, problem_type=trace.problem_type), labels)
        sums = _summed(statistics, exits, times)
    else:
        rows, summed = torch.arange(len(trace)), found.resampled(labels, times)
        sums = (summed(ExitOutput(logits[now, rows], problem_type=trace.problem_type)) for now in exits)
    seen = torch.stack([found.value(each, len(trace)) for each in sums])  # (K, 1 + R)
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = seen[:, 1:].quantile(tails, dim=-1)
    return Band(thresholds, mean_exits[chosen], seen[:, 0], low, high)


def _times(samples: int, resamples: int, seed: int) -> Tensor:
    """(N, 1 + R) how often each sample is there: once, then as drawn."""
    drawn = torch.randint(samples, (samples, resamples), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(samples, resamples, dtype=torch.float64)
    times.scatter_add_(0, drawn, torch.ones_like(times))
    return torch.cat((torch.ones(samples, 1, dtype=torch.float64), times), dim=-1)


def _summed(statistics: Tensor, exits: Tensor, times: Tensor) -> Iterator[Tensor]:
    """Sums (1 + R, S) of statistics (L, N, S), with so many of each sample (N, 1 + R), for each row of exits (K, N)."""
    sums = times.T @ statistics[exits[0], torch.arange(exits.shape[1])]
    yield sums
    for before, now in pairwise(exits):
        moved = (before != now).nonzero().squeeze(-1)
        sums = sums + times[moved].T @ (statistics[now[moved], moved] - statistics[before[moved], moved])
        yield sums


def oracle(trace: Trace, metric: str | None = None) -> Curve:
    """The bound: who knows beforehand which exits are right of which sample.

    With k exits to look at, whoever is right at one of them leaves at the first that is, everybody else at the first
    exit of all, since going on would help nobody. No policy has a better accuracy at the same mean exit. The samples
    that are right nowhere cost one exit here; Kaya et al. ("Shallow-Deep Networks", ICML 2019) let them run through.

    Args:
        trace: with labels.
        metric: what is told of these choices; they are the best for accuracy.

    Returns:
        (L + 1,) points; `thresholds` are the layers looked at. The first point, inf, is level with the second: beyond
        it nothing can be won.

    Raises:
        InvalidInput: no labels.
        NotApplicable: a regression has neither right nor wrong.
    """
    _, found = metric_for(trace, metric)
    if trace.problem_type == REGRESSION:
        raise NotApplicable("an oracle knows who is right, and in a regression nobody is")
    out, labels = ExitOutput(trace.logits, problem_type=trace.problem_type), labels_of(trace)
    right = (predictions(out) == labels.long().view(len(trace), -1)).all(dim=-1)  # (L, N)
    first, ever = right.to(torch.uint8).argmax(dim=0), right.any(dim=0)  # (N,)
    statistics = torch.cat(
        (at_exits(trace, trace.layer_numbers), found.statistics(out, labels)), dim=-1
    )  # (L, N, 1 + S)
    number, rows = torch.arange(trace.depth).flip(0).unsqueeze(-1), torch.arange(len(trace))
    leave = torch.where(ever & (first <= number), first, 0)  # (L, N)
    sums = statistics[leave, rows].sum(dim=1)  # (L, 1 + S)
    mean_exits, scores = sums[:, 0] / len(trace), found.value(sums[:, 1:], len(trace))
    ends = torch.tensor([[float("inf"), trace.layer_numbers[-1]]], dtype=torch.float64).unbind(dim=-1)
    return Curve(
        torch.cat((ends[0], torch.tensor(trace.layer_numbers[::-1], dtype=torch.float64))),
        torch.cat((ends[1], mean_exits)),
        torch.cat((scores[:1], scores)),
    )


# --- what exits say in numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A score over the exits, everybody leaving at one of them: S-avg, S-best and S-std of BADGE and PCEE-BERT.

    Attributes:
        average: mean over the L exits.
        best: of the L exits.
        deviation: standard deviation over the L exits, all there are (not a sample of them).
    """

    average: float
    best: float
    deviation: float


def spread(trace: Trace, metric: str | None = None) -> Spread:
    """How a score is spread over the exits.

    Raises:
        InvalidInput: no labels.
    """
    each = torch.tensor(layerwise(trace, metric), dtype=torch.float64)
    return Spread(each.mean().item(), each.max().item(), each.std(correction=0).item())


def histogram(trace: Trace, policy: Policy, thresholds: float | Sequence[float] | Tensor) -> dict[int, int]:
    """How many samples leave at each layer that has an exit."""
    left = replay(trace, policy, thresholds).exit_layers
    return {layer: int((left == layer).sum()) for layer in trace.layer_numbers}


def relative(scores: Tensor, full: float) -> Tensor:
    """Scores in percent of the full model's, as BERxiT tells them.

    Raises:
        InvalidInput: the full model's score is not above 0.
    """
    if full <= 0:
        raise InvalidInput(f"the full model scores {full:.4g}: not above 0, so nothing can be told in percent of it")
    return 100 * scores / full
