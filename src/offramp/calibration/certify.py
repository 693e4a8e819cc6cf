"""Thresholds with a guarantee: early exit loses at most a level, except for a share delta of the draws of rows.

Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk
Control", arXiv:2110.01052: thresholds are tested in an order that is fixed beforehand, from the strictest down, each at
the full delta; the first that fails ends the search (fixed-sequence testing).

All thresholds are tested: the splits of the sweep, whose positions depend on the scores of these rows. The guarantee
is not weaker for that, because they are tested in the order of the thresholds themselves. Let t* be the highest
threshold whose risk is above the level (if there is no highest, one of a sequence that climbs to their supremum). It
lies in one split, between two neighbouring scores or on the upper one. Within a split no row changes its exit, so the
losses there are those at t*, a fixed threshold, and they pass the test with probability delta at most. And t* or
anything looser is returned only if that split has passed. So every split must be tested, also where no float lies
between the scores; a search that skips some, or takes the loosest that passes anywhere, has no such guarantee.

The guarantee is for rows drawn like these, independently, and for one call: to certify k policies on the same rows and
keep the best, certify each at delta / k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from offramp.calibration.bounds import betting, binomial, conformal, hoeffding_bentkus
from offramp.calibration.exit_choice import ExitChoice
from offramp.calibration.label_thresholds import LabelThresholds
from offramp.calibration.lexical_rows import lexical_rows_text
from offramp.calibration.outputs import PolicyOutputs, loosest, policy_outputs
from offramp.errors import CannotReach, InvalidInput, NotApplicable, UnknownName
from offramp.evaluation.sweep import Sweep, all_splits, sweep
from offramp.policies.base import Policy
from offramp.policies.decision import continues
from offramp.policies.registry import as_policy, policy_to_dict
from offramp.types.operating_point import RISKS, Certificate, OperatingPoint, rows_text
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, labels_of, row_hashes, trace_digest

DEFAULT_METHOD = "binomial"
"""Exact for losses of 0 and 1, as those of all RISKS are; "hoeffding-bentkus" holds for any losses in 0..1."""
MAX_ROWS = 1 << 20
"""The largest number of rows that a certificate's note gives as needed."""


def certify(
    trace: Trace,
    policy: Policy | Mapping[str, Any] | str,
    risk: str = "quality",
    level: float = 0.01,
    delta: float = 0.05,
    method: str = DEFAULT_METHOD,
    label_thresholds: LabelThresholds | None = None,
    exits: ExitChoice | None = None,
) -> OperatingPoint:
    """Choose the loosest threshold that provably keeps a risk low: one for all exits, with `lines` one for each.

    The risk is a mean over rows. "quality": of 1[early answer wrong and full answer right], so accuracy falls by at
    most `level`. "agreement": of 1[early answer differs from the full answer]. "drop": as "quality", but over the
    rows alone that the full model answers right, so at least (1 - level) of its accuracy is kept. With several labels
    an answer is the whole set.

    Methods: "binomial" and "hoeffding-bentkus" count losses. Losses here are 0 or 1, for which the first is exact, and
    never stricter than the second, which holds for any losses in 0..1. "betting" reads the losses one by one. These
    three guarantee risk <= level with probability 1 - delta over the draw of the rows. "conformal" guarantees less: its
    mean over draws is at most `level`; a single draw may be above, and delta is not used.

    Args:
        trace: a full-depth pass over rows drawn like those to come, neither trained on nor used to choose the policy;
            labels for "quality" and "drop".
        policy: a policy, its name, or its data form.
        risk: a name of `offramp.types.operating_point.RISKS`.
        level: above 0, below 1.
        delta: above 0, below 1.
        method: a name of METHODS.
        label_thresholds: for several labels, chosen on other rows; an answer is the labels above them. None = 0.5.
        exits: those that the point reads, chosen on other rows (`offramp.calibration.exit_choice`); None = all.

    Returns:
        A point with a certificate. Where the rows do not suffice for any early exit its thresholds are "never", whose
        risk is 0, and the certificate's note names about how many rows would suffice.

    Raises:
        NotApplicable: a regression, or a policy that has no meaning for this kind of problem.
        UnknownName: no such risk or method.
        InvalidInput: level or delta out of range; no labels where they are needed; samples without a finite answer; a
            single exit; rows that the policy was fitted on, or that chose the label thresholds or the exits; more than
            5 % of the rows fitted the exit before the first layer.
        CannotReach: the policy's own answers at full depth are not the full model's, and lose too much; or the full
            model is right nowhere.

    Example:
        >>> point = offramp.certify(trace, "entropy", risk="agreement", level=0.2, delta=0.1)
        >>> point.certificate.describe()
        'certified with 0.9 confidence: at most 20% of the rows answered otherwise than by the full model (...)'
    """
    policy = as_policy(policy)
    refuse_fit_rows(trace, policy, label_thresholds, exits)
    trace = trace if exits is None else trace.select(exits.layers)
    check_certifiable(trace, risk, level, delta, method)
    return certified_point(policy_outputs(trace, policy, label_thresholds), risk, level, delta, method)


