"""Fit a policy's numbers on a trace: weights, temperatures, lines. It takes seconds and no model.

Rows that fitted something must not choose a threshold, nor certify one, so fitted numbers come with their hashes
(`offramp.types.trace`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy
from offramp.policies.consistency import Consistency, Gain, features
from offramp.policies.decision import refuse_broken
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.registry import FITTED, as_policy, load_policy
from offramp.policies.replay import run_policy
from offramp.types.outputs import ExitOutput, class_log_probs, predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, labels_of, row_hashes

PENALTY = 1.0  # on the squared weights of standardised features, as scikit-learn's C = 1
SMALLEST_SLOPE = 1e-3  # of an exit's line, also where its score predicts nothing
SMALLEST_SPREAD = 0.01  # a feature that varies less is not scaled up: rounding would grow with it
TEMPERATURES = (0.05, 20.0)  # the range that is searched


def halves(trace: Trace, seed: int = 0) -> tuple[Trace, Trace]:
    """Return two random halves of the rows: one to fit on, one to choose or compare on.

    Raises:
        InvalidInput: fewer than two rows.
    """
    if len(trace) < 2:
        raise InvalidInput("one row cannot be halved, and rows that fit choose no threshold and compare no policies")
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    fit_half, choose_half = (trace.take(rows) for rows in order.tensor_split(2))
    return fit_half, choose_half


def fit_default_policy(trace: Trace) -> tuple[Policy, Trace]:
    """Return the policy for a problem where none is named, fitted, and the rows that may choose its threshold.

    For classes: margin with a threshold for each exit, and all rows. For values: consistency, fitted on a random half
    of the rows, and the other half. A caller that cannot fit takes `offramp.policies.registry.default_unfitted_policy`.

    Raises:
        InvalidInput: rows whose logits are not finite; a single row, for values.
    """
    if trace.problem_type == REGRESSION:
        fit_half, choose_half = halves(trace)
        return fit_policy("consistency", fit_half), choose_half
    return load_policy("margin", **fit_lines("margin", trace)), trace


def fit_policy(name: str, trace: Trace) -> Policy:
    """Return a policy with weights that are fitted on a trace.

    Args:
        name: "consistency", which needs no labels, or "gain", which does.
        trace: a full-depth pass over rows that are neither trained on, nor chosen, certified or reported on.

    Raises:
        InvalidInput: another policy; rows whose logits are not finite; no labels for "gain".
        NotApplicable: gain of a regression.

    Example:
        >>> policy = offramp.fit_policy("consistency", trace)
        >>> len(policy.weights), len(policy.fitted_on)
        (4, 100)
    """
    if name not in FITTED:
        raise InvalidInput(f"{name!r} is not fitted on a trace; those are: {', '.join(FITTED)}")
    refuse_non_finite(trace)
    if name == "gain" and trace.problem_type == REGRESSION:
        raise NotApplicable("gain tells right from wrong, and a regression has neither; it has: consistency")
    memory: Memory = ()
    weights = []
    for exit in range(trace.depth):
        columns, memory = features(trace.exit(exit), memory)
        table = torch.stack(columns, dim=-1).double()  # (N, F)
        spread = table.std(dim=0, correction=0).clamp(min=SMALLEST_SPREAD)
        mean = table.mean(dim=0)
        fitted = _fit_weights((table - mean) / spread, _fit_targets(name, trace, exit))
        slopes = fitted[1:] / spread
        weights.append((float(fitted[0] - slopes @ mean), *slopes.tolist()))
    policy = Consistency if name == "consistency" else Gain
    return policy(tuple(weights), _sorted_hashes(trace))


def fit_temperatures(trace: Trace) -> dict[str, Any]:
    """Fit for each exit the temperature with the least negative log-likelihood: `load_policy("margin", **result)`.

    The likelihood is unimodal in the temperature, so ternary search finds its peak (Guo et al., ICML 2017).

    Args:
        trace: with labels, of rows that are neither trained on, nor chosen, certified or reported on.

    Returns:
        `temperatures`, L numbers from 0.05 to 20, and `fitted_on`, the hashes of the rows.

    Raises:
        InvalidInput: no labels; rows whose logits are not finite.
        NotApplicable: a regression has no probabilities.

    Example:
        >>> fitted = offramp.fit_temperatures(trace)
        >>> len(fitted["temperatures"])
        4
        >>> policy = offramp.load_policy("margin", **fitted)
    """
    refuse_non_finite(trace)
    low, high = (torch.full((trace.depth,), math.log(end), dtype=torch.float64) for end in TEMPERATURES)
    for _ in range(40):  # each round keeps two thirds of the interval
        third = (high - low) / 3
        lower = _negative_log_likelihood(trace, low + third) < _negative_log_likelihood(trace, high - third)
        low, high = torch.where(lower, low, low + third), torch.where(lower, high - third, high)
    temperatures = ((low + high) / 2).exp().tolist()
    return {
        "temperatures": tuple(round(value, 4) for value in temperatures),
        "fitted_on": _sorted_hashes(trace),
    }


def fit_lines(policy: Policy | str, trace: Trace) -> dict[str, Any]:
    """Fit lines that put a policy's scores on one scale: `load_policy("margin", **result)`.

    Args:
        policy: a policy with a score in 0..1, or its name; see `offramp.policies.exit_scaling`.
        trace: labels are not used. Two numbers an exit are little to fit, so that the rows may be those on which a
            threshold is chosen, but not those on which one is certified.

    Returns:
        `lines`, a constant and a slope for each exit, and `fitted_on`, the hashes of the rows.

    Raises:
        InvalidInput: rows whose logits are not finite; a policy with another kind of score.
        NotApplicable: a regression, whose exits never agree.

    Example:
        >>> fitted = offramp.fit_lines("margin", trace)
        >>> len(fitted["lines"])
        4
        >>> policy = offramp.load_policy("margin", **fitted)
    """
    refuse_non_finite(trace)
    unscaled = ExitScaled(as_policy(policy), ((0.0, 1.0),) * trace.depth)
    log_odds, logits = run_policy(unscaled, trace)  # (L, N), (L, N, C)
    answers = predictions(ExitOutput(logits, problem_type=trace.problem_type))  # (L, N, G)
    agrees = (answers == answers[-1]).all(dim=-1)  # (L, N)
    lines = []
    for odds, targets in zip(log_odds.double(), agrees, strict=True):
        mean, spread = odds.mean(), odds.std(correction=0).clamp(min=SMALLEST_SPREAD)
        constant, slope = _fit_weights(((odds - mean) / spread).unsqueeze(-1), targets).tolist()
        slope = max(slope / spread.item(), SMALLEST_SLOPE)
        lines.append((constant - slope * mean.item(), slope))
    return {"lines": tuple(lines), "fitted_on": _sorted_hashes(trace)}


def refuse_non_finite(trace: Trace) -> None:
    """Raise InvalidInput where a sample's logits are not finite at some exit: nothing can be fitted on it."""
    refuse_broken((~trace.logits.isfinite()).any(dim=-1).any(dim=0), "logits that are not finite")


