"""The interface of an encoder that gets exits: its embedding, its layers one by one and, where possible, in halves."""

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
    """The head of a fine-tuned classifier, as paths from the classifier.

    Attributes:
        out: the last linear map.
        pooler: the map before it, on the first token; None where there is none.
        activation: after the pooler, by transformers' name.
    """

    out: str
    pooler: str | None = None
    activation: str | None = None


class Backbone(ABC):
    """A view of a transformers encoder, layer by layer; it owns no weights.

    Attributes:
        model: the encoder, without a head.
        has_halves: True if `attention_half`, `feed_forward_half` and `final_norm` exist; `block` is the three in turn.
        absolute_positions: True if positions enter by the embedding alone, so that tokens may be removed between
            blocks.
        input_name: the input of `embed`: "input_ids", or "pixel_values" of images.
    """

    has_halves: bool = False
    absolute_positions: ClassVar[bool] = False
    input_name: ClassVar[str] = "input_ids"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @classmethod
    @abstractmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the encoder with random weights, without the modules that exits do not use (its own pooler)."""

    @classmethod
    @abstractmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """Return the path of the (D, D) pooler in a pre-trained model of this family; None if it has none."""

    @classmethod
    def own_head(cls, config: PreTrainedConfig) -> OwnHead | None:
        """Return the paths of a fine-tuned classifier's head; None if offramp cannot keep it."""
        return None

    @classmethod
    def widths(cls, config: PreTrainedConfig) -> list[int]:
        """Return the width D of the hidden states after each layer."""
        return [config.hidden_size] * config.num_hidden_layers

    @abstractmethod
    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first layer.

        Args:
            inputs: `input_ids` (B, T) or `inputs_embeds` (B, T, E), `attention_mask` (B, T) with the padding on the
                right, and the tokenizer's other outputs; or `pixel_values` (B, channels, H, W).
        """

    @abstractmethod
    def block(self, number: int, carry: Carry) -> Carry:
        """Run layer `number` (0-based)."""

    def exit_states(self, hidden: Tensor) -> Tensor:
        """Return the states that an exit reads, (B, T, D)."""
        return hidden

    def last_of_states(self, hidden: Tensor) -> Tensor:
        """Return the last of transformers' hidden_states from the states after the last layer."""
        return self.exit_states(hidden)

    def attention_half(self, number: int, carry: Carry) -> tuple[Tensor, Any]:
        """Run the first half of layer `number` (0-based): self-attention, residual and norm.

        Returns:
            The states (B, T, D), and the attention function's second output (see
            `offramp.model.token_exit.class_attention`).
        """
        raise self._no_halves()

    def feed_forward_half(self, number: int, attended: Tensor) -> Tensor:
        """Run the second half of layer `number` (0-based), up to the sum (B, T, D) before its last norm."""
        raise self._no_halves()

    def final_norm(self, number: int) -> nn.Module:
        """Return the last norm of layer `number` (0-based)."""
        raise self._no_halves()

    def _no_halves(self) -> UnsupportedBackbone:
        return UnsupportedBackbone(f"the layers of this {self.model.config.model_type} do not run in halves")


def padding_mask(config: PreTrainedConfig, hidden: Tensor, mask: Tensor) -> Tensor | None:
    """Return the blocks' attention mask that hides the padding alone: transformers', with one row for all tokens.

    Returns:
        (B, 1, 1, T), (B, T) for flash attention, or None where there is no padding.
    """
    attention: Tensor | None = create_bidirectional_mask(config, hidden, attention_mask=mask)
    return attention if attention is None or attention.dim() != 4 else attention[:, :, :1]


def real_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the attention mask (B, T) of the inputs; without one, every token is real."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"]
    if "input_ids" in inputs:
        return torch.ones_like(inputs["input_ids"])
    embeddings = inputs["inputs_embeds"]  # (B, T, E)
    return torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
