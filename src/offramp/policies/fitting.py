"""Numbers of a policy that come from a trace: weights, temperatures. Seconds, and no model.

Rows that fitted something are not the rows to choose a threshold on, nor to certify one, so what was fitted bears their
hashes (`offramp.types.trace`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy
from offramp.policies.consistency import Consistency, Gain, features
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.registry import FITTED, load_policy
from offramp.policies.replay import run_policy
from offramp.types.outputs import ExitOutput, class_log_probs, predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, labels_of, row_hashes

PENALTY = 1.0  # of the squared weights of standardised features, as scikit-learn's C = 1
FLATTEST = 1e-3  # an exit's line rises at least so much, also where its score tells nothing
NARROWEST = 0.01  # a feature that varies less is not blown up: rounding would grow with it
TEMPERATURES = (0.05, 20.0)  # searched between these


def halves(trace: Trace, seed: int = 0) -> tuple[Trace, Trace]:
    """Two random halves of the rows: one to fit on, one to choose or compare on.

    Raises:
        InvalidInput: fewer than two rows.
    """
    if len(trace) < 2:
        raise InvalidInput("one row cannot be halved, and rows that fit choose no threshold and compare no policies")
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    ours, rest = (trace.take(rows) for rows in order.tensor_split(2))
    return ours, rest


def fit_default_policy(trace: Trace) -> tuple[Policy, Trace]:
    """The policy where none is asked for, with its numbers, and the rows that are left to choose a threshold on.

    For classes margin with a threshold for each exit, and all rows; for values consistency, fitted on a random half of
    the rows, and the other half.

    Raises:
        InvalidInput: rows whose logits are not finite; a single one, for values.
    """
    if trace.problem_type == REGRESSION:
        ours, rest = halves(trace)
        return fit_policy("consistency", ours), rest
    return load_policy("margin", **fit_lines("margin", trace)), trace


def fit_policy(name: str, trace: Trace) -> Policy:
    """A policy with numbers that are fitted on a trace.

    Args:
        name: "consistency", which needs no labels, or "gain", which does.
        trace: a full-depth pass over rows that are neither trained on, nor chosen, certified or reported on.

    Raises:
        InvalidInput: another policy; rows whose logits are not finite; no labels for "gain".
        NotApplicable: gain of a regression.
    """
    if name not in FITTED:
        raise InvalidInput(f"{name!r} is not fitted on a trace; those are: {', '.join(FITTED)}")
    _refuse_broken(trace)
    if name == "gain" and trace.problem_type == REGRESSION:
        raise NotApplicable("gain tells right from wrong, and a regression has neither; it has: consistency")
    memory: Memory = ()
    weights = []
    for number in range(trace.depth):
        seen, memory = features(trace.exit(number), memory)
        table = torch.stack(seen, dim=-1).double()  # (N, F)
        spread = table.std(dim=0, correction=0).clamp(min=NARROWEST)
        middle = table.mean(dim=0)
        fitted = _fitted((table - middle) / spread, _fit_targets(name, trace, number))
        slopes = fitted[1:] / spread
        weights.append((float(fitted[0] - slopes @ middle), *slopes.tolist()))
    found = Consistency if name == "consistency" else Gain
    return found(tuple(weights), _rows(trace))


def fit_temperatures(trace: Trace) -> dict[str, Any]:
    """For each exit the temperature with the least negative log-likelihood: `load_policy("margin", **this)`.

    The likelihood is unimodal in the temperature, so cutting an interval finds its peak (Guo et al., ICML 2017).

    Args:
        trace: with labels, of rows that are neither trained on, nor chosen, certified or reported on.

    Returns:
        `temperatures`, L numbers from 0.05 to 20, and `fitted_on`, the hashes of the rows.

    Raises:
        InvalidInput: no labels; rows whose logits are not finite.
        NotApplicable: a regression has no probabilities.
    """
    _refuse_broken(trace)
    low, high = (torch.full((trace.depth,), math.log(end), dtype=torch.float64) for end in TEMPERATURES)
    for _ in range(40):  # each leaves two thirds of the interval
        third = (high - low) / 3
        lower = _negative_log_likelihood(trace, low + third) < _negative_log_likelihood(trace, high - third)
        low, high = torch.where(lower, low, low + third), torch.where(lower, high - third, high)
    found = ((low + high) / 2).exp().tolist()
    return {
        "temperatures": tuple(round(value, 4) for value in found),
        "fitted_on": _rows(trace),
    }


def fit_lines(policy: Policy | str, trace: Trace) -> dict[str, Any]:
    """Lines that put a policy's scores on one scale: `load_policy("margin", **this)`; see `policies/exit_scaling.py`.

    Args:
        policy: has a score in 0..1.
        trace: labels are not used. Two numbers an exit are little to fit, so that the rows may be those on which a
            threshold is chosen, but not those on which one is certified.

    Returns:
        `lines`, a constant and a slope for each exit, and `fitted_on`, the hashes of the rows.

    Raises:
        InvalidInput: rows whose logits are not finite; a policy with another kind of score.
        NotApplicable: a regression, whose exits never agree.
    """
    _refuse_broken(trace)
    rule = ExitScaled(policy if isinstance(policy, Policy) else load_policy(policy), ((0.0, 1.0),) * trace.depth)
    odds, logits = (each.double() for each in run_policy(rule, trace))  # (L, N), (L, N, C)
    given = predictions(ExitOutput(logits.float(), problem_type=trace.problem_type))  # (L, N, G)
    same = (given == given[-1]).all(dim=-1)
    lines = []
    for here, agrees in zip(odds, same, strict=True):
        middle, spread = here.mean(), here.std(correction=0).clamp(min=NARROWEST)
        constant, slope = _fitted(((here - middle) / spread).unsqueeze(-1), agrees).tolist()
        slope = max(slope / spread.item(), FLATTEST)
        lines.append((constant - slope * middle.item(), slope))
    return {"lines": tuple(lines), "fitted_on": _rows(trace)}


def _refuse_broken(trace: Trace) -> None:
    if broken := int((~trace.logits.isfinite()).any(dim=-1).any(dim=0).sum()):
        raise InvalidInput(f"{broken} of {len(trace)} samples have logits that are not finite; leave them out first")


def _rows(trace: Trace) -> tuple[str, ...]:
    return tuple(sorted(set(row_hashes(trace))))


def _fit_targets(name: str, trace: Trace, number: int) -> Tensor:
    """What is to be foretold of each sample at an exit, (N,): bool for a chance, else a number."""
    out, last = trace.exit(number), trace.exit(trace.depth - 1)
    if trace.problem_type == REGRESSION:
        return -(out.logits - last.logits).abs().amax(dim=-1)
    if name == "consistency":
        return (predictions(out) == predictions(last)).all(dim=-1)
    labels = labels_of(trace).long().view(len(trace), -1)  # (N, G)
    wrong, mended = (predictions(out) != labels).any(dim=-1), (predictions(last) == labels).all(dim=-1)
    return ~(wrong & mended)


def _fitted(table: Tensor, wanted: Tensor) -> Tensor:
    """A constant and weights (1 + F,) for standardised features (N, F): logistic for bool, else least squares."""
    table = torch.cat((torch.ones_like(table[:, :1]), table), dim=-1)
    penalty = torch.full_like(table[0], PENALTY).index_fill(0, torch.tensor(0), 1e-6).diag()  # spares the constant
    if wanted.dtype != torch.bool:
        squares: Tensor = torch.linalg.solve(table.T @ table + penalty, table.T @ wanted.double())
        return squares
    yes, no = wanted.sum(), (~wanted).sum()
    target = torch.where(wanted, (yes + 1) / (yes + 2), 1 / (no + 2)).double()  # Platt's: never quite sure

    def loss(weights: Tensor) -> Tensor:
        weighed = table @ weights
        return (torch.nn.functional.softplus(weighed) - target * weighed).sum() + weights @ penalty @ weights / 2

    weights = torch.zeros_like(table[0])
    for _ in range(100):  # Newton's method; the loss is convex
        chance = (table @ weights).sigmoid()
        slope = table.T @ (chance - target) + penalty @ weights
        step = torch.linalg.solve((table.T * (chance * (1 - chance))) @ table + penalty, slope)
        while loss(weights - step) > loss(weights) and step.abs().max() > 1e-10:
            step = step / 2
        weights = weights - step
        if step.abs().max() < 1e-8:
            break
    return weights


def _negative_log_likelihood(trace: Trace, log_temperatures: Tensor) -> Tensor:
    """Mean negative log-likelihood of the labels at each exit, (L,), at these temperatures (L,)."""
    logits = trace.logits.double() / log_temperatures.exp().view(-1, 1, 1)
    log_p = class_log_probs(ExitOutput(logits.float(), problem_type=trace.problem_type))  # (L, N, G, K)
    labels = labels_of(trace).long().view(1, len(trace), -1, 1).expand(trace.depth, -1, -1, -1)
    return -log_p.gather(-1, labels).double().mean(dim=(1, 2, 3))
