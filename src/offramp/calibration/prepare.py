"""From a trace to an operating point: fit a policy on some rows, choose its threshold on others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offramp.calibration.calibrate import calibrate
from offramp.calibration.cautious import cautious_point
from offramp.calibration.certify import certified_point, check_certifiable, fit_rows_text
from offramp.calibration.exit_choice import ExitChoice, choose_exits
from offramp.calibration.label_thresholds import FEWEST_POSITIVES, LabelThresholds, choose_label_thresholds
from offramp.calibration.ladder import ladder_points
from offramp.calibration.lexical_rows import MOST_SHARED, warn_of_lexical_rows
from offramp.calibration.outputs import PolicyOutputs, policy_outputs
from offramp.calibration.saved_lines import SavedLines
from offramp.errors import InvalidInput
from offramp.policies.base import Policy
from offramp.policies.fitting import (
    fit_default_policy,
    fit_lines,
    fit_policy,
    fit_temperatures,
    halves,
    refuse_non_finite,
)
from offramp.policies.registry import FITTED, default_unfitted_policy, load_policy, policy_to_dict
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import OperatingPoint, Target, rows_text
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace

LABEL_METRICS = ("macro-f1", "f1")
"""Metrics that label thresholds are chosen for; the first is the default one with them."""


@dataclass(frozen=True)
class PreparedPolicy:
    """A policy with its fitted numbers, and the rows that choose its thresholds.

    Attributes:
        policy: ready to be calibrated.
        rows: of the trace, the rows to choose thresholds on.
        confidence: of the points' certificates, above 0, below 1; None = points have none.
        report: in words: the numbers that were fitted on other rows, and how many rows; the rows that chose the label
            thresholds; why exits are not read. Empty where there are none.
        label_thresholds: of all answers; None = 0.5.
        exits: those that the points read, which are those of `rows`; None = all.
    """

    policy: Policy
    rows: Trace
    confidence: float | None = None
    report: str = ""
    label_thresholds: LabelThresholds | None = None
    exits: ExitChoice | None = None

    def calibrate(
        self, target: Target, metric: str | None = None, cost: CostTable | None = None, *, to_spare: bool = False
    ) -> OperatingPoint:
        """Choose the threshold for a target, with a certificate if there is a confidence.

        A certificate of `max_drop` bounds the risk "drop", one of `agreement` the risk "agreement".

        Args:
            target: with a confidence `max_drop` or `agreement`.
            metric: as of `offramp.calibrate`; with a confidence the score is accuracy. With label thresholds it is
                macro-f1, or f1.
            cost: as of `offramp.calibrate`.
            to_spare: keep the score of `max_drop` with a standard error to spare (`offramp.calibration.cautious`), as
                for a model that nobody calibrates; without a confidence, and other targets as they are.

        Raises:
            InvalidInput: a target, a metric or a cost table that does not go with a confidence; as `offramp.calibrate`.
            CannotReach: as `offramp.calibrate` and `offramp.certify`.
            NotApplicable: likewise.
        """
        if self.confidence is None and to_spare and target.kind == "max_drop":
            warn_of_lexical_rows(self.rows)
            return cautious_point(self._outputs(), target.value, self._metric(metric))
        if self.confidence is None:
            return calibrate(self.rows, self.policy, target, self._metric(metric), cost, self.label_thresholds)
        if target.kind not in ("max_drop", "agreement") or metric not in (None, "accuracy"):
            raise InvalidInput("a confidence goes with max_drop of accuracy, or with agreement")
        risk, level = ("drop", target.value) if target.kind == "max_drop" else ("agreement", 1 - target.value)
        level, delta = round(level, 12), round(1 - self.confidence, 12)
        check_certifiable(self.rows, risk, level, delta)
        return certified_point(self._outputs(), risk, level, delta)

    def ladder(self, metric: str | None = None) -> dict[str, OperatingPoint]:
        """Choose a ladder's points by name, certified if there is a confidence; see `offramp.ladder`."""
        delta = None if self.confidence is None else round(1 - self.confidence, 12)
        if delta is not None:
            return ladder_points(self._outputs(), None, delta)
        refusal = fit_rows_text(self.rows, self.policy, self.label_thresholds, most=MOST_SHARED)
        if refusal:
            refusal += "; with a confidence (--confidence) the ladder has a policy that they did not fit"
        elif self.exits is not None and self.exits.fitted_on:  # without a confidence by the rows that choose all else
            refusal = "the exits that are read were chosen on these rows; choose the ladder on others"
        return ladder_points(self._outputs(), self._metric(metric), None, refusal)

    def _outputs(self) -> PolicyOutputs:
        return policy_outputs(self.rows, self.policy, self.label_thresholds)

    def _metric(self, metric: str | None) -> str | None:
        """Return the metric of points without a certificate: with label thresholds one of those they are chosen for."""
        if self.label_thresholds is None:
            return metric
        if metric not in (None, *LABEL_METRICS):
            raise InvalidInput(f"label thresholds are chosen for {' and '.join(LABEL_METRICS)}, got metric {metric!r}")
        return metric or LABEL_METRICS[0]


