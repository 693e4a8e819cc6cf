"""Build an encoder of another depth from the layers of an existing one.

Cut: the first layers of a pre-trained encoder, as BERT-6L in Zhou et al., "BERT Loses Patience", NeurIPS 2020, table 1.
Doubled: every layer twice in a row, a deeper encoder without a download.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.model.adapters import without_wrappers
from offramp.model.backbones.bert import FAMILIES, Bert


def restack(encoder: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """Return an encoder made of layers of another one, in that order; the weights are copied.

    ALBERT's layers share their weights, so only its depth changes: each group of layers runs as often as it is listed.

    Args:
        encoder: not changed; of a model with a head or with exits, its encoder is used. Adapters of PEFT are merged.
        layers: 0-based, e.g. `range(6)` = the first six, `[0, 0, 1, 1]` = the first two, twice each.

    Raises:
        UnsupportedBackbone: a family that is not a row of `offramp.model.backbones.bert`.
        InvalidInput: no layers, a layer that does not exist, or shared layers that cannot run in that order.
    """
    numbers, encoder = list(layers), without_wrappers(encoder)
    model_type = encoder.base_model.config.model_type
    if model_type not in FAMILIES:
        raise UnsupportedBackbone(
            f"the layers of a {model_type} encoder cannot be chosen; those of {', '.join(FAMILIES)} can"
        )
    copied = copy.deepcopy(encoder.base_model)
    config, view = copied.config, Bert(copied)
    depth, groups = config.num_hidden_layers, len(view.layers)
    if not numbers:
        raise InvalidInput(f"an encoder needs at least one layer; this one has 0 to {depth - 1} to choose from")
    if absent := [number for number in numbers if not 0 <= number < depth]:
        raise InvalidInput(f"there is no layer {absent[0]}: the encoder's layers are 0 to {depth - 1}")
    config.num_hidden_layers = len(numbers)
    if model_type == "albert":
        requested = [number * groups // depth for number in numbers]
        possible = [index * groups // len(numbers) for index in range(len(numbers))]
        if requested != possible:
            raise InvalidInput(
                f"ALBERT runs its {groups} groups of layers {possible} at depth {len(numbers)}, not {requested}"
            )
        return copied
    shared = {id(config): config}  # layers go on sharing the encoder's configuration
    stack = nn.ModuleList(copy.deepcopy(view.layers[number], dict(shared)) for number in numbers)
    for index, layer in enumerate(stack):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                module.layer_idx = index  # type: ignore[assignment]
    copied.set_submodule(view.family.layers, stack)
    return copied
