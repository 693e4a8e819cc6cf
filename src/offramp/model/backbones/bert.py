"""BERT and the encoders built like it: an embedding, then layers that take hidden states and a mask.

A family is a row of names. To support another one, add its row here and its name in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast, final

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from offramp.model.backbones.base import Backbone, OwnHead, padding_mask, real_tokens
from offramp.types.carry import Carry


@dataclass(frozen=True)
class LayerHalves:
    """The two halves of a layer.

    Attributes:
        attention_half: (layer, states, attention mask) -> states after attention, residual and norm; the attention's
            weights.
        feed_forward_half: (layer, attended states) -> the sum before the last norm.
        final_norm: path of the last norm in a layer.
    """

    attention_half: Callable[[Any, Tensor, Tensor | None], tuple[Tensor, Any]]
    feed_forward_half: Callable[[Any, Tensor], Tensor]
    final_norm: str


def _albert_feed_forward_half(layer: Any, attended: Tensor) -> Tensor:
    return cast(Tensor, layer.ff_chunk(attended) + attended)


def _attention_half(layer: Any, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Any]:
    return cast(tuple[Tensor, Any], layer.attention(hidden, mask))


def _bert_feed_forward_half(layer: Any, attended: Tensor) -> Tensor:
    output = layer.output
    return cast(Tensor, output.dropout(output.dense(layer.intermediate(attended))) + attended)


def _distilbert_attention_half(layer: Any, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Any]:
    attended, weights = layer.attention(hidden, attention_mask=mask)
    return layer.sa_layer_norm(attended + hidden), weights


def _distilbert_feed_forward_half(layer: Any, attended: Tensor) -> Tensor:
    return cast(Tensor, layer.ffn(attended) + attended)


BERT_HALVES = LayerHalves(_attention_half, _bert_feed_forward_half, "output.LayerNorm")
ALBERT_HALVES = LayerHalves(_attention_half, _albert_feed_forward_half, "full_layer_layer_norm")
ROBERTA_HEAD = OwnHead("classifier.out_proj", "classifier.dense", "tanh")
DISTILBERT_HALVES = LayerHalves(_distilbert_attention_half, _distilbert_feed_forward_half, "output_layer_norm")


@dataclass(frozen=True)
class Family:
    """The modules of a family, as paths from the encoder.

    Attributes:
        layers: the list of layers. A list shorter than the model is deep is shared: ALBERT runs each of its groups
            several times.
        inputs: arguments of the embedding, in the tokenizer's names.
        projection: the map from the embedding's width to the layers'; None where the family has none.
        pooler: the pre-trained pooler; None where the checkpoints have none.
        own_pooler: True if the encoder by default builds a pooler, which exits do not use.
        halves: of its layers.
        head: of a fine-tuned classifier.
    """

    layers: str = "encoder.layer"
    inputs: tuple[str, ...] = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids")
    projection: str | None = None
    pooler: str | None = None
    own_pooler: bool = True
    halves: LayerHalves = BERT_HALVES
    head: OwnHead = ROBERTA_HEAD


FAMILIES = {
    "albert": Family(
        layers="encoder.albert_layer_groups",
        projection="encoder.embedding_hidden_mapping_in",
        pooler="pooler",
        halves=ALBERT_HALVES,
        head=OwnHead("classifier", "albert.pooler", "tanh"),
    ),
    "bert": Family(pooler="pooler.dense", head=OwnHead("classifier", "bert.pooler.dense", "tanh")),
    "camembert": Family(),
    "distilbert": Family(
        layers="transformer.layer",
        inputs=("input_ids", "inputs_embeds", "position_ids"),
        own_pooler=False,
        halves=DISTILBERT_HALVES,
        head=OwnHead("classifier", "pre_classifier", "relu"),
    ),
    "electra": Family(
        projection="embeddings_project",
        own_pooler=False,
        head=OwnHead("classifier.out_proj", "classifier.dense", "gelu"),
    ),
    "roberta": Family(),
    "xlm-roberta": Family(),
}


@final
class Bert(Backbone):
    """An encoder of any family in `FAMILIES`."""

    has_halves = True
    absolute_positions: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.family = FAMILIES[model.config.model_type]
        self.layers = cast(nn.ModuleList, model.get_submodule(self.family.layers))

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the encoder with random weights."""
        without_pooler = {"add_pooling_layer": False} if FAMILIES[config.model_type].own_pooler else {}
        return AutoModel.from_config(config, **without_pooler)

    @classmethod
    def pooler_path(cls, config: PreTrainedConfig) -> str | None:
        """Return the path of the pre-trained pooler."""
        return FAMILIES[config.model_type].pooler

    @classmethod
    def own_head(cls, config: PreTrainedConfig) -> OwnHead:
        """Return the paths of a fine-tuned classifier's head."""
        return FAMILIES[config.model_type].head

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        """Return the input of the first layer."""
        arguments = {name: inputs.get(name) for name in self.family.inputs}
        hidden = self.model.get_submodule("embeddings")(**arguments)  # (B, T, E)
        config = self.model.config
        # ELECTRA has its projection only where the widths differ
        if self.family.projection and (config.model_type != "electra" or config.embedding_size != config.hidden_size):
            hidden = self.model.get_submodule(self.family.projection)(hidden)  # (B, T, D)
        mask = real_tokens(inputs)
        return Carry(hidden, mask, padding_mask(config, hidden, mask))

    def block(self, number: int, carry: Carry) -> Carry:
        """Run one layer."""
        return replace(carry, hidden=self._layer(number)(carry.hidden, carry.attention))

    def attention_half(self, number: int, carry: Carry) -> tuple[Tensor, Any]:
        """Run the first half of a layer; of an ALBERT group, first all its layers but the last."""
        *first, last = self._inner(number)
        hidden = carry.hidden
        for layer in first:
            hidden = layer(hidden, carry.attention)
        return self.family.halves.attention_half(last, hidden, carry.attention)

    def feed_forward_half(self, number: int, attended: Tensor) -> Tensor:
        """Run the second half of a layer, up to the sum before its last norm."""
        return self.family.halves.feed_forward_half(self._inner(number)[-1], attended)

    def final_norm(self, number: int) -> nn.Module:
        """Return the last norm of a layer."""
        norm: nn.Module = self._inner(number)[-1].get_submodule(self.family.halves.final_norm)
        return norm

    def _layer(self, number: int) -> nn.Module:
        index: int = number * len(self.layers) // self.model.config.num_hidden_layers
        return self.layers[index]

    def _inner(self, number: int) -> list[nn.Module]:
        """Return the layers that a layer consists of: itself, or the members of an ALBERT group."""
        layer = self._layer(number)
        grouped = self.model.config.model_type == "albert"
        return list(layer.get_submodule("albert_layers").children()) if grouped else [layer]
