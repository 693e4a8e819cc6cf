"""One pass of a policy over a trace, for all that is chosen and measured there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from offramp.calibration.label_thresholds import LabelThresholds
from offramp.errors import NotApplicable
from offramp.evaluation.measure import answers_at_label_thresholds, measure_answers
from offramp.policies.base import Policy
from offramp.policies.ensemble import Ensemble
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.registry import as_policy, policy_to_dict
from offramp.policies.replay import answers_at, finite_outputs
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Certificate, OperatingPoint
from offramp.types.outputs import at_label_thresholds
from offramp.types.trace import Trace


@dataclass(frozen=True)
class PolicyOutputs:
    """A policy's scores and answers at every exit of a trace.

    A policy with `lines` (`offramp.policies.exit_scaling`) is deployed without them, with a threshold for each exit:
    the threshold is chosen on `scores`, and the samples exit by `deployed_scores`. Else the two are one.

    With label thresholds `logits` and the logits of `answers` are less their log-odds (`at_label_thresholds`), so that
    an answer is what is above 0. The scores are those of the logits as they are.

    Attributes:
        trace: (L, N, C), at least two exits.
        policy: on whose scale one threshold for all exits is chosen.
        deployed: the policy that an operating point holds.
        scores: (L, N) of `policy`.
        deployed_scores: (L, N) of `deployed`.
        logits: (L, N, C) of both.
        label_thresholds: of every answer, the full model's too; None = 0.5.
        agreement: returns a threshold's certificate on agreement, for its point (`offramp.calibration.agreement`);
            None = points have none.
    """

    trace: Trace
    policy: Policy
    deployed: Policy
    scores: Tensor
    deployed_scores: Tensor
    logits: Tensor
    label_thresholds: tuple[float, ...] | None = None
    agreement: Callable[[float], Certificate | None] | None = None

    @property
    def answers(self) -> Trace:
        """Return the trace whose answers at 0.5 are the exits' answers at the label thresholds."""
        return answers_at_label_thresholds(self.trace, self.label_thresholds)

    def point(
        self,
        threshold: float,
        target: Mapping[str, float],
        metric: str | None = None,
        cost: CostTable | None = None,
        certificate: Certificate | None = None,
    ) -> OperatingPoint:
        """Return the operating point with this threshold, measured on the trace."""
        lines = _lines(self.policy)
        thresholds = (threshold,) * (self.trace.depth - 1) if lines is None else lines.thresholds(threshold)
        answers = answers_at(self.trace, self.deployed_scores, self.logits, thresholds)
        layers = tuple(self.trace.layer_numbers)
        measured = measure_answers(self.answers, answers, metric, None if cost is None else cost.select(layers))
        policy = policy_to_dict(self.deployed)
        agreement = None if self.agreement is None else self.agreement(threshold)
        labels = self.label_thresholds
        return OperatingPoint(policy, thresholds, target, measured, certificate, labels, layers, agreement)


def policy_outputs(
    trace: Trace, policy: Policy | Mapping[str, Any] | str, label_thresholds: LabelThresholds | None = None
) -> PolicyOutputs:
    """Run a policy, its name or its data form over a trace, once.

    Raises:
        InvalidInput: a single exit; samples whose score is NaN or whose logits are not finite.
        NotApplicable: the policy has no meaning for this kind of problem; label thresholds and temperatures, which move
            the probabilities that the thresholds are compared with.
    """
    policy = as_policy(policy)
    lines = _lines(policy)
    deployed = policy
    if lines is not None:
        deployed = Ensemble(lines.policy, policy.members) if isinstance(policy, Ensemble) else lines.policy
    scores, logits = finite_outputs(trace, deployed)
    outputs = PolicyOutputs(trace, policy, deployed, scores if lines is None else lines.rescale(scores), scores, logits)
    if label_thresholds is None:
        return outputs
    if _has_temperatures(policy_to_dict(policy)):
        raise NotApplicable("label thresholds are of probabilities that temperatures change; leave one of them out")
    values = label_thresholds.values
    return replace(outputs, logits=at_label_thresholds(logits, values), label_thresholds=values)


def loosest(thresholds: Tensor, holds: Tensor, among: Tensor | None = None) -> float | None:
    """Return the last of the falling thresholds (K,) before the first that does not hold, (K,) bool.

    Args:
        thresholds: falling.
        holds: those that hold; None is returned where the first does not.
        among: (K,) bool, those that may be returned; None = all.
    """
    allowed = holds.long().cumprod(dim=0) == 1
    passed = thresholds[allowed if among is None else among & allowed]
    return passed[-1].item() if len(passed) else None


def _lines(policy: Policy) -> ExitScaled | None:
    """Return the policy whose lines need not run: the outermost one, below an ensemble."""
    inner = policy.policy if isinstance(policy, Ensemble) else policy
    return inner if isinstance(inner, ExitScaled) else None


def _has_temperatures(policy: Mapping[str, Any]) -> bool:
    inner = (value for value in policy.values() if isinstance(value, Mapping))
    return "temperatures" in policy or any(map(_has_temperatures, inner))
