"""MPNet: BERT's layers, whose attention also takes a bias for each distance between two tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast, final

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from offramp.model.backbones.base import Backbone, OwnHead, padding_mask, real_tokens
from offramp.model.backbones.bert import BERT_HALVES, ROBERTA_HEAD
from offramp.types.carry import Carry


@final
class MPNet(Backbone):
    """Song et al., "MPNet: Masked and Permuted Pre-training for Language Understanding", NeurIPS 2020.

    The bias depends on nothing but the distance, so all layers and all samples share one, in `Carry.pair_bias`.
    """

    has_halves = True

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the encoder with random weights."""
        return AutoModel.from_config(config, add_pooling_layer=False)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """Return None: the pooler of the checkpoints was not trained."""
        return None

    @classmethod
    def own_head(cls, config: PreTrainedConfig) -> OwnHead:
        """Return the paths of a fine-tuned classifier's head."""
        return ROBERTA_HEAD

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first layer."""
        names = ("input_ids", "inputs_embeds", "position_ids")
        arguments = {name: inputs[name] for name in names if name in inputs}
        hidden: Tensor = self.model.get_submodule("embeddings")(**arguments)
        mask = real_tokens(inputs)
        attention = padding_mask(self.model.config, hidden, mask)
        bias = self.model.encoder.compute_position_bias(hidden[:1])  # (1, H, T, T)
        return Carry(hidden, mask, attention, pair_bias=bias)

    def block(self, number: int, carry: Carry) -> Carry:
        """Run one layer."""
        return replace(carry, hidden=self._layer(number)(carry.hidden, carry.attention, carry.pair_bias)[0])

    def attention_half(self, number: int, carry: Carry) -> tuple[Tensor, Tensor | None]:
        """Run the first half of a layer."""
        attended: Tensor = self._layer(number).get_submodule("attention")(
            carry.hidden, carry.attention, carry.pair_bias
        )[0]
        return attended, None

    def feed_forward_half(self, number: int, attended: Tensor) -> Tensor:
        """Run the second half of a layer, up to the sum before its last norm."""
        return BERT_HALVES.feed_forward_half(self._layer(number), attended)

    def final_norm(self, number: int) -> nn.Module:
        """Return the last norm of a layer."""
        return self._layer(number).get_submodule(BERT_HALVES.final_norm)

    def _layer(self, number: int) -> nn.Module:
        return cast(nn.Module, self.model.encoder.layer[number])
