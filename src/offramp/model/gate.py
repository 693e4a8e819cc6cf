"""The certainty gate: one small module, shared by all exits, that learns whether an exit is right.

Xin et al., "BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression", EACL 2021, section 4
("learning to exit"): u_i = sigmoid(c . h_i + b) (eq. 8), trained by J_i = (u_i - v_i)^2 (eq. 9) towards v_i = 1 where
the exit's answer is right, else 0 (eq. 10); for regression v_i = 1 - tanh |g_i - y| (eq. 11).

Differs from the authors' code, which learns *un*certainty and averages J over all exits, whatever exits the objective
trains; here J_i is added wherever L_i stands, as in the paper. The gate reads the input of the exit's last
linear map: the pooled state under a linear head, as in eq. 8, and the tanh-pooled one under a pooler, as in the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from offramp.errors import InvalidInput


@final
class Gate(nn.Module):
    """Certainty u in 0..1 of an exit.

    Args:
        widths: (L,) W of the input of each exit's last linear map; all the same.

    Raises:
        InvalidInput: exits of several widths.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if len(set(widths)) > 1:
            raise InvalidInput(f"a gate shared by all exits needs exits of one width, got {sorted(set(widths))}")
        self.linear = nn.Linear(widths[0], 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return u (B,) in float32, from the input (B, W) of the exit's last map."""
        logit: Tensor = self.linear(features)
        return logit.float().sigmoid().squeeze(-1)
