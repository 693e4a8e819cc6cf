"""Train on from a model with exits: its exits go on where they have the same form."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from offramp.model.config import MultiExitConfig
from offramp.types.file_format import CONFIG_FORMAT

logger = logging.get_logger(__name__)

FORM = ("head", "pooling", "format")  # of the classifiers
SETTINGS = ("head", "pooling", "exit_layers", "bypass", "certainty", "memory", "token_exit")


def has_exits(model: PreTrainedModel | None) -> bool:
    """Return True for a model with exits."""
    return model is not None and isinstance(model.config, MultiExitConfig)


def matching_outputs(
    config: MultiExitConfig, num_labels: int | None, id2label: Mapping[int, str] | None, problem_type: str | None
) -> dict[str, Any] | None:
    """Return a model's outputs if they are the requested ones, as arguments of a configuration; else None.

    Args:
        config: of a model with exits.
        num_labels: requested; None = any number.
        id2label: requested; None = any names.
        problem_type: requested; None = any.
    """
    same = num_labels in (None, config.num_labels) and id2label in (None, config.id2label)
    if not same or problem_type not in (None, config.problem_type):
        return None
    outputs = {name: getattr(config, name) for name in ("id2label", "problem_type", "exit_dropout")}
    return outputs | {"format": config.format if config.head == "attention" else CONFIG_FORMAT}


def same_classifiers(one: MultiExitConfig, other: MultiExitConfig) -> bool:
    """Return True if the classifiers of two models have one form."""
    return all(getattr(one, name) == getattr(other, name) for name in FORM)


def copy_exits(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Copy the exits that both models have in the same form, and log which settings differ.

    Args:
        source: a model with exits.
        target: a model with exits on the same encoder and for the same outputs; its other exits stay as they are.
    """
    old, new = source.config, target.config
    # 1) classifiers, with their poolers; a fine-tuned model's own head stays the last exit, whatever the others are
    same = same_classifiers(old, new)
    before = {layer: number for number, layer in enumerate(old.exit_layers)}
    for exit, layer in enumerate(new.exit_layers):
        if layer in before and (same or (new.own_head is not None and exit == target.heads.last)):
            _copy_classifier(source.heads, before[layer], target.heads, exit)
        # 2) bypasses
        if layer in before and new.bypass is not None and new.bypass == old.bypass:
            target.bypasses[exit].load_state_dict(source.bypasses[before[layer]].state_dict())
    # 3) the gate
    if same and new.certainty and old.certainty:
        target.gate.load_state_dict(source.gate.state_dict())
    changes = [
        f"{name} {getattr(new, name)} (was {getattr(old, name)})"
        for name in SETTINGS
        if getattr(old, name) != getattr(new, name)
    ]
    # 4) the exit before the first layer, which reads nothing of the others
    if old.lexical is not None and new.lexical == {**old.lexical, "fitted_rows": 0}:
        target.lexical_exit, new.lexical = copy.deepcopy(source.lexical_exit), dict(old.lexical)
    elif old.lexical is not None:
        changes.append("the exit before the first layer " + ("is left out" if new.lexical is None else "starts anew"))
    if same:
        logger.warning("the exits go on from their weights%s", f"; but {', '.join(changes)}" if changes else "")
    else:
        which = "the early exits start" if new.own_head is not None else "every exit starts"
        logger.warning("%s anew: %s", which, ", ".join(changes))


def _copy_classifier(source: Any, old: int, target: Any, new: int) -> None:
    """Copy the classifier of exit `old` of some heads to exit `new` of others, with its pooler or attention."""
    pairs: list[tuple[nn.Module, nn.Module]] = [(target.classifiers[new], source.classifiers[old])]
    if new in target.pooler_of and old in source.pooler_of:
        pairs.append((target.poolers[target.pooler_of[new]], source.poolers[source.pooler_of[old]]))
    if new < len(target.attentions) and old < len(source.attentions):
        pairs.append((target.attentions[new], source.attentions[old]))
    for taker, original in pairs:
        taker.load_state_dict(original.state_dict())
