"""Record one full-depth pass over a data set: model + data -> Trace."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed import ProcessGroup
from transformers import PreTrainedTokenizerBase

from offramp.data.batching import encode, token_limit
from offramp.data.columns import GUESSED, Columns
from offramp.data.examples import Examples, read_data, read_examples
from offramp.data.label_names import described
from offramp.data.records import AS_NAMED, Reading
from offramp.data.rows import Text
from offramp.errors import DataError, InvalidInput, UnsupportedBackbone
from offramp.inference.all_exits import all_exits
from offramp.inference.engine import Engine
from offramp.inference.load_engine import AUTO, check_name, load_with_workers, workers_of
from offramp.inference.onnx.metadata import weights_digest
from offramp.inference.torch_engine import TorchEngine
from offramp.model.backbones.registry import load_backbone
from offramp.model.config import MultiExitConfig
from offramp.model.flops import macs
from offramp.model.graph_config import GraphConfig
from offramp.model.hub import load_config, load_tokenizer, refuse_images
from offramp.model.lexical.fitted_rows import have_fitted
from offramp.model.modeling import MultiExitModel
from offramp.model.wrappers import unwrap
from offramp.types.model_content import ModelContent
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace

log = logging.getLogger("offramp")

FITTED_ROWS = "lexical_exit.fitted_rows"
"""The name of the hashes in the weights, see `offramp.model.lexical.classifier`."""
TASKS = {SINGLE_LABEL: "classification", MULTI_LABEL: "multi-label", REGRESSION: "regression"}


def record(
    model: MultiExitModel | Engine | str | os.PathLike[str],
    dataset: str | os.PathLike[str] | Examples | Sequence[Text] | Sequence[Mapping[str, Any]],
    engine: str = "torch",
    *,
    columns: Columns = GUESSED,
    split: str = "validation",
    reading: Reading = AS_NAMED,
    batch_size: int = 32,
    threads: int | None = None,
    workers: int | None = None,
    group: ProcessGroup | None = None,
) -> Trace:
    """Run every layer on a data set and keep the outputs of every exit; a graph has those that it holds.

    Args:
        model: a model, an engine (see `offramp.inference.engine`), or the folder or hub name of one.
        dataset: a file or a data set's name (see `offramp.data`), whose labels are kept if every row has one; examples
            or texts in memory; or rows that are tokenized already: mappings with `input_ids` (`pixel_values` of images)
            and perhaps `labels`, such as a `datasets.Dataset`. Texts need a model's folder.
        engine: what runs the model: "torch", or for a folder "onnx", "onnx-int8" or "openvino", which `offramp export`
            wrote.
        columns: which columns of a file to read.
        split: which part of a named data set to read.
        reading: how to read a file, where its name does not say it.
        batch_size: rows at once. It does not change the trace, but for rounding in float32; in bfloat16 and in OpenVINO
            logits may depend on the rest of the batch.
        threads: that compute a batch, where a folder is given (see `offramp.Predictor.load`).
        workers: that compute batches at the same time, likewise; a model in torch has one.
        group: processes (of `torch.distributed`, gloo) that all call this with the same arguments. Each runs a share of
            the batches, and each returns the trace of all rows, the same as without a group.

    Raises:
        DataError: rows or labels that do not fit the model.
        InvalidInput: texts but no tokenizer, or no rows.

    Example:
        >>> recorded = offramp.record(model, rows)
        >>> recorded.logits.shape  # (L, N, C)
        torch.Size([4, 20, 3])
    """
    if batch_size < 1:
        raise InvalidInput(f"batch_size must be at least 1, got {batch_size}")
    runner, tokenizer, workers = resolve_engine(model, engine, _has_texts(dataset), threads, workers)
    about = {"engine": runner.name}
    if isinstance(model, (str, os.PathLike)) and Path(model).is_dir():
        about["weights"] = weights_digest(model)
    if isinstance(dataset, (str, os.PathLike)):
        about["data"] = data_name(dataset, split)
        dataset = read_data_for(runner.config, os.fspath(dataset), columns, split, reading)
    rows, labels = _tokenized(runner.config, tokenizer, dataset)
    logits, certainty = all_exits(runner, rows, batch_size, workers, group)
    layers = torch.tensor(runner.layers)
    tokens = torch.tensor([_length(row) for row in rows]) if "input_ids" in rows[0] else None
    config = runner.config.full() if isinstance(runner.config, GraphConfig) else runner.config
    costs, fitted = row_macs(config, layers.tolist(), tokens), fit_rows(model, runner, layers.tolist(), rows)
    return Trace(logits, labels, certainty, layers, runner.config.problem_type, about, tokens, costs, fitted)


def data_name(source: str | os.PathLike[str], split: str) -> str:
    """Return the name of a source in the provenance of a trace."""
    return Path(source).name if Path(source).exists() else f"{os.fspath(source)} ({split})"


def resolve_engine(
    model: MultiExitModel | Engine | str | os.PathLike[str],
    engine: str,
    of_texts: bool,
    threads: int | None = None,
    workers: int | None = None,
) -> tuple[Engine, PreTrainedTokenizerBase | None, int]:
    """Return the engine of a model, the tokenizer where texts are to be read, and the number of workers."""
    check_name(engine)
    unwrapped = unwrap(model)
    if isinstance(unwrapped, MultiExitModel):
        if engine not in (AUTO, "torch"):
            raise InvalidInput(f"engine {engine!r} runs what was exported to a folder: give record() the folder")
        loaded: Engine = TorchEngine(unwrapped, threads)
        return loaded, None, workers_of(loaded, workers)
    if isinstance(model, Engine):
        return model, None, workers_of(model, workers)
    tokenizer = None
    if of_texts:
        config = load_config(model)
        refuse_images(model, config)
        tokenizer = load_tokenizer(model, config.backbone)
    loaded, count = load_with_workers(model, engine, None, threads, workers)
    return loaded, tokenizer, count


def read_for(
    config: MultiExitConfig | GraphConfig,
    source: str,
    columns: Columns = GUESSED,
    split: str = "validation",
    reading: Reading = AS_NAMED,
) -> Examples:
    """Read labelled data for a model: its task, its class names.

    Raises:
        DataError: a row that cannot be used, a label that the model does not have.
    """
    names, task = _class_names(config), TASKS[config.problem_type]
    examples = read_examples(source, columns, split=split, task=task, label_names=names, reading=reading)
    return _of_width(config, examples, source)


def read_data_for(
    config: MultiExitConfig | GraphConfig,
    source: str,
    columns: Columns = GUESSED,
    split: str = "validation",
    reading: Reading = AS_NAMED,
) -> Examples | list[Text]:
    """Read data for a model as `read_for` does, or its texts alone where a row has no label."""
    names, task = _class_names(config), TASKS[config.problem_type]
    data = read_data(source, columns, split=split, task=task, label_names=names, reading=reading)
    return _of_width(config, data, source) if isinstance(data, Examples) else data


def _class_names(config: MultiExitConfig | GraphConfig) -> list[str] | None:
    return None if config.problem_type == REGRESSION else [config.id2label[k] for k in range(config.num_labels)]


def _of_width(config: MultiExitConfig | GraphConfig, examples: Examples, source: str) -> Examples:
    """Return examples whose labels have as many numbers as the model answers."""
    first = examples.labels[0]
    values = len(first) if isinstance(first, list) else 1
    if config.problem_type == REGRESSION and values != config.num_labels:
        raise DataError(f"{source}: the labels have {values} numbers a row, the model answers {config.num_labels}")
    return examples


def _tokenized(
    config: MultiExitConfig | GraphConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Examples | Sequence[Text] | Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
    """Return the model's inputs for every row, and the labels if there are any."""
    if not len(dataset):
        raise InvalidInput("there are no rows to record")
    labels = torch.tensor(dataset.labels) if isinstance(dataset, Examples) else None
    items: Sequence[Any] = dataset.texts if isinstance(dataset, Examples) else dataset
    if not _has_texts(dataset) or (tokenizer is None and not isinstance(dataset, Examples)):
        return _token_rows(config, items)
    if tokenizer is None:
        raise InvalidInput("texts need a tokenizer: give record() the model's folder, or rows that are tokenized")
    return list(encode(tokenizer, items, token_limit(tokenizer, config.backbone))), labels