def certified_point(
    outputs: PolicyOutputs, risk: str, level: float, delta: float, method: str = DEFAULT_METHOD
) -> OperatingPoint:
    """Return `certify`'s operating point for a policy that has run over the trace; arguments and errors as there.

    Call `check_certifiable` before it.
    """
    trace, score, logits = outputs.trace, outputs.scores, outputs.logits
    loss, counted = losses(outputs.answers, logits, risk)
    if not counted.any():
        raise CannotReach(f"risk {risk!r} is over the full model's right answers, and there are none")
    threshold = METHODS[method](score, loss, counted, level, delta)
    same = torch.equal(logits[-1], outputs.answers.logits[-1])  # then "never" is the full model, whatever a test says
    if threshold is None and not same:
        raise CannotReach(
            f"not even full depth holds the level: there {outputs.policy} does not give the full model's answers"
        )
    threshold = math.inf if threshold is None else threshold
    full_depth = same and threshold == math.inf
    certificate = Certificate(
        risk=risk,
        level=level,
        delta=None if method == "conformal" else delta,
        bound=0.0 if full_depth else level,
        observed=lost_at(score, loss, threshold)[counted].double().mean().item(),
        rows=int(counted.sum()),
        method=method,
        engine=trace.provenance.get("engine"),
        data=trace_digest(trace),
        weights=trace.provenance.get("weights"),
        note=_note(score, loss, counted, level, delta, method) if full_depth else "",
    )
    target = {"level": level} if method == "conformal" else {"level": level, "delta": delta}
    return outputs.point(threshold, target, certificate=certificate)


def check_certifiable(trace: Trace, risk: str, level: float, delta: float, method: str = DEFAULT_METHOD) -> None:
    """Raise an error for arguments that cannot be certified; arguments and errors as of `certify`."""
    for kind, name, table in (("risk", risk, RISKS), ("method", method, METHODS)):
        if name not in table:
            raise UnknownName(f"unknown {kind} {name!r}; known: {', '.join(table)}")
    for name, value in (("level", level), ("delta", delta)):
        if not 0 < value < 1:
            raise InvalidInput(f"{name} must be between 0 and 1, got {value}")
    if trace.problem_type == REGRESSION:
        raise NotApplicable(
            "certify counts wrong answers and a regression has none; calibrate(..., Target(max_drop=...)) chooses a "
            "threshold for it, without a guarantee"
        )
    if text := lexical_rows_text(trace):
        raise InvalidInput(f"{text}; certify on rows that were not trained on")


def refuse_fit_rows(
    trace: Trace,
    policy: Policy,
    label_thresholds: LabelThresholds | None = None,
    exits: ExitChoice | None = None,
) -> None:
    """Raise InvalidInput if rows of the trace fitted the policy, or chose the label thresholds or the exits.

    Rows are known by their hashes, and equal texts have equal hashes. So this is for rows of unknown origin: halves of
    independent rows may share texts, and certify all the same.
    """
    if text := fit_rows_text(trace, policy, label_thresholds, exits):
        raise InvalidInput(f"{text} (offramp.types.trace.row_hashes); certify on others")


def fit_rows_text(
    trace: Trace,
    policy: Policy,
    label_thresholds: LabelThresholds | None = None,
    exits: ExitChoice | None = None,
    most: float = 0.0,
) -> str:
    """Say how many rows fitted the policy, or chose the label thresholds or the exits; empty up to the share `most`."""
    fitted_on = {"the policy was fitted on": _fitted_on(policy_to_dict(policy))}
    if label_thresholds is not None:
        fitted_on["the label thresholds were chosen on"] = set(label_thresholds.fitted_on)
    if exits is not None:
        fitted_on["the exits that are read were chosen on"] = set(exits.fitted_on)
    rows = row_hashes(trace) if any(fitted_on.values()) else ()
    for words, hashes in fitted_on.items():
        if (count := sum(row in hashes for row in rows)) > most * len(trace):
            return f"{words} {count} of these rows"
    return ""


def _fitted_on(policy: Mapping[str, Any]) -> set[str]:
    """Return the hashes of the rows that a policy, as data, or one inside it was fitted on."""
    inner = (_fitted_on(value) for value in policy.values() if isinstance(value, Mapping))
    return set(policy.get("fitted_on", ())).union(*inner)


def losses(trace: Trace, logits: Tensor, risk: str) -> tuple[Tensor, Tensor]:
    """Return the rows that an early exit loses.

    Args:
        trace: (L, N, C).
        logits: (L, N, C) a policy's answers at every exit.
        risk: a name of `offramp.types.operating_point.RISKS`.

    Returns:
        (L, N) bool: a row is lost if it leaves at that exit; (N,) bool: the rows whose mean is the risk. No other
        row is ever lost.

    Raises:
        InvalidInput: no labels where they are needed.
    """
    early = predictions(ExitOutput(logits, problem_type=trace.problem_type))  # (L, N, G)
    full = predictions(trace.exit(trace.depth - 1))  # (N, G)
    if risk == "agreement":
        return (early != full).any(dim=-1), torch.ones(len(trace), dtype=torch.bool)
    targets = labels_of(trace).long().view(len(trace), -1)  # (N, G)
    right = (full == targets).all(dim=-1)  # (N,)
    return right & (early != targets).any(dim=-1), right if risk == "drop" else torch.ones_like(right)


