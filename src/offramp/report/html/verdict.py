"""The verdict on early exit in words, from the measurements of one operating point on one trace.

Early exit pays where layers are saved and the point's target is met on these rows, if they are enough to show it.
Milliseconds appear only where they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from offramp.evaluation.caveats import needed_rows
from offramp.policies.registry import policy_text
from offramp.report.tables import speedup_text, thresholds_text
from offramp.types.operating_point import (
    RISKS,
    Certificate,
    Measured,
    OperatingPoint,
    label_thresholds_text,
    rows_text,
)

MAX_COUNTED = 100
"""A percentage of fewer rows than this is shown with its count."""
MAX_DIGITS = 6
"""Decimals of a percentage that is near 0 or 100, at most."""


class Verdict(str, Enum):
    """The outcome for one point; the value is the word in JSON and the class in the page's style."""

    PAYS = "pays"  # layers are saved and the target is met
    UNCERTAIN = "unsure"  # the target is met or missed, but on so few rows that it may be chance
    MISSES_TARGET = "costs"  # the loss is larger than the target allows
    NO_EARLY_EXIT = "idle"  # every row runs all layers
    NOT_SAVED = "open"  # the folder holds no operating point


@dataclass(frozen=True)
class Decision:
    """The summary at the top of the page.

    Attributes:
        verdict: the outcome.
        headline: one sentence.
        facts: (question, answer) in the order in which they are shown.
    """

    verdict: Verdict
    headline: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PointAssessment:
    """An operating point with its measurements on one trace.

    Attributes:
        name: the point's name in the model's folder; None = not saved there but chosen on these rows.
        point: policy, thresholds, target and certificate.
        measured: its score, agreement and mean exit on labelled rows.
        full_ms: mean time of a row at full depth, like `measured.expected_ms`; None where nothing was timed.
        best_alternative: a sentence that compares it with the other policies at its mean exit.
        loss: 95% interval of the full model's score minus the point's; None where these rows show none.
        in_sample: True where the point was chosen on these rows.
        certificate_mismatch: what its certificate is of instead, such as "other weights"; empty where it applies.
        counted: rows of the class whose F1 the score is; None = the score is of all rows.
        lexical: a sentence on what leaves before layer 1; empty where there is no exit.
    """

    name: str | None
    point: OperatingPoint
    measured: Measured
    full_ms: float | None
    best_alternative: str
    loss: tuple[float, float] | None
    in_sample: bool = False
    certificate_mismatch: str = ""
    counted: int | None = None
    lexical: str = ""

    @property
    def verdict(self) -> Verdict:
        """Return the outcome; the interval of the loss decides between UNCERTAIN and MISSES_TARGET."""
        if self.measured.saving <= 0:
            return Verdict.NO_EARLY_EXIT
        if self.name is None:
            return Verdict.NOT_SAVED
        if meets_target(self.point, self.measured):
            return Verdict.UNCERTAIN if self.few_rows else Verdict.PAYS
        allowed = self.point.target.get("max_drop", -math.inf) * (self.measured.full_score or 0.0)
        least = -math.inf if self.loss is None else self.loss[0]
        return Verdict.UNCERTAIN if least <= allowed else Verdict.MISSES_TARGET

    @property
    def loses_nothing(self) -> bool:
        """Return True where the point is the full model, on any rows (`point_loss_interval`)."""
        return self.loss == (0.0, 0.0)

    @property
    def few_rows(self) -> bool:
        """Return True where these rows could not show the target, even if nothing was lost, nor does a certificate."""
        certificate = self.point.certificate
        if certificate is not None and not certificate.note and not self.certificate_mismatch:
            return False
        rows = self.measured.rows if self.counted is None else self.counted
        return rows < needed_rows(self.point.target)


def decide(assessment: PointAssessment, caveats: Sequence[str] = ()) -> Decision:
    """Return the verdict on a point with its headline and facts; caveats: what the rows cannot show."""
    unknown = ". ".join(caveat[0].upper() + caveat[1:] for caveat in caveats) + "."
    certificate = certificate_text(assessment.point.certificate, assessment.certificate_mismatch)
    if assessment.point.certificate is None and assessment.loses_nothing:
        certificate = "Nothing is lost, because nobody leaves early."
    facts = (
        ("Operating point", _point_fact(assessment)),
        ("What it saves", _savings_fact(assessment.measured, assessment.full_ms)),
        *([("What leaves before layer 1", assessment.lexical)] if assessment.lexical else []),
        ("What it loses", _loss_fact(assessment)),
        ("What is guaranteed", certificate),
        ("Would another policy do better?", assessment.best_alternative),
        *([("What these rows cannot show", unknown)] if caveats else []),
    )
    return Decision(assessment.verdict, _headline(assessment), facts)


