"""An encoder of another depth, from the layers of one that there is.

Cut: the first layers of a pre-trained encoder, as BERT-6L in Zhou et al., "BERT Loses Patience", NeurIPS 2020, table 1.
Doubled: every layer twice in a row, a deeper encoder without a download.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.model.backbones.bert import FAMILIES, Bert


def restack(encoder: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """An encoder made of the given layers of another one, in that order; the weights are copied.

    ALBERT's layers share their weights, so only its depth changes: each group of layers runs as often as it is named.

    Args:
        encoder: left as it is; of a model with a head, its encoder counts.
        layers: 0-based, e.g. `range(6)` = the first six, `[0, 0, 1, 1]` = the first two, twice each.

    Raises:
        UnsupportedBackbone: a family that is not a row of `offramp.model.backbones.bert`.
        InvalidInput: no layers, a layer that is not there, or shared layers that cannot run in that order.
    """
    chosen = list(layers)
    kind = encoder.base_model.config.model_type
    if kind not in FAMILIES:
        raise UnsupportedBackbone(
            f"the layers of a {kind} encoder cannot be chosen; those of {', '.join(FAMILIES)} can"
        )
    copied = copy.deepcopy(encoder.base_model)
    config, cut = copied.config, Bert(copied)
    depth, held = config.num_hidden_layers, len(cut.layers)
    if not chosen:
        raise InvalidInput(f"an encoder needs at least one layer; this one has 0 to {depth - 1} to choose from")
    if absent := [number for number in chosen if not 0 <= number < depth]:
        raise InvalidInput(f"there is no layer {absent[0]}: the encoder's layers are 0 to {depth - 1}")
    config.num_hidden_layers = len(chosen)
    if kind == "albert":
        wanted = [number * held // depth for number in chosen]
        given = [place * held // len(chosen) for place in range(len(chosen))]
        if wanted != given:
            raise InvalidInput(f"ALBERT runs its {held} groups of layers {given} at depth {len(given)}, not {wanted}")
        return copied
    alike = {id(config): config}  # layers go on sharing the encoder's configuration
    stack = nn.ModuleList(copy.deepcopy(cut.layers[number], dict(alike)) for number in chosen)
    for place, layer in enumerate(stack):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                module.layer_idx = place  # type: ignore[assignment]
    copied.set_submodule(cut.family.layers, stack)
    return copied
