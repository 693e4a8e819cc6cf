"""What an encoder must offer to get exits: its embedding, and its layers one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from offramp.values import Carry


class Backbone(ABC):
    """A view of a transformers encoder, cut at its layers. It owns nothing: the weights stay where they are.

    Attributes:
        model: the encoder, without a head.
    """

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

    @abstractmethod
    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """What goes into the first layer.

        Args:
            inputs: `input_ids` (B, T), `attention_mask` (B, T) with the padding on the right, and what else the
                tokenizer gives.
        """

    @abstractmethod
    def block(self, number: int, carry: Carry) -> Carry:
        """Run layer `number` (0-based)."""
