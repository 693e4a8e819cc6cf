"""DeBERTa, versions 1 to 3: attention with separate terms for content and for distance.

He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", ICLR 2021. Every block looks distances up in
one embedding; the row for a pair of tokens depends on their positions alone, so all samples share the rows, in
`Carry.pair_bias`. Version 2 may have a convolution over the embedding that joins after the first layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, final

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from offramp.model.backbones.base import Backbone, OwnHead, real_tokens
from offramp.model.backbones.bert import BERT_HALVES
from offramp.types.carry import Carry


@final
class Deberta(Backbone):
    """`deberta`, and `deberta-v2`, which includes DeBERTa-v3.

    Its layers do not run in halves with a convolution between the first two, nor in version 1, whose norm is a class
    of its own.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.encoder: Any = model.get_submodule("encoder")
        self.convolution: nn.Module | None = getattr(self.encoder, "conv", None)  # version 1 never has one
        self.has_halves = model.config.model_type == "deberta-v2" and self.convolution is None

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the encoder with random weights."""
        return AutoModel.from_config(config)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """Return the path of the pre-trained pooler."""
        return None

    @classmethod
    def own_head(cls, config: PreTrainedConfig) -> OwnHead:
        """Return the paths of a fine-tuned classifier's head."""
        return OwnHead("classifier", "pooler.dense", config.pooler_hidden_act)

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first layer."""
        names = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids")
        arguments = {name: inputs[name] for name in names if name in inputs}
        mask = real_tokens(inputs)
        hidden: Tensor = self.model.get_submodule("embeddings")(**arguments, mask=mask)
        distances: Tensor | None = self.encoder.get_rel_pos(hidden)  # (1, T, T)
        pairs = None if distances is None else distances.unsqueeze(1)
        return Carry(hidden, mask, self.encoder.get_attention_mask(mask), pair_bias=pairs)

    def block(self, number: int, carry: Carry) -> Carry:
        """Run one layer."""
        hidden: Tensor = self._run(self.encoder.layer[number], carry)
        if number == 0 and self.convolution is not None:
            hidden = self.convolution(carry.hidden, hidden, carry.mask)
        return replace(carry, hidden=hidden)

    def attention_half(self, number: int, carry: Carry) -> tuple[Tensor, Tensor | None]:
        """Run the first half of a layer."""
        return self._run(self.encoder.layer[number].attention, carry), None

    def feed_forward_half(self, number: int, attended: Tensor) -> Tensor:
        """Run the second half of a layer, up to the sum before its last norm."""
        return BERT_HALVES.feed_forward_half(self.encoder.layer[number], attended)

    def final_norm(self, number: int) -> nn.Module:
        """Return the last norm of a layer."""
        norm: nn.Module = self.encoder.layer[number].get_submodule(BERT_HALVES.final_norm)
        return norm

    def _run(self, module: Any, carry: Carry) -> Tensor:
        embedding = self.encoder.get_rel_embedding()
        outputs = module(carry.hidden, carry.attention, relative_pos=carry.pair_bias, rel_embeddings=embedding)
        return cast(Tensor, outputs[0])