def meets_target(point: OperatingPoint, measured: Measured) -> bool:
    """Return whether the measurements meet the point's target; a point without a target meets it."""
    score, full = measured.score or 0.0, measured.full_score or 0.0
    excess = {
        "max_drop": (1 - score / full if full > 0 else math.inf) - point.target.get("max_drop", 0),
        "speedup": point.target.get("speedup", 0) - _speedup_as_chosen(point, measured),
        "agreement": point.target.get("agreement", 0) - (measured.agreement or 0.0),
        "latency_ms": (measured.expected_ms or 0.0) - point.target.get("latency_ms", 0),
    }
    return all(excess[key] <= 1e-12 for key in point.target if key in excess)


def _speedup_as_chosen(point: OperatingPoint, measured: Measured) -> float:
    """Return the speed-up in the unit of the costs that the point was chosen by, where they are known here."""
    unit = _unit(point)
    if unit in ("layers", "multiply-accumulates"):
        measured = replace(measured, expected_ms=None)
    if unit == "layers":
        measured = replace(measured, macs=None)
    return measured.speedup


def _unit(point: OperatingPoint) -> str:
    """Return the unit of the costs that a point was chosen by; "" where it was not measured."""
    return "" if point.measured is None else point.measured.speedup_of


def certificate_text(certificate: Certificate | None, mismatch: str = "") -> str:
    """Return a certificate in plain words, or the reason why nothing is guaranteed.

    Args:
        certificate: of a point; None = it has none.
        mismatch: see `PointAssessment.certificate_mismatch`.
    """
    if certificate is None:
        return (
            "Nothing: the thresholds were chosen on rows, and other rows may lose more. "
            "`offramp calibrate --confidence 0.95` gives a guarantee."
        )
    if mismatch:
        return f"Nothing here: the certificate is of {mismatch}."
    if certificate.note:
        return f"Nothing is lost, because nobody leaves early: {certificate.note}."
    at_most = f"at most {percent(certificate.bound)} of {RISKS[certificate.risk]}"
    among = f"for rows drawn like the {certificate.rows} it was certified on"
    if certificate.delta is None:
        return f"On average over draws of rows, {at_most}, {among}."
    observed = "nothing was lost there" if certificate.observed == 0 else f"seen there: {percent(certificate.observed)}"
    return f"With {percent(1 - certificate.delta)} confidence, {at_most}, {among} ({observed})."


def percent(share: float) -> str:
    """Format a share: "64%", "0.8%" or "5%"; "0%" and "100%" are exact."""
    digits = 0 if abs(share) >= 0.0995 else 1
    while digits < MAX_DIGITS and round(100 * share, digits) in (0, 100) and abs(share - round(share)) > 1e-9:
        digits += 1
    return f"{100 * share:.{digits}f}".removesuffix(".0") + "%"


def target_text(point: OperatingPoint) -> str:
    """Return a point's target in words."""
    shares = {
        "max_drop": "at most {} of the score lost",
        "agreement": "{} of the answers kept",
        "level": "at most {} lost, for sure",
    }
    cheaper = f"{{:g}} times fewer {_unit(point)}" if _unit(point) else "{:g} times cheaper"
    numbers = {"speedup": cheaper, "latency_ms": "{:g} ms a row"}
    words = [shares[key].format(percent(value)) for key, value in point.target.items() if key in shares]
    words += [numbers[key].format(value) for key, value in point.target.items() if key in numbers]
    return ", ".join(words) or "nothing"


def _target_in_brackets(point: OperatingPoint) -> str:
    return f" (asked: {target_text(point)})" if point.target else ""


def _headline(assessment: PointAssessment) -> str:
    measured, point = assessment.measured, f"the point “{assessment.name}”" if assessment.name else "the best point"
    time = ""
    if measured.expected_ms is not None and assessment.full_ms is not None:
        time = f", {percent(1 - measured.expected_ms / assessment.full_ms)} of the time,"
    saves = f"saves {percent(measured.saving)} of the layers{time} and {_score_change(measured)}"
    return {
        Verdict.NO_EARLY_EXIT: f"Early exit does not pay here: at {point} every row runs all {measured.depth} layers.",
        Verdict.NOT_SAVED: f"No operating point is saved yet; {assessment.point.policy['name']} {saves} on these rows."
        f"{_few_rows(assessment)}",
        Verdict.PAYS: f"Early exit pays here: {point} {saves}{_target_in_brackets(assessment.point)}.",
        Verdict.UNCERTAIN: f"Early exit may pay here: {point} {saves}"
        + (
            f" on these rows.{_few_rows(assessment)}"
            if meets_target(assessment.point, measured)
            else f". That is more than was asked for, but on {rows_text(measured.rows)} it may be chance."
        ),
        Verdict.MISSES_TARGET: f"Early exit does not pay as asked: {point} {saves}, and "
        f"{target_text(assessment.point)} was asked for{_reached(assessment)}.",
    }[assessment.verdict]


