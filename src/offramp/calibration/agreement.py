"""Bounds on how often early answers differ from the full model's, for every threshold of a policy at once.

A server moves along a ladder and watches how often its answers agree with the full model's. So every rung needs a bound
on the risk "agreement", whatever rows chose its threshold, also these rows.

There is a fixed grid of levels. For each level the thresholds are tested from the strictest down, as `certify` tests
them, at delta / number of levels, and those before the first that fails are accepted. A threshold has the smallest
level of the grid that accepts it.

With probability 1 - delta over the draw of the rows, every threshold that a level accepts has at most this risk, all
thresholds and levels at once. For one level let t* be the highest threshold whose risk is above it, as in `certify`.
All thresholds above t* have at most this risk. And t* or anything looser is accepted only if the split with t* passes
its test, which happens with probability delta / number of levels at most. So the chance that a level accepts anything
whose risk is above it is no larger, and the sum over the levels is at most delta. Where no level errs, it does not
matter by which rule a threshold was chosen, nor which level accepts it: the statement is of all of them.

The policy must not depend on these rows (`certify`), and they must be drawn, independently, like those to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from offramp.calibration.bounds import binomial
from offramp.calibration.certify import DEFAULT_METHOD, check_certifiable, losses, lost_at
from offramp.calibration.outputs import PolicyOutputs
from offramp.evaluation.sweep import all_splits
from offramp.types.operating_point import Certificate
from offramp.types.trace import trace_digest

LEVELS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
"""Risks that a threshold may be certified for; fixed, so that no row chooses among them."""
DELTA = 0.05
"""The share of the draws of rows in which a bound may be broken, where nothing is asked for."""


@final
@dataclass(frozen=True)
class AgreementBounds:
    """The certificates of all thresholds of one policy on one trace; they hold at once.

    Attributes:
        outputs: of the policy.
        delta: with probability 1 - delta all hold.
        loss: (L, N) bool, the answer at an exit differs from the full model's.
        thresholds: (K,) falling, one for each split; the first is inf.
        accepted: (levels,) how many of them each level accepts, from the first on; it does not fall from level to
            level.
        data: SHA-256 of the rows.
    """

    outputs: PolicyOutputs
    delta: float
    loss: Tensor
    thresholds: Tensor
    accepted: Tensor
    data: str

    def certificate(self, threshold: float) -> Certificate | None:
        """Return the certificate of a threshold on the scale of the policy; None where no level accepts it."""
        split = int((self.thresholds > threshold).sum())  # the first threshold as loose as this one
        levels = [level for level, count in zip(LEVELS, self.accepted.tolist(), strict=True) if split < count]
        if not levels:
            return None
        trace = self.outputs.trace
        return Certificate(
            risk="agreement",
            level=levels[0],
            delta=self.delta,
            bound=levels[0],
            observed=lost_at(self.outputs.scores, self.loss, threshold).double().mean().item(),
            rows=len(trace),
            method=DEFAULT_METHOD,
            engine=trace.provenance.get("engine"),
            data=self.data,
            weights=trace.provenance.get("weights"),
        )


def agreement_bounds(outputs: PolicyOutputs, delta: float = DELTA) -> AgreementBounds:
    """Test every threshold of a policy at every level of LEVELS.

    Args:
        outputs: of a policy that has run over rows that neither fitted it nor chose its exits or label thresholds
            (`offramp.calibration.certify.refuse_fit_rows`). Labels are not used.
        delta: above 0, below 1.

    Raises:
        NotApplicable: a regression.
        InvalidInput: delta out of range; more than 5 % of the rows fitted the exit before the first layer.
    """
    check_certifiable(outputs.trace, "agreement", LEVELS[0], delta)
    loss, counted = losses(outputs.answers, outputs.logits, "agreement")
    swept, _ = all_splits(outputs.scores, loss.double().unsqueeze(-1))
    lost, rows, share = swept.statistics[:, 0].round().long(), len(counted), delta / len(LEVELS)
    most = [int((binomial(rows, level) <= share).sum()) for level in LEVELS]  # p-values rise with the losses
    accepted = torch.stack([(lost < count).long().cumprod(dim=0).sum() for count in most])  # (levels,)
    return AgreementBounds(outputs, delta, loss, swept.thresholds, accepted, trace_digest(outputs.trace))
