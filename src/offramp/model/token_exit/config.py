"""The schedule of token exit: layers and the share of tokens that each keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from offramp.errors import InvalidInput

FUSIONS = ("weighted_sum", "weighted_mean", "none")

MAX_DENOMINATOR = 10_000  # of a keep ratio: 0.7 of 10 tokens must be 7, which binary fractions alone do not ensure


@final
@dataclass(frozen=True, kw_only=True)
class TokenExit:
    """The layers at which tokens leave, and the selection there.

    Attributes:
        keep_ratio: layer number -> share of the tokens beside the first that it keeps, in (0, 1]; a sequence is one
            for each layer from the first on.
        beta: weight of a layer's attention against the memory, in 0..1, from layer 2 on; or one number for each
            layer (the authors' code has 1 in its first four).
        fusion: "weighted_sum" and "weighted_mean" make one token of the tokens that leave, "none" drops them.

    Raises:
        InvalidInput: a value out of its range.

    Example:
        >>> token_exit = offramp.TokenExit.from_exit_ratio({2: 0.25})
        >>> token_exit.keep_ratio
        {2: 0.75}
        >>> encoder = model.backbone.config
        >>> offramp.MultiExitModel.from_backbone(encoder, token_exit=token_exit).config.token_exit["beta"]
        0.5
    """

    keep_ratio: Mapping[int, float] = field(default_factory=lambda: {4: 0.7, 7: 0.7, 10: 0.7})
    beta: float | tuple[float, ...] = 0.5
    fusion: str = "weighted_sum"

    def __post_init__(self) -> None:
        ratios = self.keep_ratio if isinstance(self.keep_ratio, Mapping) else dict(enumerate(self.keep_ratio, start=1))
        object.__setattr__(self, "keep_ratio", {_layer_number(layer): ratios[layer] for layer in ratios})
        if not self.keep_ratio or not all(0 < ratio <= 1 for ratio in self.keep_ratio.values()):
            raise InvalidInput(f"keep_ratio must give layers a share above 0 and at most 1, got {self.keep_ratio!r}")
        if not isinstance(self.beta, (int, float)):
            object.__setattr__(self, "beta", tuple(self.beta))
        if not all(0 <= beta <= 1 for beta in self._betas):
            raise InvalidInput(f"beta must be from 0 to 1, got {self.beta!r}")
        if self.fusion not in FUSIONS:
            raise InvalidInput(f"fusion must be one of {', '.join(FUSIONS)}; got {self.fusion!r}")

    @classmethod
    def from_exit_ratio(
        cls,
        exit_ratio: float | Mapping[int, float],
        *,
        beta: float | Sequence[float] = 0.5,
        fusion: str = "weighted_sum",
    ) -> TokenExit:
        """Build a schedule from the share R_ee that leaves (eq. 7), in place of the share that stays.

        Args:
            exit_ratio: layer number -> share, in [0, 1); one number is for layers 4, 7 and 10, as in the authors' code.
            beta: see the class.
            fusion: see the class.
        """
        shares = exit_ratio if isinstance(exit_ratio, Mapping) else dict.fromkeys((4, 7, 10), exit_ratio)
        keep = {layer: 1 - share for layer, share in shares.items()}
        return cls(keep_ratio=keep, beta=beta if isinstance(beta, (int, float)) else tuple(beta), fusion=fusion)

    @property
    def last(self) -> int:
        """Return the last layer of the schedule."""
        return max(self.keep_ratio)

    @property
    def _betas(self) -> tuple[float, ...]:
        return self.beta if isinstance(self.beta, tuple) else (self.beta,)

    def beta_at(self, layer: int) -> float:
        """Return beta of layer `layer` (1-based)."""
        return self.beta[layer - 1] if isinstance(self.beta, tuple) else self.beta

    def needs_attention(self, layer: int) -> bool:
        """Return True if a selection uses the attention of `layer` (1-based): a beta of 1 forgets earlier layers."""
        for later in range(layer, self.last + 1):
            if later > layer and self.beta_at(later) == 1:
                return False
            if later in self.keep_ratio:
                return True
        return False

    def check_depth(self, depth: int) -> None:
        """Check the schedule against a model's depth.

        Raises:
            InvalidInput: layers that the model does not have, or another number of betas.
        """
        if self.last > depth:
            raise InvalidInput(f"token exit at layer {self.last}, but the model has {depth}; give keep_ratio")
        if isinstance(self.beta, tuple) and len(self.beta) != depth:
            raise InvalidInput(f"beta is one number or one for each of the {depth} layers, got {len(self.beta)}")

    def to_data(self) -> dict[str, Any]:
        """Return plain data; `TokenExit(**data)` restores it, also after JSON has made strings of the layer numbers."""
        return asdict(self)


def _layer_number(number: Any) -> int:
    try:
        layer = int(number)
    except (TypeError, ValueError):
        layer = 0
    if layer < 1 or isinstance(number, float):
        raise InvalidInput(f"keep_ratio's layers are whole numbers from 1, got {number!r}")
    return layer
