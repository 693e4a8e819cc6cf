"""The model that `offramp train` trains, and the data read for its labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import columns_of, reading_of
from offramp.errors import InvalidInput

if TYPE_CHECKING:
    from offramp.training.objectives.base import Objective


def new_with_data(
    start: str, train_source: str, validation_source: str, options: Mapping[str, Any]
) -> tuple[Any, Any, Any]:
    """Return a model for the labels of the data, the data to train on, and the data to validate on.

    A model that has these classes in another order gets the data in its own order, and keeps its exits.
    """
    from offramp.data.examples import read_examples
    from offramp.model.backbones.restack import restack
    from offramp.model.hub import load_encoder
    from offramp.model.modeling import MultiExitModel
    from offramp.model.reuse import has_exits

    read = partial(read_examples, columns=columns_of(options), task=options["task"], reading=reading_of(options))
    data = read(train_source, split="train")
    source = load_encoder(start)
    own = tuple(source.config.id2label.values())
    if sorted(own) == sorted(data.label_names) and own != tuple(data.label_names):
        data = read(train_source, split="train", label_names=own)
    held_out = read(validation_source, split="validation", label_names=data.label_names or None)
    first = data.labels[0]
    outputs = len(first) if isinstance(first, list) else 1
    labels = {"id2label": dict(enumerate(data.label_names))} if data.label_names else {"num_labels": outputs}
    layers = options["layers"]
    encoder = restack(source, range(layers)) if layers else source
    if layers and has_exits(source):
        click.echo(f"--layers {layers}: the exits of {start} are left out, every exit starts anew", err=True)
    model = MultiExitModel.from_backbone(encoder, problem_type=data.problem_type, **labels, **_exits(options))
    return model, data, held_out


def fine_tuned_with_data(
    start: str, train_source: str, validation_source: str, options: Mapping[str, Any]
) -> tuple[Any, Any, Any]:
    """Return a fine-tuned model that keeps its head or its last exit, and the same data read for its labels."""
    from offramp.inference.record import read_for
    from offramp.model.hub import load_encoder
    from offramp.model.modeling import MultiExitModel
    from offramp.model.reuse import has_exits, same_classifiers

    if options["layers"]:
        raise click.UsageError("--freeze keeps the whole fine-tuned model, --layers a part of it; choose one")
    source = load_encoder(start)
    model = MultiExitModel.from_backbone(source, **_exits(options))
    if has_exits(source) and model.config.own_head is None and not same_classifiers(source.config, model.config):
        form = f"--head {source.config.head} --pooling {source.config.pooling}"
        raise click.UsageError(f"--freeze keeps the last exit of {start}, which needs {form}")
    if not has_exits(source) and model.config.own_head is None:
        raise InvalidInput(f"{start}: --freeze keeps a fine-tuned classifier's head, and there is none to be kept")
    columns, reading = columns_of(options), reading_of(options)
    data = read_for(model.config, train_source, columns, "train", reading)
    return model, data, read_for(model.config, validation_source, columns, "validation", reading)


def finished_model(start: str) -> Any:
    """Return a model with exits, in the precision that it was saved in; None for another encoder.

    An adapter of PEFT is merged into its base model.
    """
    from transformers import AutoConfig

    from offramp.model.config import MultiExitConfig
    from offramp.model.files import adapter_settings
    from offramp.model.hub import from_pretrained_or_raise, load_encoder
    from offramp.model.loading import load_model
    from offramp.model.reuse import has_exits

    if adapter_settings(start) is not None:
        model = load_encoder(start)
        return model if has_exits(model) else None
    config = from_pretrained_or_raise(AutoConfig, start)
    return load_model(start) if isinstance(config, MultiExitConfig) else None


def objective_of(options: Mapping[str, Any]) -> Objective:
    """Return the objective that the options name; with --freeze without its first stage.

    Raises:
        UsageError: --freeze, and the objective has no stages.
    """
    from offramp.training.objectives.registry import OBJECTIVES, load_objective

    name = options["objective"]
    if not options["freeze"]:
        return load_objective(name)
    staged = [other for other in sorted(OBJECTIVES) if hasattr(load_objective(other), "freeze")]
    if name not in staged:
        reason = f"{options['backbone']} has no exits yet, and " if options["lexical"] else ""
        raise click.UsageError(f"{reason}--freeze goes with --objective {' or '.join(staged)}, not with {name}")
    return load_objective(name, freeze=True)


def _exits(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the exits as arguments of `from_backbone`."""
    from offramp.model.bypass import Bypass
    from offramp.model.lexical.config import LexicalExit
    from offramp.model.token_exit.config import TokenExit

    layer_list, rank, keep_list = options["exit_layers"], options["bypass_rank"], options["token_exit"]
    try:
        layers = [int(layer) for layer in layer_list.split(",")] if layer_list else None
    except ValueError:
        raise click.UsageError(f"--exit-layers takes numbers such as 2,4,6; got {layer_list!r}") from None
    try:
        pairs = [pair.split(":") for pair in keep_list.split(",")] if keep_list else []
        keep = {int(layer): float(share) for layer, share in pairs}
    except ValueError:
        raise click.UsageError(f"--token-exit takes layers and shares such as 2:0.7,4:0.7; got {keep_list!r}") from None
    return {
        **{name: options[name] for name in ("head", "pooling", "certainty", "memory")},
        "bypass": Bypass(rank=rank) if rank else None,
        "token_exit": TokenExit(keep_ratio=keep) if keep else None,
        "exit_layers": layers,
        "lexical": None if options["lexical"] is False else LexicalExit(),
    }
