"""Bypass: a low-rank branch parallel to each block, so that an exit can read other features than the next block.

Zhu et al., "BADGE: Speeding Up BERT Inference after Deployment via Block-wise Bypasses and Divergence-based Early
Exiting", ACL 2023 (Industry), section 3.1, eq. 1 and 2: with H the block's input and F the sum before its last
LayerNorm, the exit reads LN(g(H W_down) W_up + F); the next block gets LN(F) as without a bypass.

No public code. The paper's parameter count (26k an exit at width 768 and rank 16) fits a LayerNorm of the bypass's own
and no biases, which is what is here. W_up starts at zero and the LayerNorm as a copy of the block's, so that an exit
starts as that of the plain model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from transformers.activations import ACT2FN

from offramp.errors import InvalidInput

PLACEMENTS = ("block", "ffn")


@final
@dataclass(frozen=True, kw_only=True)
class Bypass:
    """The rank, activation and placement of a model's bypasses.

    Attributes:
        rank: width of the branch, at least 1.
        activation: g, by transformers' name; the paper searched gelu, tanh, relu, leaky_relu.
        placement: "block" starts at the block's input, "ffn" after its attention (the paper's ablation).

    Raises:
        InvalidInput: a value out of its range.

    Example:
        >>> exits = offramp.MultiExitModel.from_backbone(model.backbone, num_labels=3, bypass=offramp.Bypass(rank=4))
        >>> exits.config.bypass
        {'rank': 4, 'activation': 'gelu', 'placement': 'block'}
    """

    rank: int = 16
    activation: str = "gelu"
    placement: str = "block"

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidInput(f"a bypass's rank must be a whole number of at least 1, got {self.rank!r}")
        if self.activation not in ACT2FN:
            raise InvalidInput(f"a bypass's activation must be one of {', '.join(ACT2FN)}; got {self.activation!r}")
        if self.placement not in PLACEMENTS:
            raise InvalidInput(f"a bypass's placement must be one of {', '.join(PLACEMENTS)}; got {self.placement!r}")


@final
class ZeroLinear(nn.Linear):
    """A linear map that starts at zero (the model's `_init_weights` recognises the class)."""


@final
class BypassBranch(nn.Module):
    """The bypass of one exit: 2 r D weights and a LayerNorm.

    Args:
        bypass: its shape.
        width: D of the hidden states.
        eps: of the LayerNorm.
    """

    def __init__(self, bypass: Bypass, width: int, eps: float) -> None:
        super().__init__()
        self.placement = bypass.placement
        self.down = nn.Linear(width, bypass.rank, bias=False)
        self.activation = ACT2FN[bypass.activation]
        self.up = ZeroLinear(bypass.rank, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=eps)

    def source(self, layer_input: Tensor, attended: Tensor, selection: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Return the input of the branch, (B, T', D), by its placement.

        Args:
            layer_input: (B, T, D) states before the layer.
            attended: (B, T', D) states after its attention, of the tokens that stay.
            selection: reduces states of T tokens to the T' that stay; None = all stay.
        """
        if self.placement == "ffn":
            return attended
        return layer_input if selection is None else selection(layer_input)

    def forward(self, source: Tensor, pre_norm: Tensor) -> Tensor:
        """Return the input of the exit, (B, R, D).

        Args:
            source: (B, R, D) input of the branch, for the R tokens that the exit reads.
            pre_norm: (B, R, D) the block's sum before its last LayerNorm, for the same tokens.
        """
        exit_input: Tensor = self.norm(self.up(self.activation(self.down(source))) + pre_norm)
        return exit_input