def _reached(assessment: PointAssessment) -> str:
    """Return the speed-up or the time on these rows behind a target of these; "" for other targets."""
    point, measured = assessment.point, assessment.measured
    if "speedup" in point.target:
        return f"; on these rows it is {_speedup_as_chosen(point, measured):.4g} times"
    if "latency_ms" in point.target and measured.expected_ms is not None:
        return f"; on these rows it is {measured.expected_ms:.4g} ms"
    return ""


def _few_rows(assessment: PointAssessment) -> str:
    """Return a sentence on what so few rows can promise; "" where they are enough."""
    if not assessment.few_rows:
        return ""
    counted = assessment.counted
    rows, of_class = (assessment.measured.rows, "") if counted is None else (counted, " of the class")
    little = f" {rows_text(rows)}{of_class} {'promises' if rows == 1 else 'promise'} little"
    metric = assessment.measured.metric
    if assessment.loss is None:
        return f"{little}: no interval of {metric} can be given from them."
    if assessment.loss[1] < 0:
        return f"{little}, but at least {points(-assessment.loss[1])} points of {metric} are gained (95%)."
    return f"{little}: up to {points(assessment.loss[1])} points of {metric} may be lost (95%)."


def _score_change(measured: Measured) -> str:
    loss = 100 * ((measured.full_score or 0.0) - (measured.score or 0.0))
    if abs(loss) < 0.05:
        return f"loses no {measured.metric}"
    return f"{'loses' if loss > 0 else 'gains'} {abs(loss):.1f} points of {measured.metric}"


def _point_fact(assessment: PointAssessment) -> str:
    point, saved = assessment.point, assessment.name is not None
    name = f"“{assessment.name}”: " if saved else "none is saved; the best found here: "
    target = f" (asked for: {target_text(point)})" if point.target else ""
    labels = f", {label_thresholds_text(point.label_thresholds)}" if point.label_thresholds else ""
    advice = "" if saved else " `offramp calibrate` saves one, chosen on rows of its own."
    return f"{name}{policy_text(point.policy)}, threshold {thresholds_text(point)}{labels}{target}.{advice}"


def _savings_fact(measured: Measured, full_ms: float | None) -> str:
    mean_exit = f"layer {measured.mean_exit:.2f} of {measured.depth}"
    layers = f"{percent(measured.saving)} of the layers: on average a row leaves after {mean_exit}"
    if measured.speedup_of == "multiply-accumulates":
        layers += f" ({speedup_text(measured.speedup)} times fewer multiply-accumulates)"
    if measured.expected_ms is None or full_ms is None:
        return f"{layers}. Milliseconds were not measured; `offramp bench` measures them."
    return (
        f"{layers}, in {measured.expected_ms:.3g} ms where all layers take {full_ms:.3g} ms "
        f"({measured.provenance['timed']}). `offramp bench` compares that with the plain model in every engine."
    )


def _loss_fact(assessment: PointAssessment) -> str:
    measured, interval = assessment.measured, "no interval can be given from them"
    if assessment.loss is not None:
        low, high = assessment.loss
        interval = f"a loss of {points(low)} to {points(high)} points (95% interval)"
    scores = f"{measured.metric} {measured.score:.4f} against {measured.full_score:.4f} of the full model"
    sentences = [f"{scores} on {rows_text(measured.rows)}, {interval}."]
    if measured.agreement is not None:
        same = round(measured.agreement * measured.rows)
        count = f" ({same} of {measured.rows})" if measured.rows < MAX_COUNTED else ""
        sentences.append(f"{percent(measured.agreement)} of the rows{count} get the full model's answer.")
    if assessment.in_sample and not assessment.loses_nothing:
        sentences.append("The point was chosen on these very rows: expect somewhat more to be lost on others.")
    return " ".join(sentences)


def points(share: float) -> str:
    """Format a difference of scores in points: "1.5"."""
    return f"{round(100 * share, 1) + 0.0:.1f}"  # no -0.0
