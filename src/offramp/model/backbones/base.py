"""What an encoder must offer to get exits: its embedding, its layers one at a time and, where it can, their parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from offramp.errors import UnsupportedBackbone
from offramp.types.carry import Carry


@dataclass(frozen=True)
class OwnHead:
    """Where a fine-tuned classifier of a family keeps its head, as paths from the classifier.

    Attributes:
        out: the last linear map.
        pooler: the map before it, on the first token; None where there is none.
        activation: behind the pooler, by transformers' name.
    """

    out: str
    pooler: str | None = None
    activation: str | None = None


class Backbone(ABC):
    """A view of a transformers encoder, cut at its layers. It owns nothing: the weights stay where they are.

    Attributes:
        model: the encoder, without a head.
        in_parts: whether `attend`, `feed_forward` and `norm` are there; `block` is the three in turn.
        absolute_positions: whether the embedding alone tells the blocks where a token stands, so that tokens may be
            taken out between blocks.
        input_name: what `embed` reads: "input_ids", or "pixel_values" of images.
    """

    in_parts: bool = False
    absolute_positions: ClassVar[bool] = False
    input_name: ClassVar[str] = "input_ids"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @classmethod
    @abstractmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """The encoder with random weights, without the parts that exits do not use (its own pooler)."""

    @classmethod
    @abstractmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """Where a pre-trained model of this family keeps a (D, D) pooler; None if it has none."""

    @classmethod
    def own_head(cls, config: PreTrainedConfig) -> OwnHead | None:
        """Where a fine-tuned classifier of this family keeps its head; None if offramp cannot keep it."""
        return None

    @classmethod
    def widths(cls, config: PreTrainedConfig) -> list[int]:
        """The width D of the hidden states after each layer."""
        return [config.hidden_size] * config.num_hidden_layers

    @abstractmethod
    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """What goes into the first layer.

        Args:
            inputs: `input_ids` (B, T), `attention_mask` (B, T) with the padding on the right, and what else the
                tokenizer gives; or `pixel_values` (B, channels, H, W).
        """

    @abstractmethod
    def block(self, number: int, carry: Carry) -> Carry:
        """Run layer `number` (0-based)."""

    def read(self, hidden: Tensor) -> Tensor:
        """What an exit sees of the hidden states, (B, T, D); after the last layer, transformers' last_hidden_state."""
        return hidden

    def attend(self, number: int, carry: Carry) -> tuple[Tensor, Any]:
        """The first half of layer `number` (0-based): self-attention, residual and norm.

        Returns:
            The states (B, T, D), and what the attention function tells of its weights (see
            `offramp.model.token_exit.class_attention`).
        """
        raise self._whole()

    def feed_forward(self, number: int, attended: Tensor) -> Tensor:
        """The second half of layer `number` (0-based): the sum (B, T, D) before its last norm."""
        raise self._whole()

    def norm(self, number: int) -> nn.Module:
        """The last norm of layer `number` (0-based)."""
        raise self._whole()

    def _whole(self) -> UnsupportedBackbone:
        return UnsupportedBackbone(f"the layers of this {self.model.config.model_type} do not come in parts")


def padding_mask(config: PreTrainedConfig, hidden: Tensor, mask: Tensor) -> Tensor | None:
    """The blocks' attention mask where nothing but padding (B, T) is hidden: transformers', of one row for all tokens.

    Returns:
        (B, 1, 1, T), (B, T) for flash attention, or None where there is no padding.
    """
    attention: Tensor | None = create_bidirectional_mask(config, inputs_embeds=hidden, attention_mask=mask)
    return attention if attention is None or attention.dim() != 4 else attention[:, :, :1]


def real_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """The attention mask (B, T) that was given; without one, every token is real."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask
