"""Measure an operating point on a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.evaluation.metrics import metric_for, score
from offramp.policies.base import Policy
from offramp.policies.decision import refuse_broken
from offramp.policies.replay import replay
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Measured, OperatingPoint
from offramp.types.outputs import Answers, ExitOutput, at_label_thresholds, predictions
from offramp.types.problem_types import MULTI_LABEL, REGRESSION
from offramp.types.trace import Trace


def measure(
    trace: Trace,
    policy: Policy | Mapping[str, Any],
    thresholds: float | Sequence[float] | Tensor,
    metric: str | None = None,
    cost: CostTable | None = None,
) -> Measured:
    """Return score, agreement and mean exit layer of a policy with these thresholds.

    Args:
        trace: with labels for a score, without for agreement and mean exit alone.
        policy: a policy, or a policy as data.
        thresholds: one number, or one for each exit but the last.
        metric: a name of METRICS; None = the default one.
        cost: of the exits of the trace; None = no expected time.

    Raises:
        InvalidInput: samples without a finite answer; a table of other exits.
    """
    table = None if cost is None else cost.select(trace.layer_numbers)
    return measure_answers(trace, replay(trace, policy, thresholds), metric, table)


def measure_answers(
    trace: Trace, answers: Answers, metric: str | None = None, cost: CostTable | None = None
) -> Measured:
    """Return what `measure` does, from the answers of a replay, of the same N rows; arguments and errors as there.

    The cost table is of the exits that these answers read.
    """
    refuse_broken(answers.failed | ~trace.logits[-1].isfinite().all(dim=-1), "no finite answer")
    full = trace.exit(trace.depth - 1)
    early = ExitOutput(answers.logits, problem_type=trace.problem_type)
    name = early_score = full_score = agreement = None
    if trace.labels is not None:
        name, rule = metric_for(trace, metric)
        early_score, full_score = (score(rule, out, trace.labels).item() for out in (early, full))
    if trace.problem_type != REGRESSION:
        agreement = (predictions(early) == predictions(full)).all(dim=-1).double().mean().item()
    depth, mean_exit = trace.layer_numbers[-1], answers.exit_layers.double().mean().item()
    measured = Measured(name, early_score, full_score, agreement, mean_exit, depth, len(trace), trace.provenance)
    if trace.macs is not None:
        macs, full_macs = (mean_macs(trace, layers) for layers in (answers.exit_layers, torch.tensor(depth)))
        measured = replace(measured, macs=macs, full_macs=full_macs)
    if cost is None:
        return measured
    provenance = {**trace.provenance, "timed": cost.describe()}
    expected_ms = cost.mean_ms(answers.exit_layers)
    return replace(measured, provenance=provenance, expected_ms=expected_ms, full_ms=cost.ms[-1])


def mean_macs(trace: Trace, exit_layers: Tensor) -> float:
    """Return the mean multiply-accumulates of a trace's rows that leave at these layers, (N,) or one for all.

    Raises:
        InvalidInput: the trace has no multiply-accumulates.
    """
    if trace.macs is None or trace.layers is None:
        raise InvalidInput("this needs the multiply-accumulates of each exit, and the trace has none")
    exits = torch.searchsorted(trace.layers, exit_layers).expand(1, len(trace))
    return trace.macs.gather(0, exits).double().mean().item()


def finite_rows(trace: Trace) -> Tensor:
    """Return the indices (K,) of the rows whose logits and certainty are finite at every exit; others have no answer.

    Raises:
        InvalidInput: no row has.
    """
    finite = trace.logits.isfinite().all(dim=-1).all(dim=0)
    if trace.certainty is not None:
        finite &= trace.certainty.isfinite().all(dim=0)
    if not finite.any():
        refuse_broken(~finite, "no finite answer")
    return finite.nonzero().squeeze(-1)


def measure_point(
    trace: Trace, point: OperatingPoint, metric: str | None = None, cost: CostTable | None = None
) -> Measured:
    """Return what `measure` does, of an operating point; the full model answers with the same label thresholds.

    Times at the point and at full depth are without the exits that the point does not read, where a table has prices.
    """
    table = None if cost is None else cost.select(point.layers_read(trace.layer_numbers))
    return measure_answers(*replay_point(trace, point), metric, table)


def replay_point(trace: Trace, point: OperatingPoint) -> tuple[Trace, Answers]:
    """Return a trace and a point's answers on it, both with logits less the log-odds of the label thresholds.

    The point reads its own exits, the trace keeps all.
    """
    answers = replay(trace.select(point.layers_read(trace.layer_numbers)), point.policy, point.thresholds)
    shifted = at_label_thresholds(answers.logits, point.label_thresholds)
    return answers_at_label_thresholds(trace, point.label_thresholds), replace(answers, logits=shifted)


def answers_at_label_thresholds(trace: Trace, label_thresholds: Sequence[float] | None) -> Trace:
    """Return a trace whose answers at 0.5 are those at the label thresholds; for its answers, not for its scores.

    Raises:
        NotApplicable: label thresholds of a problem that has not several labels.
        InvalidInput: another number of them than labels.
    """
    if label_thresholds is None:
        return trace
    if trace.problem_type != MULTI_LABEL:
        raise NotApplicable("label thresholds are for several labels, of which an answer may have none or more")
    return replace(trace, logits=at_label_thresholds(trace.logits, label_thresholds))


def measure_all(
    trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None, cost: CostTable | None = None
) -> dict[str, Measured]:
    """Measure every operating point on a trace, by name."""
    return {name: measure_point(trace, point, metric, cost) for name, point in points.items()}