def _sorted_hashes(trace: Trace) -> tuple[str, ...]:
    return tuple(sorted(set(row_hashes(trace))))


def _fit_targets(name: str, trace: Trace, exit: int) -> Tensor:
    """Return the prediction target of each sample at an exit, (N,): bool for a chance, else a number."""
    out, last = trace.exit(exit), trace.exit(trace.depth - 1)
    if trace.problem_type == REGRESSION:
        return -(out.logits - last.logits).abs().amax(dim=-1)
    if name == "consistency":
        return (predictions(out) == predictions(last)).all(dim=-1)
    labels = labels_of(trace).long().view(len(trace), -1)  # (N, G)
    wrong, last_right = (predictions(out) != labels).any(dim=-1), (predictions(last) == labels).all(dim=-1)
    return ~(wrong & last_right)


def _fit_weights(table: Tensor, targets: Tensor) -> Tensor:
    """Fit a constant and weights (1 + F,) on standardised features (N, F): logistic for bool, else least squares."""
    table = torch.cat((torch.ones_like(table[:, :1]), table), dim=-1)
    penalty = torch.full_like(table[0], PENALTY).index_fill(0, torch.tensor(0), 1e-6).diag()  # constant: almost none
    if targets.dtype == torch.bool:
        return _fit_logistic(table, targets, penalty)
    weights: Tensor = torch.linalg.solve(table.T @ table + penalty, table.T @ targets.double())
    return weights


def _fit_logistic(table: Tensor, targets: Tensor, penalty: Tensor) -> Tensor:
    """Fit weights (1 + F,) by Newton's method; the loss is convex."""
    yes, no = targets.sum(), (~targets).sum()
    smoothed = torch.where(targets, (yes + 1) / (yes + 2), 1 / (no + 2)).double()  # Platt's: never 0 or 1

    def loss(weights: Tensor) -> Tensor:
        logits = table @ weights
        return (torch.nn.functional.softplus(logits) - smoothed * logits).sum() + weights @ penalty @ weights / 2

    weights = torch.zeros_like(table[0])
    for _ in range(100):
        chance = (table @ weights).sigmoid()
        gradient = table.T @ (chance - smoothed) + penalty @ weights
        step = torch.linalg.solve((table.T * (chance * (1 - chance))) @ table + penalty, gradient)
        while loss(weights - step) > loss(weights) and step.abs().max() > 1e-10:
            step = step / 2
        weights = weights - step
        if step.abs().max() < 1e-8:
            break
    return weights


def _negative_log_likelihood(trace: Trace, log_temperatures: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the labels at each exit, (L,), at these temperatures (L,)."""
    logits = trace.logits.double() / log_temperatures.exp().view(-1, 1, 1)
    log_p = class_log_probs(ExitOutput(logits.float(), problem_type=trace.problem_type))  # (L, N, G, K)
    labels = labels_of(trace).long().view(1, len(trace), -1, 1).expand(trace.depth, -1, -1, -1)
    return -log_p.gather(-1, labels).double().mean(dim=(1, 2, 3))