def lost_at(score: Tensor, loss: Tensor, threshold: float) -> Tensor:
    """Return the rows lost at one threshold, (N,) bool; scores (L, N), losses (L, N)."""
    leave = torch.cat((~continues(score[:-1], threshold), torch.ones_like(loss[-1:])))
    return loss.gather(0, leave.to(torch.uint8).argmax(dim=0, keepdim=True)).squeeze(0)


def _by_p_value(p_values: Callable[[int, float], Tensor]) -> Method:
    def threshold(score: Tensor, loss: Tensor, counted: Tensor, level: float, delta: float) -> float | None:
        swept, between = all_splits(score, loss.double().unsqueeze(-1))
        return loosest(swept.thresholds, p_values(int(counted.sum()), level)[_counts(swept)] <= delta, between)

    return threshold


def _by_mean(score: Tensor, loss: Tensor, counted: Tensor, level: float, delta: float) -> float | None:
    """Find the threshold by conformal risk control.

    It needs losses that only grow, so a row once lost stays lost for all looser thresholds.
    """
    reached = score[:-1].cummax(dim=0).values
    stops = torch.cat((torch.full_like(reached[:1], -math.inf), reached))  # a row stops where this rises
    stays = torch.cat(
        (stops[1:] > stops[:-1], torch.ones_like(loss[-1:]))
    )  # (L, N) exits at which some threshold stops
    ever = (loss & stays).flip(0).cummax(dim=0).values.flip(0)
    swept, between = all_splits(score, ever.double().unsqueeze(-1))
    return loosest(swept.thresholds, conformal(int(counted.sum()))[_counts(swept)] <= level, between)


def _by_betting(score: Tensor, loss: Tensor, counted: Tensor, level: float, delta: float) -> float | None:
    """Find the threshold by betting; tests only splits at which a loss changes.

    The rows are shuffled, because files are often sorted.
    """
    shuffled = torch.randperm(int(counted.sum()), generator=torch.Generator().manual_seed(0))
    flips = (loss[:-1] != loss[1:]).flip(0).cumsum(dim=0).flip(0)
    flips = torch.cat((flips, torch.zeros_like(flips[:1]))).double()  # (L, N) below this exit; the last has none
    swept, between = all_splits(score, flips.unsqueeze(-1))
    changes = (_counts(swept).diff() != 0).nonzero().flatten() + 1
    passes = torch.ones_like(between)
    for number in (0, *changes.tolist()):
        lost = lost_at(score, loss, swept.thresholds[number].item())[counted]
        if betting(lost[shuffled], level, delta) > delta:
            passes[number:] = False
            break
    return loosest(swept.thresholds, passes, between)


def _counts(swept: Sweep) -> Tensor:
    return swept.statistics[:, 0].round().long()


Method = Callable[[Tensor, Tensor, Tensor, float, float], float | None]
"""Scores (L, N), losses (L, N), the rows of the risk (N,), level, delta -> threshold."""

METHODS: dict[str, Method] = {
    "hoeffding-bentkus": _by_p_value(hoeffding_bentkus),
    "binomial": _by_p_value(binomial),
    "betting": _by_betting,
    "conformal": _by_mean,
}


# --- too few rows ----------------------------------------------------------------------------------------------------


def _note(score: Tensor, loss: Tensor, counted: Tensor, level: float, delta: float, method: str) -> str:
    """Return why no row may leave early, and how many rows would change that; arguments as of a method."""
    swept = sweep(score, loss.double().unsqueeze(-1))
    if len(swept.thresholds) == 1:
        return "no row has a score by which it could leave early"
    rows, among = len(counted), int(counted.sum())
    share = _counts(swept)[1].item() / among
    if share >= level:
        return f"cannot certify: even the strictest early exit loses {share:.2%} of {rows_text(among)}"
    needed = _rows_needed(share, level, delta, method, among)
    if needed is None:
        return f"cannot certify an early exit on {rows_text(rows)}; more than {MAX_ROWS} would be needed"
    return f"cannot certify an early exit on {rows_text(rows)}; needs about {math.ceil(needed * rows / among)} rows"


def _rows_needed(share: float, level: float, delta: float, method: str, rows: int) -> int | None:
    """Return the fewest rows, above `rows`, on which this share of losses passes; None = more than MAX_ROWS.

    The losses are evenly spread; on `rows` they do not pass.
    """

    def passes(rows: int) -> bool:
        lost = (torch.arange(rows + 1) * share).floor().diff() > 0  # (rows,)
        loss, counted = torch.stack((lost, torch.zeros_like(lost))), torch.ones_like(lost)
        return METHODS[method](torch.zeros(2, rows), loss, counted, level, delta) not in (None, math.inf)

    below, above = rows, 2 * rows
    while not passes(above):
        below, above = above, 2 * above
        if above > MAX_ROWS:
            return None
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if passes(middle) else (middle, above)
    return above
