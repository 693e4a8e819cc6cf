"""The policy and the exits of a ladder: those of the model's default point, so that one graph runs both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offramp.calibration.certify import fit_rows_text
from offramp.calibration.exit_choice import ExitChoice
from offramp.calibration.label_thresholds import choose_label_thresholds
from offramp.calibration.lexical_rows import MOST_SHARED
from offramp.calibration.prepare import PreparedPolicy, label_report
from offramp.calibration.saved_lines import SavedLines
from offramp.errors import InvalidInput
from offramp.policies.base import Policy
from offramp.policies.fitting import fit_lines, halves, refuse_non_finite
from offramp.policies.registry import as_policy, default_unfitted_policy, load_policy, policy_text
from offramp.types.exit_names import layers_text
from offramp.types.operating_point import DEFAULT, OperatingPoint, rows_text
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace, row_hashes


def prepare_ladder(
    trace: Trace,
    default: OperatingPoint | None,
    saved_lines: SavedLines | None,
    layers: Sequence[int],
    *,
    confidence: float | None = None,
    label_thresholds: bool = False,
) -> PreparedPolicy | None:
    """Return the policy of the default point at its exits, with the rows to choose a ladder's thresholds on.

    A policy without fitted numbers has a threshold for each exit. Its lines are those that training left, so that all
    rows may certify; without them these rows fit them, which then certify nothing, or with a confidence there is one
    threshold for all exits.

    Args:
        trace: as of `offramp.calibration.prepare.prepare_policy`.
        default: the model's default point; None = it has none.
        saved_lines: what training left with the model.
        layers: the layer numbers of the model's exits; an engine's trace may have fewer.
        confidence: of certificates of quality to come; None = there are none.
        label_thresholds: choose a threshold for each of several labels; with a confidence a half of the rows does.

    Returns:
        None where there is no default point, the trace has not its exits, or its rows fitted the point's policy: then
        there is nothing to follow.

    Raises:
        InvalidInput: a confidence, and the rows chose the exits of the default point; rows whose logits are not finite.
        NotApplicable: label thresholds of a model without several labels.
    """
    if default is None:
        return None
    read = tuple(layer for layer in default.exit_layers or layers if layer in trace.layer_numbers)
    if len(read) != len(default.thresholds) + 1 or read[-1] != trace.layer_numbers[-1]:
        return None
    if fit_rows_text(trace, as_policy(default.policy), most=MOST_SHARED):
        return None
    refuse_non_finite(trace)
    exits = _exits(trace, default, read, len(layers))
    if confidence is not None and exits.fitted_on:
        raise InvalidInput(
            f"the exits that the point {DEFAULT!r} reads were chosen on these rows, and a ladder reads the same: "
            "certify it on other rows"
        )
    fit_rows, rows = halves(trace) if label_thresholds and confidence is not None else (trace, trace)
    fit_rows, rows = fit_rows.select(read), rows.select(read)
    chosen = choose_label_thresholds(fit_rows) if label_thresholds else None
    policy, numbers = _policy(rows, default.policy, saved_lines, confidence)
    where = f" at layers {layers_text(read)}" if len(read) < len(layers) else ""
    report = [f"policy and exits of the point {DEFAULT!r}: {policy_text(default.policy)}{where}", *numbers]
    report += label_report(chosen, len(fit_rows))
    return PreparedPolicy(policy, rows, confidence, "\n".join(report), chosen, exits)


def _exits(trace: Trace, default: OperatingPoint, read: tuple[int, ...], count: int) -> ExitChoice:
    """Return the exits that the default point reads, with the rows that chose them if these are the same.

    They are, as far as the name of the data and the number of rows tell. To read all `count` exits is no choice.
    """
    measured, data = default.measured, trace.provenance.get("data")
    same = measured is not None and measured.rows == len(trace) and data in (None, measured.provenance.get("data"))
    if not same or len(read) == count:
        return ExitChoice(read)
    return ExitChoice(read, row_hashes(trace))


def _policy(
    rows: Trace, policy: Mapping[str, Any], saved_lines: SavedLines | None, confidence: float | None
) -> tuple[Policy, list[str]]:
    """Return the policy with its numbers for these rows, and a line on these numbers; none where it has its own."""
    name, refusal = str(policy["name"]), ""
    if set(policy) > {"name"}:
        return as_policy(policy), []
    if saved_lines is not None and not (refusal := saved_lines.refusal(rows, name)):
        fit_rows = rows_text(len(saved_lines.fitted_on))
        text = f"thresholds for each exit fitted in training on {fit_rows}, a ladder chosen on {len(rows)}"
        return load_policy(name, **saved_lines.parameters(name, rows.layer_numbers)), [text]
    reasons = [refusal] if refusal else []
    problem = str(rows.problem_type)
    if confidence is None and problem != REGRESSION and name == default_unfitted_policy(problem):
        return load_policy(name, **fit_lines(name, rows)), reasons
    return as_policy(policy), reasons
