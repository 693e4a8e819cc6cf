"""DeBERTa, versions 1 to 3: attention that keeps what a token says apart from how far away it stands.

He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", ICLR 2021. Every block looks distances up in
one embedding; which row of it belongs to a pair of tokens depends on their places alone, so all samples share that, in
`Carry.pair_bias`. Version 2 may have a convolution over the embedding that joins after the first layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, final

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from offramp.model.backbones.base import Backbone, OwnHead, real_tokens
from offramp.model.backbones.bert import BERT_PARTS
from offramp.types.carry import Carry


@final
class Deberta(Backbone):
    """`deberta`, and `deberta-v2` with what is called DeBERTa-v3.

    Its layers do not come in parts where a convolution stands between the first two, nor in version 1, whose norm is a
    class of its own.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.encoder: Any = model.get_submodule("encoder")
        self.convolution: nn.Module | None = getattr(self.encoder, "conv", None)  # version 1 never has one
        self.in_parts = model.config.model_type == "deberta-v2" and self.convolution is None

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """See `Backbone.build`."""
        return AutoModel.from_config(config)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """See `Backbone.pooler_path`."""
        return None

    @classmethod
    def own_head(cls, config: PreTrainedConfig) -> OwnHead:
        """See `Backbone.own_head`."""
        return OwnHead("classifier", "pooler.dense", config.pooler_hidden_act)

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """See `Backbone.embed`."""
        names = ("input_ids", "token_type_ids", "position_ids")
        taken = {name: inputs[name] for name in names if name in inputs}
        mask = real_tokens(inputs)
        hidden: Tensor = self.model.get_submodule("embeddings")(**taken, mask=mask)
        distances: Tensor | None = self.encoder.get_rel_pos(hidden)  # (1, T, T)
        pairs = None if distances is None else distances.unsqueeze(1)
        return Carry(hidden, mask, self.encoder.get_attention_mask(mask), pair_bias=pairs)

    def block(self, number: int, carry: Carry) -> Carry:
        """See `Backbone.block`."""
        hidden: Tensor = self._run(self.encoder.layer[number], carry)
        if number == 0 and self.convolution is not None:
            hidden = self.convolution(carry.hidden, hidden, carry.mask)
        return replace(carry, hidden=hidden)

    def attend(self, number: int, carry: Carry) -> tuple[Tensor, Tensor | None]:
        """See `Backbone.attend`."""
        return self._run(self.encoder.layer[number].attention, carry), None

    def feed_forward(self, number: int, attended: Tensor) -> Tensor:
        """See `Backbone.feed_forward`."""
        return BERT_PARTS.feed_forward(self.encoder.layer[number], attended)

    def norm(self, number: int) -> nn.Module:
        """See `Backbone.norm`."""
        norm: nn.Module = self.encoder.layer[number].get_submodule(BERT_PARTS.norm)
        return norm

    def _run(self, module: Any, carry: Carry) -> Tensor:
        embedding = self.encoder.get_rel_embedding()
        found = module(carry.hidden, carry.attention, relative_pos=carry.pair_bias, rel_embeddings=embedding)
        return cast(Tensor, found[0])
