"""Confidence: leave once the exit's own distribution is peaked enough.

Entropy: Teerapittayanon et al., "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks", ICPR 2016,
and Xin et al., "DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference", ACL 2020. Largest probability: Kaya et
al., "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML 2019, and Xin et al., "BERxiT",
EACL 2021, section 3.3.

Differs from the authors' code: entropy is normalised to 0..1 by ln K (as PCEE-BERT does) and taken from log-softmax in
float32, so that it stays finite for logits of any size; DeeBERT's gives NaN once a probability underflows. For several
labels the worst label counts, each being a choice between two.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from offramp.policies.base import Memory, Policy, Step
from offramp.types.outputs import ExitOutput, class_log_probs


@final
@dataclass(frozen=True)
class Entropy(Policy):
    """Score: 1 - H(p) / ln K, in 0..1. The papers' "H / ln K < tau" is the threshold 1 - tau."""

    unit_interval: ClassVar[bool] = True

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        log_p = class_log_probs(out)  # (B, G, K)
        entropy = -(log_p.exp() * log_p).sum(dim=-1)  # (B, G)
        score = (1 - entropy / math.log(log_p.shape[-1])).clamp(min=0)  # rounding can take equal logits below 0
        return Step(score.amin(dim=-1), out.logits)


@final
@dataclass(frozen=True)
class MaxProb(Policy):
    """Score: the largest probability, in 1/K..1."""

    unit_interval: ClassVar[bool] = True

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        return Step(class_log_probs(out).amax(dim=-1).exp().amin(dim=-1), out.logits)


@final
@dataclass(frozen=True)
class Margin(Policy):
    """Score: the largest probability minus the second, in 0..1."""

    unit_interval: ClassVar[bool] = True

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        best = class_log_probs(out).exp().topk(2, dim=-1).values  # (B, G, 2)
        return Step((best[..., 0] - best[..., 1]).amin(dim=-1), out.logits)
