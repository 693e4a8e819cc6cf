"""MPNet: BERT's layers, whose attention also takes a bias for each distance between two tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast, final

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from offramp.model.backbones.base import Backbone, OwnHead, padding_mask, real_tokens
from offramp.model.backbones.bert import BERT_PARTS, ROBERTA_HEAD
from offramp.types.carry import Carry


@final
class MPNet(Backbone):
    """Song et al., "MPNet: Masked and Permuted Pre-training for Language Understanding", NeurIPS 2020.

    The bias depends on nothing but the distance, so all layers and all samples share one, in `Carry.pair_bias`.
    """

    in_parts = True

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """See `Backbone.build`."""
        return AutoModel.from_config(config, add_pooling_layer=False)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """See `Backbone.pooler_path`: checkpoints have none that was trained."""
        return None

    @classmethod
    def own_head(cls, config: PreTrainedConfig) -> OwnHead:
        """See `Backbone.own_head`."""
        return ROBERTA_HEAD

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """See `Backbone.embed`."""
        taken = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
        hidden: Tensor = self.model.get_submodule("embeddings")(**taken)
        mask = real_tokens(inputs)
        attention = padding_mask(self.model.config, hidden, mask)
        bias = self.model.encoder.compute_position_bias(hidden[:1])  # (1, H, T, T)
        return Carry(hidden, mask, attention, pair_bias=bias)

    def block(self, number: int, carry: Carry) -> Carry:
        """See `Backbone.block`."""
        return replace(carry, hidden=self._layer(number)(carry.hidden, carry.attention, carry.pair_bias)[0])

    def attend(self, number: int, carry: Carry) -> tuple[Tensor, Tensor | None]:
        """See `Backbone.attend`."""
        attended: Tensor = self._layer(number).get_submodule("attention")(
            carry.hidden, carry.attention, carry.pair_bias
        )[0]
        return attended, None

    def feed_forward(self, number: int, attended: Tensor) -> Tensor:
        """See `Backbone.feed_forward`."""
        return BERT_PARTS.feed_forward(self._layer(number), attended)

    def norm(self, number: int) -> nn.Module:
        """See `Backbone.norm`."""
        return self._layer(number).get_submodule(BERT_PARTS.norm)

    def _layer(self, number: int) -> nn.Module:
        return cast(nn.Module, self.model.encoder.layer[number])