def prepare_policy(
    trace: Trace,
    policy: str | Mapping[str, Any] | None = None,
    *,
    temperature: bool = False,
    per_exit: bool = False,
    confidence: float | None = None,
    label_thresholds: bool = False,
    saved_lines: SavedLines | None = None,
    target: Target | None = None,
    metric: str | None = None,
    cost: CostTable | None = None,
) -> PreparedPolicy:
    """Fit the numbers that a policy needs, and return it with the rows to choose thresholds on.

    Weights of consistency and gain, and temperatures, are fitted on a random half of the rows, thresholds are chosen on
    the other half. Lines for a threshold at each exit are so few numbers that all rows fit them and choose. With a
    confidence, for which other rows must fit them, that is done in training, or by a half of the rows.

    Exits that do not pay (`offramp.calibration.exit_choice`) are not read: with a cost table that knows what reading an
    exit takes any but the last, else the lexical exit alone. The rows that choose thresholds choose that too; with a
    confidence those that fit, and where no rows fit all are read.

    Args:
        trace: a full-depth pass over rows that are neither trained on nor reported on.
        policy: a name, or data: parameters by name, "name" among them or not. Without a name it is
            `offramp.policies.registry.default_unfitted_policy`. With nothing asked for at all it is
            `offramp.policies.fitting.fit_default_policy`.
        temperature: fit a temperature for each exit first.
        per_exit: a threshold for each exit, as `offramp.fit_lines` makes it possible.
        confidence: of the certificates to come, above 0, below 1; None = no certificates.
        label_thresholds: choose a threshold for each of several labels first: with a confidence on the rows that fit,
            else on all that fit or choose (`offramp.calibration.label_thresholds`).
        saved_lines: what training left with the model (`offramp.calibration.saved_lines`). With `per_exit` and a
            confidence they serve, if they are of the trace's weights and of other rows, in place of a half of the rows.
        target: of the points to come, at which exits pay or not; None as of `choose_exits`.
        metric: of the points to come.
        cost: the time to each exit, by which exits are chosen.

    Raises:
        InvalidInput: options that do not go together; rows whose logits are not finite; too few rows; no labels where
            they are needed.
        NotApplicable: policy or options have no meaning for this kind of problem.
        UnknownName: no such policy.
    """
    parameters: dict[str, Any] = {"name": policy} if isinstance(policy, str) else dict(policy or {})
    if target is None or target.kind != "max_drop":
        metric = None
    if not (parameters or temperature or per_exit or confidence):
        return _prepare_default(trace, label_thresholds, target, metric, cost)
    is_named = "name" in parameters
    name = parameters.pop("name", None) or default_unfitted_policy(str(trace.problem_type))
    if temperature and per_exit:
        raise InvalidInput("temperature and per_exit both put the exits on one scale; choose one")
    if (temperature or per_exit) and name in FITTED:
        raise InvalidInput(f"{name} has a scale of its own; leave out temperature and per_exit")
    # 1) which rows fit, which choose
    are_saved, refusal = False, ""
    if per_exit and confidence is not None and saved_lines is not None:
        refusal = saved_lines.refusal(trace, name)
        are_saved = not refusal
    needs_half = name in FITTED or temperature or (per_exit and confidence is not None and not are_saved)
    halved = needs_half or (label_thresholds and confidence is not None)
    if halved:
        refuse_non_finite(trace)  # its message counts all rows
    fit_half, choose_half = halves(trace) if halved else (trace, trace)
    chosen = choose_label_thresholds(fit_half) if label_thresholds else None

    def fitted(rows: Trace) -> Policy:
        if saved_lines is not None and are_saved:
            numbers = saved_lines.parameters(name, rows.layer_numbers)
        else:
            numbers = _fit(name, rows, temperature, per_exit)
        return _load(name, {**numbers, **parameters}, is_named, trace)

    # 2) which exits are read
    exits = ExitChoice(tuple(trace.layer_numbers))
    if (confidence is None or halved) and not are_saved:
        exits = choose_exits(choose_half if confidence is None else fit_half, fitted, target, metric, chosen, cost)
    if exits.reason:
        fit_half, choose_half = (rows.select(exits.layers) for rows in (fit_half, choose_half))
    # 3) the numbers
    report = []
    if saved_lines is not None and are_saved:
        rows_of = f"on {len(saved_lines.fitted_on)} of its rows, the threshold chosen on {len(choose_half)}"
        report = [f"thresholds for each exit fitted in training {rows_of}"]
    elif needs_half:
        what = name if name in FITTED else "temperatures" if temperature else "thresholds for each exit"
        report = [_report(what, len(fit_half), len(choose_half)) + (f" ({refusal})" if refusal else "")]
    report += [*label_report(chosen, len(fit_half)), *filter(None, [exits.reason])]
    return PreparedPolicy(fitted(fit_half), choose_half, confidence, "\n".join(report), chosen, exits)


def _load(name: str, parameters: Mapping[str, Any], is_named: bool, trace: Trace) -> Policy:
    """Return a policy; an error names the default one where none was named."""
    try:
        return load_policy({**parameters, "name": name})
    except InvalidInput as error:
        if is_named:
            raise
        kind = "a regression" if trace.problem_type == REGRESSION else "classes"
        raise InvalidInput(f"no policy is named, and the default for {kind} is {name!r}: {error}") from None


def _fit(name: str, rows: Trace, temperature: bool, per_exit: bool) -> dict[str, Any]:
    """Return the numbers that a policy needs, fitted on these rows; none where it needs none."""
    if name in FITTED:
        return policy_to_dict(fit_policy(name, rows))
    if temperature:
        return fit_temperatures(rows)
    return fit_lines(name, rows) if per_exit else {}


def _prepare_default(
    trace: Trace, label_thresholds: bool, target: Target | None, metric: str | None, cost: CostTable | None
) -> PreparedPolicy:
    """Return the default policy of a problem; label thresholds are of classes, whose default leaves all rows."""
    chosen = choose_label_thresholds(trace) if label_thresholds else None
    default, rows = fit_default_policy(trace)
    name = str(policy_to_dict(default)["name"])

    def fitted(some: Trace) -> Policy:  # `rows` are a half already where a policy is fitted
        return fit_policy(name, some) if name in FITTED else fit_default_policy(some)[0]

    exits = choose_exits(rows, fitted, target, metric, chosen, cost)
    if exits.reason:
        default, rows = fit_default_policy(trace.select(exits.layers))
    fit_rows = len(trace) - len(rows)
    report = [_report(name, fit_rows, len(rows))] if fit_rows else []
    report += [*label_report(chosen, len(trace)), *filter(None, [exits.reason])]
    return PreparedPolicy(default, rows, None, "\n".join(report), chosen, exits)


def label_report(chosen: LabelThresholds | None, rows: int) -> list[str]:
    """Return a line on the label thresholds; none where there are none."""
    if chosen is None:
        return []
    few = f"; {chosen.few} of {len(chosen.values)} keep 0.5, with fewer than {FEWEST_POSITIVES} rows"
    return [f"label thresholds chosen on {rows} rows{few if chosen.few else ''}"]


def _report(fitted: str, fit_rows: int, choose_rows: int) -> str:
    return f"{fitted} fitted on {rows_text(fit_rows)}, the threshold chosen on the other {choose_rows}"


def fit_and_calibrate(
    trace: Trace,
    target: Target,
    policy: str | Mapping[str, Any] | None = None,
    *,
    temperature: bool = False,
    per_exit: bool = False,
    confidence: float | None = None,
    label_thresholds: bool = False,
    saved_lines: SavedLines | None = None,
    metric: str | None = None,
    cost: CostTable | None = None,
) -> OperatingPoint:
    """Return the operating point that `offramp calibrate` saves, from a trace: `prepare_policy`, then `calibrate`.

    Arguments and errors are theirs.
    """
    prepared = prepare_policy(
        trace,
        policy,
        temperature=temperature,
        per_exit=per_exit,
        confidence=confidence,
        label_thresholds=label_thresholds,
        saved_lines=saved_lines,
        target=target,
        metric=metric,
        cost=cost,
    )
    return prepared.calibrate(target, metric, cost)