def _token_rows(
    config: MultiExitConfig | GraphConfig, dataset: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
    wanted = load_backbone(config.backbone.model_type).input_name
    if not isinstance(dataset[0], Mapping) or wanted not in dataset[0]:
        raise DataError(f"rows must be mappings with {wanted}, got {dataset[0]!r}; texts need the model's folder")
    rows = [_row(dataset[number]) for number in range(len(dataset))]
    label = next((name for name in ("labels", "label") if name in dataset[0]), None)
    if label is None:
        return rows, None
    labels = [dataset[number].get(label) for number in range(len(dataset))]
    missing = [number for number, value in enumerate(labels) if value is None]
    if missing:
        raise DataError(f"row {missing[0]} has no {label}, others have")
    names = getattr(getattr(dataset, "features", {}).get(label), "names", None)  # a ClassLabel of a datasets.Dataset
    return rows, torch.stack([torch.as_tensor(value) for value in _in_models_order(labels, names, config)])


def _in_models_order(
    labels: list[Any], names: Sequence[str] | None, config: MultiExitConfig | GraphConfig
) -> list[Any]:
    """Return class numbers as the model's, where a data set has the model's classes in another order."""
    own = _class_names(config) or []
    if names is None or list(names) == own or sorted(names) != sorted(own):
        return labels
    log.info("labels %s are met by name", described(names))
    return [own.index(names[number]) if number >= 0 else number for number in labels]


def _has_texts(dataset: object) -> bool:
    """Return whether a data set holds texts, or a file or a name of them, and no tokens."""
    if isinstance(dataset, (str, os.PathLike, Examples)):
        return True
    return isinstance(dataset, Sequence) and len(dataset) > 0 and isinstance(dataset[0], (str, tuple))


def _length(row: Mapping[str, Any]) -> int:
    return sum(row.get("attention_mask", [1] * len(row["input_ids"])))


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's inputs in a row: an image, or its tokens."""
    if "pixel_values" in row:
        return {"pixel_values": torch.as_tensor(row["pixel_values"])}
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.as_tensor(row[name]).tolist() for name in names if name in row}


