"""Divergence: leave once several earlier exits gave nearly the same distribution.

Zhu et al., "BADGE: Speeding Up BERT Inference after Deployment via Block-wise Bypasses and Divergence-based Early
Exiting", ACL 2023 (industry track), section 3.2: leave once t of the earlier exits are within tau of this one.

No public code. The paper's divergence is the cross-entropy H(p_m) + KL(p_m, p_i): not 0 between equal distributions, so
it requires agreement and confidence at once. The paper says that this rule contains PABEE's, but it counts all earlier
exits, not exits in a row; `window="consecutive"` is the rule that does. The count may jump over t, so it is compared
by >=.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy, Step
from offramp.types.outputs import ExitOutput, class_log_probs


def cross_entropy(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return H(p, q) in nats, (B,), of probabilities (B, G, K), summed over G choices; from H(p) up, without bound."""
    return -(p * log_q).sum(dim=(-2, -1))


def kullback_leibler(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p, q) likewise; from 0 up, without bound."""
    return (p * (log_p - log_q)).sum(dim=(-2, -1)).clamp(min=0)  # rounding can take equal distributions below 0


def jensen_shannon(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return JS(p, q) likewise; from 0 to ln 2 a choice, symmetric."""
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kullback_leibler(p, log_p, log_mean) + kullback_leibler(log_q.exp(), log_q, log_mean)) / 2


DIVERGENCES = {"ce": cross_entropy, "kl": kullback_leibler, "js": jensen_shannon}
WINDOWS = ("all", "consecutive")


@final
@dataclass(frozen=True)
class Divergence(Policy):
    """Score: minus the `patience`-th smallest divergence from an earlier exit; -inf before exit `patience` + 1.

    The threshold is minus the paper's tau, in nats. The scales differ: a cross-entropy is never below the exit's own
    entropy, KL has no upper end, JS ends at ln 2. For several labels the divergences of the labels are added up.

    Attributes:
        divergence: S(this exit, an earlier one): "ce" (the paper's), "kl" or "js".
        patience: number of earlier exits that must be near, at least 1. The paper gives no number; 1 leaves the most
            depths to choose from (the earliest exit is `patience` + 1).
        window: "all" earlier exits count (the paper's rule), or "consecutive": the last `patience` must all be near.
    """

    divergence: str = "ce"
    patience: int = 1
    window: str = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or self.patience < 1:
            raise InvalidInput(f"patience must be a whole number of at least 1, got {self.patience!r}")
        if self.divergence not in DIVERGENCES:
            raise InvalidInput(f"divergence must be one of {', '.join(DIVERGENCES)}; got {self.divergence!r}")
        if self.window not in WINDOWS:
            raise InvalidInput(f"window must be one of {', '.join(WINDOWS)}; got {self.window!r}")

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        log_p = class_log_probs(out)  # (B, G, K)
        earlier = memory[-self.patience :] if self.window == "consecutive" else memory
        p, divergence = log_p.exp(), DIVERGENCES[self.divergence]
        smallest = [torch.full_like(log_p[:, 0, 0], math.inf)] * self.patience  # (B,) each, rising
        for log_q in earlier:
            value = divergence(p, log_p, log_q)
            for rank, other in enumerate(smallest):  # insert `value` and drop the largest; plain minima for the graph
                smallest[rank], value = torch.minimum(other, value), torch.maximum(other, value)
        return Step(-smallest[-1], out.logits, (*earlier, log_p), min(self.patience, len(earlier)) + 1)
