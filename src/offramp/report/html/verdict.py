"""Does early exit pay? The answer in words, from what an operating point does on one trace.

It pays where layers are saved and what was asked of the point is held on these rows. Milliseconds are told only where
they were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from offramp.policies.registry import summarize
from offramp.types.operating_point import RISKS, Certificate, Measured, OperatingPoint


@dataclass(frozen=True)
class Decision:
    """What a reader must know if nothing else.

    Attributes:
        verdict: a name of VERDICTS.
        headline: one sentence.
        facts: (question, answer) in the order in which they are asked.
    """

    verdict: str
    headline: str
    facts: tuple[tuple[str, str], ...]


VERDICTS = {
    "pays": "layers are saved, and what was asked for is held",
    "unsure": "it is not held, but so few rows cannot tell",
    "costs": "it loses more than was asked for",
    "idle": "nobody leaves early",
    "open": "there is no saved point",
}


@dataclass(frozen=True)
class PointAssessment:
    """A point, and all that is known of it.

    Attributes:
        name: the point's.
        point: what was asked for, and what is promised.
        told: what it does on rows with labels.
        full_ms: mean time of a row at full depth, as `told.expected_ms`; None where it was not measured.
        rivals: how the other policies do at its mean exit, in words.
        loss: 95% interval of the full model's score minus the point's, over draws of these rows.
        saved: whether the point lies in the model's folder; else it was chosen on these rows.
        seen: whether the point was chosen on these rows.
        void: of what else its certificate is, such as "other weights"; empty where it is of these.
    """

    name: str
    point: OperatingPoint
    told: Measured
    full_ms: float | None
    rivals: str
    loss: tuple[float, float]
    saved: bool = True
    seen: bool = False
    void: str = ""

    @property
    def verdict(self) -> str:
        """A name of VERDICTS."""
        if self.told.saving <= 0:
            return "idle"
        if not self.saved:
            return "open"
        if meets_target(self.point, self.told):
            return "pays"
        allowed = self.point.target.get("max_drop", -math.inf) * (self.told.full_score or 0.0)
        return "unsure" if self.loss[0] <= allowed else "costs"


def decide(case: PointAssessment) -> Decision:
    """Whether a point pays, in words."""
    facts = (
        ("Operating point", _where(case)),
        ("What it saves", _saves(case.told, case.full_ms)),
        ("What it loses", _loses(case)),
        ("What is guaranteed", certificate_text(case.point.certificate, case.void)),
        ("Would another policy do better?", case.rivals),
    )
    return Decision(case.verdict, _headline(case), facts)


def meets_target(point: OperatingPoint, told: Measured) -> bool:
    """Whether what was asked of a point is so on the rows that it was measured on; nothing asked is held."""
    score, full = told.score or 0.0, told.full_score or 0.0
    over = {
        "max_drop": (1 - score / full if full > 0 else math.inf) - point.target.get("max_drop", 0),
        "speedup": point.target.get("speedup", 0) - told.speedup,
        "agreement": point.target.get("agreement", 0) - (told.agreement or 0.0),
        "latency_ms": (told.expected_ms or 0.0) - point.target.get("latency_ms", 0),
    }
    return all(over[key] <= 1e-12 for key in point.target if key in over)


def certificate_text(certificate: Certificate | None, void: str = "") -> str:
    """A certificate in plain words, or that there is none.

    Args:
        certificate: of a point.
        void: see `Case`.
    """
    if certificate is None:
        return (
            "Nothing: the thresholds were chosen on rows, and other rows may lose more. "
            "`offramp calibrate --confidence 0.95` gives a guarantee."
        )
    if void:
        return f"Nothing here: the certificate is of {void}."
    if certificate.note:
        return f"Nothing is lost, because nobody leaves early: {certificate.note}."
    at_most = f"at most {percent(certificate.bound)} of {RISKS[certificate.risk]}"
    among = f"for rows drawn like the {certificate.rows} it was certified on"
    if certificate.delta is None:
        return f"On average over draws of rows, {at_most}, {among}."
    seen = "nothing was lost there" if certificate.observed == 0 else f"seen there: {percent(certificate.observed)}"
    return f"With {percent(1 - certificate.delta)} confidence, {at_most}, {among} ({seen})."


def percent(share: float) -> str:
    """Such as "64%", "0.8%" and "5%"."""
    digits = 0 if abs(share) >= 0.0995 else 1
    return f"{100 * share:.{digits}f}".removesuffix(".0") + "%"


def policy_text(point: OperatingPoint) -> str:
    """A policy in words: "pcee (measure entropy, patience 2)"."""
    rest = ", ".join(f"{key} {value}" for key, value in summarize(point.policy).items() if key != "name")
    return f"{point.policy['name']} ({rest})" if rest else str(point.policy["name"])


def thresholds_text(point: OperatingPoint) -> str:
    """One number where all exits have the same, else one for each."""
    words = ["never" if value == math.inf else f"{value:.4g}" for value in point.thresholds]
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def asked_text(point: OperatingPoint) -> str:
    """What was asked of a point, in words."""
    words = {
        "max_drop": "at most {} of the score lost",
        "agreement": "{} of the answers kept",
        "level": "at most {} lost, for sure",
    }
    told = [words[key].format(percent(value)) for key, value in point.target.items() if key in words]
    plain = {"speedup": "{:g} times fewer layers", "latency_ms": "{:g} ms a row"}
    told += [plain[key].format(value) for key, value in point.target.items() if key in plain]
    return ", ".join(told) or "nothing"


def _headline(case: PointAssessment) -> str:
    told, point = case.told, f"the point “{case.name}”"
    time = "" if told.expected_ms is None or case.full_ms is None else _time_saved(told.expected_ms, case.full_ms)
    saves = f"saves {percent(told.saving)} of the layers{time} and {_change(told)}"
    return {
        "idle": f"Early exit does not pay here: at {point} every row runs all {told.depth} layers.",
        "open": f"No operating point is saved yet; {case.point.policy['name']} {saves} on these rows.",
        "pays": f"Early exit pays here: {point} {saves}.",
        "unsure": f"Early exit may pay here: {point} {saves}. That is more than was asked for, but on {told.rows} rows "
        "it may be chance.",
        "costs": f"Early exit does not pay as asked: {point} {saves}, and {asked_text(case.point)} was asked for.",
    }[case.verdict]


def _time_saved(expected_ms: float, full_ms: float) -> str:
    return f", {percent(1 - expected_ms / full_ms)} of the time,"


def _change(told: Measured) -> str:
    lost = 100 * ((told.full_score or 0.0) - (told.score or 0.0))
    if abs(lost) < 0.05:
        return f"loses no {told.metric}"
    return f"{'loses' if lost > 0 else 'gains'} {abs(lost):.1f} points of {told.metric}"


def _where(case: PointAssessment) -> str:
    point = case.point
    name = f"“{case.name}”: " if case.saved else "none is saved; the best found here: "
    asked = f" (asked for: {asked_text(point)})" if point.target else ""
    more = "" if case.saved else " `offramp calibrate` saves one, chosen on rows of its own."
    return f"{name}{policy_text(point)}, threshold {thresholds_text(point)}{asked}.{more}"


def _saves(told: Measured, full_ms: float | None) -> str:
    where = f"layer {told.mean_exit:.2f} of {told.depth}"
    layers = f"{percent(told.saving)} of the layers: on average a row leaves after {where}"
    if told.expected_ms is None or full_ms is None:
        return f"{layers}. Milliseconds were not measured; `offramp bench` measures them."
    return (
        f"{layers}, in {told.expected_ms:.3g} ms where all layers take {full_ms:.3g} ms ({told.provenance['timed']}). "
        "`offramp bench` compares that with the plain model in every engine."
    )


def _loses(case: PointAssessment) -> str:
    told, (low, high) = case.told, case.loss
    kept = f"{told.metric} {told.score:.4f} against {told.full_score:.4f} of the full model on {told.rows} rows"
    said = [f"{kept}, a loss of {_points(low)} to {_points(high)} points (95% interval)."]
    if told.agreement is not None:
        said.append(f"{percent(told.agreement)} of the rows get the full model's answer.")
    if case.seen or not case.saved:
        said.append("The point was chosen on these very rows: expect somewhat more to be lost on others.")
    return " ".join(said)


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}"  # no -0.0