# --- what a trace knows of its rows besides their answers -----------------------------------------------------------


def row_macs(config: MultiExitConfig, layers: Sequence[int], tokens: torch.Tensor | None) -> torch.Tensor | None:
    """Return the multiply-accumulates (L, N) of rows that leave at these layers; None where they are not known."""
    if tokens is None or tokens.min() < 1:
        return None
    try:
        return macs(config, tokens, layers).float()
    except UnsupportedBackbone:
        return None


def fit_rows(
    model: MultiExitModel | Engine | str | os.PathLike[str],
    runner: Engine,
    layers: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
) -> torch.Tensor | None:
    """Return which rows fitted the exit before the first layer, (N,) bool; None without it, or where nothing tells."""
    hashes = None
    if layers[0] == 0 and isinstance(runner, TorchEngine) and runner.model.lexical_exit is not None:
        hashes = runner.model.lexical_exit.fitted_rows
    elif layers[0] == 0 and isinstance(model, (str, os.PathLike)) and Path(model).is_dir():
        hashes = _hashes_of(Path(model))
    return None if hashes is None else have_fitted(hashes, [_tokens(row) for row in rows])


def _hashes_of(folder: Path) -> torch.Tensor | None:
    """Return the hashes of the rows that fitted the lexical exit of a folder's model; None without its weights."""
    for path in ModelContent(folder).weight_files:
        with safe_open(path, "pt") as file:
            if FITTED_ROWS in file.keys():  # noqa: SIM118 - not a dict
                hashes: torch.Tensor = file.get_tensor(FITTED_ROWS)
                return hashes
    return None


def _tokens(row: Mapping[str, Any]) -> list[int]:
    """Return a row's token ids without padding."""
    mask = row.get("attention_mask", [1] * len(row["input_ids"]))
    return [token for token, real in zip(row["input_ids"], mask, strict=True) if real]
