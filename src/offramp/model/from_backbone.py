"""Build a model with exits on an encoder: resolve the outputs, copy weights and heads."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from offramp.data.label_names import text_names
from offramp.errors import InvalidInput
from offramp.model.adapters import without_wrappers
from offramp.model.backbones.base import Backbone, OwnHead
from offramp.model.backbones.registry import load_backbone
from offramp.model.heads import PLAIN, Heads
from offramp.model.hub import is_classifier, load_encoder
from offramp.model.reuse import copy_exits, has_exits, matching_outputs

logger = logging.get_logger(__name__)


@final
@dataclass(frozen=True)
class Source:
    """An encoder that gets exits.

    Attributes:
        config: the encoder's configuration, a copy.
        model: the model whose weights are copied; None = random weights.
        head: the fine-tuned head that becomes the last exit's; None = there is none.
        outputs: `problem_type`, and `num_labels` or `id2label`.
        keeps_exits: the model has exits for these outputs, which go on.
    """

    config: PreTrainedConfig
    model: PreTrainedModel | None
    head: OwnHead | None
    outputs: Mapping[str, Any]
    keeps_exits: bool = False

    @property
    def own_head(self) -> str | None:
        """Return the value of `MultiExitConfig.own_head`."""
        if self.keeps_exits and self.model is not None:
            own: str | None = self.model.config.own_head
            return own
        return (self.head.activation or PLAIN) if self.head else None

    def copy_weights(self, encoder: Backbone, target: Any) -> None:
        """Copy the encoder's weights, its pooler and its head; exits start as close to the source as they can.

        Args:
            encoder: takes the encoder's weights.
            target: the model with exits. Poolers start from the pre-trained one, the last classifier from the source's
                head, and the norms of bypasses as copies of the layers'.

        Raises:
            InvalidInput: the source lacks weights of the encoder.
        """
        if self.model is None:
            return
        # 1) the encoder
        weights = self.model.base_model.state_dict()
        missing = encoder.model.load_state_dict(weights, strict=False).missing_keys
        if any(".base_layer." in name for name in weights):
            raise InvalidInput("adapters of PEFT lie in the encoder's layers: give the PeftModel, which can merge them")
        if missing:
            raise InvalidInput(f"the encoder has no weights for {missing[0]} and {len(missing) - 1} more")
        # 2) what exits start from
        heads: Heads = target.heads
        path = encoder.pooler_path(self.config)
        if path and f"{path}.weight" in weights:
            for pooler in heads.poolers:
                pooler.load_state_dict({name: weights[f"{path}.{name}"] for name in ("weight", "bias")})
        for layer, branch in zip(target.config.exit_layers, target.bypasses, strict=False):
            branch.get_submodule("norm").load_state_dict(encoder.final_norm(layer - 1).state_dict())
        # 3) exits go on; or the fine-tuned head becomes the last exit's; poolers of early exits start from its pooler
        if self.keeps_exits:
            copy_exits(self.model, target)
        elif self.head is not None:
            heads.classifiers[-1].load_state_dict(self.model.get_submodule(self.head.out).state_dict())
            if self.head.pooler is not None:
                for pooler in heads.poolers:
                    pooler.load_state_dict(self.model.get_submodule(self.head.pooler).state_dict())
        elif self.model.base_model is not self.model:
            logger.warning("the head of %s is left out: every exit starts anew", type(self.model).__name__)


def resolve_source(
    backbone: str | os.PathLike[str] | PreTrainedConfig | nn.Module,
    num_labels: int | None,
    id2label: Mapping[int, str] | None,
    problem_type: str | None,
) -> Source:
    """Load the encoder and decide on its outputs; the arguments are those of `MultiExitModel.from_backbone`.

    Raises:
        UnsupportedBackbone: an encoder that offramp cannot run layer by layer.
        InvalidInput: nothing can be loaded, or outputs that do not fit together.
    """
    if isinstance(backbone, (str, os.PathLike)):
        backbone = load_encoder(backbone)
    backbone = without_wrappers(backbone)
    model = backbone if isinstance(backbone, PreTrainedModel) else None
    config = copy.deepcopy(model.base_model.config if model is not None else backbone)
    if model is not None and has_exits(model):
        own_outputs = matching_outputs(model.config, num_labels, id2label, problem_type)
        if own_outputs is not None:
            return Source(config, model, None, own_outputs, keeps_exits=True)
    outputs = _label_arguments(num_labels, id2label) | {"problem_type": problem_type}
    head = _own_head(model, num_labels, outputs.get("id2label"), problem_type)
    if head is not None and model is not None:
        outputs = {"id2label": model.config.id2label, "problem_type": model.config.problem_type}
    if getattr(config, "hidden_dropout_prob", getattr(config, "dropout", None)) == 0:
        outputs["exit_dropout"] = 0.0  # exits drop out where the encoder does
    return Source(config, model, head, outputs)


def _own_head(
    model: PreTrainedModel | None, num_labels: int | None, id2label: Mapping[int, str] | None, problem_type: str | None
) -> OwnHead | None:
    """Return the head of a fine-tuned classifier, if its outputs are the requested ones."""
    if model is None or not is_classifier([type(model).__name__]):
        return None
    config = model.config
    own = {number: str(name) for number, name in config.id2label.items()}
    same_outputs = num_labels in (None, config.num_labels) and id2label in (None, own)
    if not same_outputs or problem_type not in (None, config.problem_type):
        return None
    head: OwnHead | None = load_backbone(config.model_type).own_head(config)
    return head


def _label_arguments(num_labels: int | None, id2label: Mapping[int, str] | None) -> dict[str, Any]:
    if id2label is None:
        if num_labels is not None and num_labels < 1:
            raise InvalidInput(f"num_labels must be at least 1, got {num_labels}")
        return {"num_labels": 2 if num_labels is None else num_labels}
    id2label = {int(key) if str(key).isdecimal() else key: name for key, name in id2label.items()}  # JSON has text keys
    if num_labels not in (None, len(id2label)):
        raise InvalidInput(f"num_labels is {num_labels}, but id2label names {len(id2label)}")
    if not id2label or sorted(id2label) != list(range(len(id2label))):
        raise InvalidInput(f"id2label must name the outputs 0, 1, ... without a gap, got {sorted(id2label)}")
    return {"id2label": dict(enumerate(text_names(id2label[number] for number in range(len(id2label)))))}
