"""BERT and the encoders built like it: an embedding, then layers that take hidden states and a mask.

A family is a row of names. To support another one, add its row here and its name in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast, final

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from offramp.backbones.base import Backbone
from offramp.values import Carry


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts, as paths from the encoder.

    Attributes:
        layers: the list of layers. A list shorter than the model is deep is shared: ALBERT runs each of its groups
            several times.
        inputs: what the embedding takes, in the tokenizer's names.
        projection: the map from the embedding's width to the layers'; None where the family has none.
        pooler: the pre-trained pooler; None where the checkpoints have none.
        own_pooler: whether the encoder builds a pooler of its own, which exits do not use, unless told not to.
    """

    layers: str = "encoder.layer"
    inputs: tuple[str, ...] = ("input_ids", "token_type_ids", "position_ids")
    projection: str | None = None
    pooler: str | None = None
    own_pooler: bool = True


FAMILIES = {
    "albert": Family(
        layers="encoder.albert_layer_groups",
        projection="encoder.embedding_hidden_mapping_in",
        pooler="pooler",
    ),
    "bert": Family(pooler="pooler.dense"),
    "camembert": Family(),
    "distilbert": Family(layers="transformer.layer", inputs=("input_ids", "position_ids"), own_pooler=False),
    "electra": Family(projection="embeddings_project", own_pooler=False),
    "roberta": Family(),
    "xlm-roberta": Family(),
}


@final
class Bert(Backbone):
    """Any family of the table above."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.family = FAMILIES[model.config.model_type]
        self.layers = cast(nn.ModuleList, model.get_submodule(self.family.layers))

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """See `Backbone.build`."""
        without_pooler = {"add_pooling_layer": False} if FAMILIES[config.model_type].own_pooler else {}
        return AutoModel.from_config(config, **without_pooler)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """See `Backbone.pooler_path`."""
        return FAMILIES[config.model_type].pooler

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """See `Backbone.embed`."""
        taken = {name: inputs[name] for name in self.family.inputs if name in inputs}
        hidden = self.model.get_submodule("embeddings")(**taken)  # (B, T, E)
        config = self.model.config
        # ELECTRA has its projection only where the widths differ
        if self.family.projection and (config.model_type != "electra" or config.embedding_size != config.hidden_size):
            hidden = self.model.get_submodule(self.family.projection)(hidden)  # (B, T, D)
        mask = inputs.get("attention_mask")
        mask = hidden.new_ones(hidden.shape[:2]).long() if mask is None else mask
        return Carry(hidden, mask, create_bidirectional_mask(config, inputs_embeds=hidden, attention_mask=mask))

    def block(self, number: int, carry: Carry) -> Carry:
        """See `Backbone.block`."""
        layer = self.layers[number * len(self.layers) // self.model.config.num_hidden_layers]
        return Carry(layer(carry.hidden, carry.attention), carry.mask, carry.attention)
