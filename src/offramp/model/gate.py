"""The certainty gate: one small module, shared by all exits, that learns whether an exit is right.

Xin et al., "BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression", EACL 2021, section 4
("learning to exit"): u_i = sigmoid(c . h_i + b) (eq. 8), trained by J_i = (u_i - v_i)^2 (eq. 9) towards v_i = 1 where
the exit's answer is right, else 0 (eq. 10); for regression v_i = 1 - tanh |g_i - y| (eq. 11).

Differs from the authors' code, which learns *un*certainty and averages J over all exits, whatever exits the objective
trains; here J_i goes wherever L_i goes, as the paper says. The gate reads what the exit's last linear map reads: the
pooled state under a linear head, as in eq. 8, and the tanh-pooled one under a pooler, as in the code.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn


@final
class Gate(nn.Module):
    """Certainty u in 0..1 of an exit.

    Args:
        width: of what the exits' last linear maps read.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, read: Tensor) -> Tensor:
        """U (B,) in float32, of what the exit reads (B, W)."""
        logit: Tensor = self.linear(read)
        return logit.float().sigmoid().squeeze(-1)
