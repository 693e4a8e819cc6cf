"""One pass of a policy over a trace, for all that is chosen and measured there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offramp.evaluation.measure import measure_answers
from offramp.policies.base import Policy
from offramp.policies.ensemble import Ensemble
from offramp.policies.exit_scaling import ExitScaled
from offramp.policies.registry import as_policy, policy_to_dict
from offramp.policies.replay import answers_at, finite_outputs
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Certificate, OperatingPoint
from offramp.types.trace import Trace


@dataclass(frozen=True)
class PolicyOutputs:
    """A policy's scores and answers at every exit of a trace.

    A policy with `lines` (`offramp.policies.exit_scaling`) is deployed without them, with a threshold for each exit:
    the threshold is chosen on `scores`, and the samples exit by `deployed_scores`. Else the two are one.

    Attributes:
        trace: (L, N, C), at least two exits.
        policy: on whose scale one threshold for all exits is chosen.
        deployed: the policy that an operating point holds.
        scores: (L, N) of `policy`.
        deployed_scores: (L, N) of `deployed`.
        logits: (L, N, C) of both.
    """

    trace: Trace
    policy: Policy
    deployed: Policy
    scores: Tensor
    deployed_scores: Tensor
    logits: Tensor

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
        measured = measure_answers(self.trace, answers, metric, cost)
        return OperatingPoint(policy_to_dict(self.deployed), thresholds, target, measured, certificate)


def policy_outputs(trace: Trace, policy: Policy | Mapping[str, Any] | str) -> PolicyOutputs:
    """Run a policy, its name or its data form over a trace, once.

    Raises:
        InvalidInput: a single exit; samples whose score is NaN or whose logits are not finite.
        NotApplicable: the policy has no meaning for this kind of problem.
    """
    policy = as_policy(policy)
    lines = _lines(policy)
    deployed = policy
    if lines is not None:
        deployed = Ensemble(lines.policy, policy.members) if isinstance(policy, Ensemble) else lines.policy
    scores, logits = finite_outputs(trace, deployed)
    return PolicyOutputs(trace, policy, deployed, scores if lines is None else lines.rescale(scores), scores, logits)


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
