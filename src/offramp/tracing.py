"""One full-depth pass over a data set, kept: model + data -> Trace. It ends the modelling."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from offramp.batches import collate, encode, length_sorted, token_limit
from offramp.data import GUESSED, Columns, Examples, read_examples
from offramp.errors import DataError, InvalidInput, UnknownName
from offramp.model import MultiExitModel, load_folder
from offramp.values import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Trace

ENGINES = ("torch",)
TASKS = {SINGLE_LABEL: "classification", MULTI_LABEL: "multi-label", REGRESSION: "regression"}


def record(
    model: MultiExitModel | str | os.PathLike[str],
    dataset: str | os.PathLike[str] | Examples | Sequence[Mapping[str, Any]],
    engine: str = "torch",
    *,
    columns: Columns = GUESSED,
    split: str = "validation",
    batch_size: int = 32,
) -> Trace:
    """Run every layer on a data set and keep what every exit said.

    Args:
        model: a model, or the folder (or hub name) of one with its tokenizer.
        dataset: a file or a data set's name (see `offramp.data`), examples in memory, or rows that are tokenized
            already: mappings with `input_ids` (`pixel_values` of images) and perhaps `labels`, such as a
            `datasets.Dataset`. Texts need a model's folder.
        engine: what runs the model; "torch".
        columns: which columns of a file to read.
        split: which part of a named data set to read.
        batch_size: rows at once; it does not change the trace.

    Raises:
        DataError: rows or labels that do not fit the model.
        InvalidInput: texts but no tokenizer, or no rows.
    """
    if engine not in ENGINES:
        raise UnknownName(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if batch_size < 1:
        raise InvalidInput(f"batch_size must be at least 1, got {batch_size}")
    tokenizer = None
    if not isinstance(model, MultiExitModel):
        model, tokenizer = load_folder(model)
    about = {"engine": f"{engine}-{_precision(model)}"}
    if isinstance(dataset, (str, os.PathLike)):
        about["data"] = Path(dataset).name if Path(dataset).exists() else f"{os.fspath(dataset)} ({split})"
        dataset = read_for(model, os.fspath(dataset), columns, split)
    rows, labels = _token_rows(model, tokenizer, dataset)
    logits, certainty = _all_exits(model, rows, batch_size)
    layers = torch.tensor(model.layers)
    tokens = torch.tensor([_length(row) for row in rows]) if "input_ids" in rows[0] else None
    return Trace(logits, labels, certainty, layers, model.config.problem_type, about, tokens)


def read_for(model: MultiExitModel, source: str, columns: Columns = GUESSED, split: str = "validation") -> Examples:
    """Labelled data in a model's own terms: its task, its class names.

    Raises:
        DataError: a row that cannot be used, a label that the model does not have.
    """
    config = model.config
    names = None if config.problem_type == REGRESSION else [config.id2label[k] for k in range(config.num_labels)]
    return read_examples(source, columns, split=split, task=TASKS[config.problem_type], label_names=names)


def _token_rows(
    model: MultiExitModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Examples | Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
    if isinstance(dataset, Examples):
        if tokenizer is None:
            raise InvalidInput("texts need a tokenizer: give record() the model's folder, or rows that are tokenized")
        tokens = encode(tokenizer, dataset.texts, token_limit(tokenizer, model.config.backbone))
        return list(tokens), torch.tensor(dataset.labels)
    if len(dataset) == 0:
        raise InvalidInput("there are no rows to record")
    wanted = model.main_input_name
    if not isinstance(dataset[0], Mapping) or wanted not in dataset[0]:
        raise DataError(f"rows must be mappings with {wanted}, got {dataset[0]!r}; for texts give a file or Examples")
    rows = [_row(dataset[number]) for number in range(len(dataset))]
    label = next((name for name in ("labels", "label") if name in dataset[0]), None)
    if label is None:
        return rows, None
    labels = [dataset[number].get(label) for number in range(len(dataset))]
    missing = [number for number, each in enumerate(labels) if each is None]
    if missing:
        raise DataError(f"row {missing[0]} has no {label}, others have")
    return rows, torch.stack([torch.as_tensor(each) for each in labels])


def _precision(model: MultiExitModel) -> str:
    """What the products of the model are in: its weights' type, or autocast's."""
    kind = model.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else model.dtype
    return "autocast-" * autocast + str(dtype).removeprefix("torch.")


def _length(row: Mapping[str, Any]) -> int:
    return sum(row.get("attention_mask", [1] * len(row["input_ids"])))


def _row(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the model reads of a row: an image, or its tokens."""
    if "pixel_values" in given:
        return {"pixel_values": torch.as_tensor(given["pixel_values"])}
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.as_tensor(given[name]).tolist() for name in names if name in given}


@torch.no_grad()
def _all_exits(
    model: MultiExitModel, rows: Sequence[Mapping[str, Any]], batch_size: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (L, N, C) and certainty (L, N) on the CPU, in the order of the rows."""
    was_training = model.training
    model.eval()
    logits = torch.empty(len(model.layers), len(rows), model.config.num_labels)
    certainty = torch.empty(logits.shape[:2]) if model.gate is not None else None
    batches = length_sorted(rows, batch_size)
    for numbers in tqdm(batches, desc="record", unit="batch", disable=None, leave=False):
        batch = collate([rows[number] for number in numbers], model.config.pad_token_id)
        out = model.exits({name: value.to(model.device) for name, value in batch.items()})
        logits[:, numbers] = out.logits.cpu()
        if certainty is not None and out.certainty is not None:
            certainty[:, numbers] = out.certainty.cpu()
    model.train(was_training)
    return logits, certainty
