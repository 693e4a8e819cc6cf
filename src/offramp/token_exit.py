"""Token exit: tokens that the first one hardly looks at leave a layer before its feed-forward half.

Kong et al., "Accelerating Inference for Pretrained Language Models by Unified Multi-Perspective Early Exiting", COLING
2022, section 3.1. In layer l, a_l is the mean over heads of the first token's attention, without its own column (eq.
5); a memory keeps A_l = (1 - beta) A_{l-1} + beta a_l, A_1 = a_1 (eq. 6). A layer of the schedule keeps the first token
and the m = ceil(keep_ratio N) of the N others with the largest A_l (eq. 7); those who leave become one fusion token,
the sum of their states weighted by A_l (eq. 8). That is done behind the attention's norm, so the feed-forward half runs
on fewer tokens already.

Differs from the authors' code, which pads to 128 tokens and selects among the padding too; here every sample selects
among its own real tokens, so neither padding nor company changes an answer. The code sorts the kept tokens by score and
leaves the memory in its old order; here kept tokens stay in their order and take their memory along. The fusion token's
memory is the mean of theirs who left, as in the code, and from then on it is a token like any other. Tokens must not
move against each other, so this is for encoders whose positions are in the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from offramp.backbones.base import padding_mask
from offramp.errors import InvalidInput
from offramp.heads import token_shares
from offramp.types.carry import Carry

FUSIONS = ("weighted_sum", "weighted_mean", "none")
CLASS_ATTENTION = "offramp_class_attention"
"""The attention implementation that tells the class-attention row, as transformers knows it."""

FINEST = 10_000  # the largest denominator: 0.7 * 10 must be 7, whatever binary fractions make of it


@final
@dataclass(frozen=True, kw_only=True)
class TokenExit:
    """Which tokens leave where.

    Attributes:
        keep_ratio: layer number -> share of the tokens beside the first that it keeps, in (0, 1]; a sequence is one
            for each layer from the first on.
        beta: how much a layer's attention counts against the memory, in 0..1, from layer 2 on; or one number for each
            layer (the authors' code has 1 in its first four).
        fusion: what becomes of those who leave: "weighted_sum" and "weighted_mean" make one token of them, "none" does
            not.

    Raises:
        InvalidInput: a value out of its range.
    """

    keep_ratio: Mapping[int, float] = field(default_factory=lambda: {4: 0.7, 7: 0.7, 10: 0.7})
    beta: float | tuple[float, ...] = 0.5
    fusion: str = "weighted_sum"

    def __post_init__(self) -> None:
        ratios = self.keep_ratio if isinstance(self.keep_ratio, Mapping) else dict(enumerate(self.keep_ratio, start=1))
        object.__setattr__(self, "keep_ratio", {_layer(layer): ratios[layer] for layer in ratios})
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
        """By the share R_ee that leaves (eq. 7), in place of the share that stays.

        Args:
            exit_ratio: layer number -> share, in [0, 1); one number is for layers 4, 7 and 10, as in the authors' code.
            beta: see the class.
            fusion: see the class.
        """
        given = exit_ratio if isinstance(exit_ratio, Mapping) else dict.fromkeys((4, 7, 10), exit_ratio)
        keep = {layer: 1 - share for layer, share in given.items()}
        return cls(keep_ratio=keep, beta=beta if isinstance(beta, (int, float)) else tuple(beta), fusion=fusion)

    @property
    def last(self) -> int:
        """The last layer of the schedule."""
        return max(self.keep_ratio)

    @property
    def _betas(self) -> tuple[float, ...]:
        return self.beta if isinstance(self.beta, tuple) else (self.beta,)

    def beta_at(self, layer: int) -> float:
        """Beta of layer `layer` (1-based)."""
        return self.beta[layer - 1] if isinstance(self.beta, tuple) else self.beta

    def reads(self, layer: int) -> bool:
        """Whether a selection wants the attention of layer `layer` (1-based): a beta of 1 forgets what was before."""
        for later in range(layer, self.last + 1):
            if later > layer and self.beta_at(later) == 1:
                return False
            if later in self.keep_ratio:
                return True
        return False

    def check_depth(self, depth: int) -> None:
        """Hold the schedule against a model's depth.

        Raises:
            InvalidInput: layers that the model does not have, or another number of betas.
        """
        if self.last > depth:
            raise InvalidInput(f"token exit at layer {self.last}, but the model has {depth}; give keep_ratio")
        if isinstance(self.beta, tuple) and len(self.beta) != depth:
            raise InvalidInput(f"beta is one number or one for each of the {depth} layers, got {len(self.beta)}")

    def to_data(self) -> dict[str, Any]:
        """Plain data; `TokenExit(**data)` is the same again, also after JSON made words of the layer numbers."""
        return asdict(self)


def _layer(number: Any) -> int:
    try:
        layer = int(number)
    except (TypeError, ValueError):
        layer = 0
    if layer < 1 or isinstance(number, float):
        raise InvalidInput(f"keep_ratio's layers are whole numbers from 1, got {number!r}")
    return layer


def class_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """How much the first token looks at each of the others, mean over heads, (B, T-1) in float32.

    Args:
        query: (B, H, T, d).
        key: (B, H, T, d).
        mask: (B, 1, T, T) bool, True = may be looked at; None = all.
        scaling: of the products.
    """
    looks = (query[:, :, :1] @ key.transpose(2, 3)).float() * scaling  # (B, H, 1, T)
    if mask is not None:
        looks = looks.masked_fill(~mask[:, :, :1], torch.finfo(looks.dtype).min)
    return looks.softmax(dim=-1).mean(dim=1)[:, 0, 1:]


def class_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The fast kernel's output; in place of weights, `class_row` of these very tensors, worked out when it is called.

    So a layer whose row nobody wants runs at full speed. The row is exact, costs O(T d) and knows no dropout.
    """
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return output, partial(class_row, query, key, attention_mask, scaling)


AttentionInterface.register(CLASS_ATTENTION, class_attention)
AttentionMaskInterface.register(CLASS_ATTENTION, sdpa_mask)


def kept(counts: Tensor, ratio: float) -> Tensor:
    """How many of `counts` (N,) tokens stay, the first one not counted: ceil, at least 1."""
    share = Fraction(ratio).limit_denominator(FINEST)
    asked = (counts * share.numerator + share.denominator - 1) // share.denominator
    return torch.minimum(asked.clamp(min=1), counts)


@final
@dataclass(frozen=True)
class Selection:
    """Who stays, and what stands for those who left; callable on any states of these tokens.

    Attributes:
        columns: (B, T') where each token comes from.
        fused: (B, T') bool, where a fusion token stands in place of the column named.
        weights: (B, T) of the tokens that left, 0 for the others; a fusion token is the sum of its states by these.
        mask: (B, T') 1 for a real token.
        scores: (B, T'-1) the memory of the tokens that are there now, but the first.
    """

    columns: Tensor
    fused: Tensor
    weights: Tensor
    mask: Tensor
    scores: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """(B, T', D) of states (B, T, D)."""
        stay = states.gather(1, self.columns.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        if not torch.compiler.is_exporting() and not self.fused.any():
            return stay
        fusion = torch.bmm(self.weights.to(states.dtype).unsqueeze(1), states).to(states.dtype)  # (B, 1, D)
        return torch.where(self.fused.unsqueeze(-1), fusion, stay)


def select(scores: Tensor, mask: Tensor, ratio: float, fusion: str) -> Selection | None:
    """Each sample's choice among its own tokens; None where nobody has one to lose.

    Args:
        scores: (B, T-1) the memory, of all tokens but the first.
        mask: (B, T) 1 for a real token, padding on the right.
        ratio: see `TokenExit.keep_ratio`.
        fusion: one of FUSIONS.
    """
    real = mask[:, 1:].bool()  # (B, T-1)
    counts = real.sum(dim=1)  # (B,)
    keep = kept(counts, ratio)
    if not torch.compiler.is_exporting() and torch.equal(keep, counts):
        return None
    order = _in_order(scores.masked_fill(~real, -torch.inf), descending=True)
    stays = _in_order(order) < keep.unsqueeze(1)  # (B, T-1): by rank, the real ones first
    left = real & ~stays
    fuses = left.any(dim=1) & (fusion != "none")  # (B,)
    width = 1 + keep + fuses  # (B,)
    least = 2 if torch.compiler.is_exporting() else 1  # see `Carry.take`
    widest = width.max().clamp(min=least).item()
    torch._check(widest <= mask.shape[1])  # type: ignore[no-untyped-call]  # `torch.export` cannot know it
    place = torch.arange(widest, device=scores.device)  # (T',)

    first = torch.zeros_like(real[:, :1])
    gone = torch.cat((first, ~stays), dim=1)  # (B, T)
    columns = _in_order(gone.long())[:, :widest]  # (B, T'), those who stay in order
    fused = fuses.unsqueeze(1) & (place == 1 + keep.unsqueeze(1))  # (B, T')
    weights = torch.where(torch.cat((first, left), dim=1), _with_first(scores), 0.0)  # (B, T)
    mean = weights.sum(dim=1, keepdim=True) / left.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    after = torch.where(fused, mean, _with_first(scores).gather(1, columns))  # (B, T')
    if fusion == "weighted_mean":
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return Selection(columns, fused, weights, (place < width.unsqueeze(1)).to(mask.dtype), after[:, 1:])


def _in_order(values: Tensor, descending: bool = False) -> Tensor:
    """(B, T) places of values (B, T), sorted; equal ones stay in order, as they always do in ONNX."""
    stable = {} if torch.compiler.is_exporting() else {"stable": True}
    return values.argsort(dim=1, descending=descending, **stable)


def _with_first(scores: Tensor) -> Tensor:
    """(B, T) of scores (B, T-1): the first token has none."""
    return torch.cat((scores.new_zeros(len(scores), 1), scores), dim=1)


def step(
    setting: TokenExit, layer: int, carry: Carry, row: Callable[[], Tensor], config: PreTrainedConfig
) -> tuple[Carry, Selection | None]:
    """What a layer does between its halves: remember its attention and, if it is in the schedule, select.

    Args:
        setting: who leaves where.
        layer: its number, 1-based.
        carry: with the states behind its attention, (B, T, D).
        row: what its attention function told.
        config: the encoder's.

    Returns:
        The carry of those who stay, and the selection; None = everybody stays.

    Raises:
        InvalidInput: another attention implementation was set, which does not tell the row.
    """
    if not callable(row):
        raise InvalidInput(
            f"token exit needs the attention implementation {CLASS_ATTENTION!r}, which the model has set"
        )
    looked_at = row()  # (B, T-1)
    before = looked_at if carry.token_scores is None else carry.token_scores
    scores = torch.lerp(before, looked_at, setting.beta_at(layer))
    after = replace(carry, token_scores=None if layer == setting.last else scores)
    ratio = setting.keep_ratio.get(layer, 1.0)
    mask = carry.hidden.new_ones(carry.hidden.shape[:2]).long() if carry.mask is None else carry.mask
    chosen = select(scores, mask, ratio, setting.fusion) if ratio < 1 else None
    if chosen is None:
        return after, None
    hidden = chosen(carry.hidden)
    if after.token_scores is not None:
        after = replace(after, token_scores=chosen.scores)
    if carry.mask is None:  # all samples are of one length, and stay so
        return replace(after, hidden=hidden), chosen
    attention = padding_mask(config, hidden, chosen.mask)
    shares = None if carry.shares is None else token_shares(chosen.mask)
    return replace(after, hidden=hidden, mask=chosen.mask, attention=attention, shares=shares), chosen
