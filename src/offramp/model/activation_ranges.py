"""Ranges of the inputs of an encoder's linear layers (`activation_ranges.json`), from which int8 takes its scales.

Scales that a batch computes for itself make a row's answer depend on the other rows. These are constants: the range of
what each linear layer read on some of the model's own texts, without the TAIL at either end. A few values of a deep
encoder lie far outside of the others, and a range with all of them leaves the others few steps. It is the mean over
batches of each batch's range. Values beyond it are cut to it. A module that several layers share (ALBERT) has a range
at each of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from offramp.data.batching import collate, length_sorted
from offramp.errors import InvalidInput
from offramp.model.modeling import MultiExitModel
from offramp.types.file_format import newer_format
from offramp.types.graph_file import RANGES_FILE
from offramp.types.model_content import ModelContent
from offramp.types.whole_file import whole_file

RANGES_FORMAT = 1
RANGE_ROWS = 400
"""Rows that ranges are measured on, at most."""
TAIL = 1e-4
"""The share of a batch's values that lie beyond its range at either end."""
EMBEDDING = 0
"""The layer number of the embedding's linear layers."""
Range = tuple[float, float]


@dataclass(frozen=True)
class ActivationRanges:
    """The range of the inputs of each linear layer of an encoder.

    Attributes:
        by_layer: layer number (EMBEDDING, or the exit to which the layers lead) -> path of the module in the encoder ->
            its two ends.
        rows: how many rows they were measured on.
        data: what these rows are, in words.
        weights: the fingerprint of the encoder and its exits (`ModelContent.weights`); None = not saved yet.
    """

    by_layer: Mapping[int, Mapping[str, Range]]
    rows: int
    data: str
    weights: str | None = None

    def within(self, layers: Sequence[int]) -> dict[str, Range]:
        """Return the ranges of the modules that run in these layers; one that runs in several has their union."""
        union: dict[str, Range] = {}
        for layer in layers:
            for module, (low, high) in self.by_layer.get(layer, {}).items():
                before = union.get(module, (low, high))
                union[module] = (min(low, before[0]), max(high, before[1]))
        return union

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write them beside the weights, which they name."""
        data = {**asdict(self), "weights": _fingerprint(folder)}
        with whole_file(Path(folder) / RANGES_FILE) as file:
            json.dump({"format": RANGES_FORMAT, **data}, file)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ActivationRanges | None:
        """Read the ranges of a folder's model; None where there are none, or those of other weights.

        Raises:
            InvalidInput: the file cannot be read, or its format is newer than `RANGES_FORMAT`.
        """
        ranges = read_ranges(folder)
        return None if ranges is None or ranges.weights != _fingerprint(folder) else ranges


def read_ranges(folder: str | os.PathLike[str]) -> ActivationRanges | None:
    """Read the ranges in a folder, whatever weights they are of; None where there are none.

    Raises:
        InvalidInput: as `ActivationRanges.load`.
    """
    path = Path(folder) / RANGES_FILE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] > RANGES_FORMAT:
            raise newer_format(path, data["format"], RANGES_FORMAT)
        by_layer = {
            int(layer): {str(module): (float(low), float(high)) for module, (low, high) in modules.items()}
            for layer, modules in data["by_layer"].items()
        }
        ends = [pair for modules in by_layer.values() for pair in modules.values()]
        if not all(-inf < low <= high < inf for low, high in ends):
            raise ValueError("a range is two finite numbers, the smaller one first")
        return ActivationRanges(by_layer, int(data["rows"]), str(data["data"]), data["weights"])
    except InvalidInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidInput(f"{path}: not the ranges that `offramp train` wrote ({reason}); remove it") from None


def _fingerprint(folder: str | os.PathLike[str]) -> str | None:
    content = ModelContent(Path(folder))
    return content.weights(content.config.get("exit_layers"))


@dataclass
class _Reader:
    """Collects ranges while a model runs.

    Attributes:
        layer: that runs now.
        real: (B, T) bool, which tokens count; None = all.
        batches: layer -> module -> range, for each batch; a module that runs twice has the union.
    """

    layer: int = EMBEDDING
    real: Tensor | None = None
    batches: list[dict[int, dict[str, Range]]] = field(default_factory=list)

    def at(self, layer: int, mask: Tensor | None) -> None:
        """Go on to a layer, whose real tokens have 1 in the mask, (B, T)."""
        self.layer = layer
        self.real = None if mask is None else mask.bool()

    def add(self, module: str, values: Tensor) -> None:
        """Widen the range of a module in this batch by what it reads."""
        if self.real is not None and values.shape[:2] == self.real.shape:
            values = values[self.real]
        low, high = _inner_range(values.float().flatten())
        modules = self.batches[-1].setdefault(self.layer, {})
        before = modules.get(module, (low, high))
        modules[module] = (min(low, before[0]), max(high, before[1]))

    def means(self) -> dict[int, dict[str, Range]]:
        """Return the mean over batches of each range."""
        ends: dict[int, dict[str, list[Range]]] = {}
        for batch in self.batches:
            for layer, modules in batch.items():
                for module, pair in modules.items():
                    ends.setdefault(layer, {}).setdefault(module, []).append(pair)
        return {
            layer: {
                module: (fmean(low for low, _ in pairs), fmean(high for _, high in pairs))
                for module, pairs in by.items()
            }
            for layer, by in ends.items()
        }


def _inner_range(values: Tensor) -> Range:
    """Return the least and the largest of values (n,) without the TAIL at either end."""
    beyond = int(TAIL * len(values))
    low, high = (values.topk(beyond + 1, largest=largest).values[-1].item() for largest in (False, True))
    return low, high


@torch.inference_mode()
def measure_ranges(
    model: MultiExitModel, rows: Sequence[Mapping[str, Any]], data: str = "rows in memory", batch_size: int = 32
) -> ActivationRanges:
    """Measure the ranges of a model on rows of its own data, of which RANGE_ROWS at even distances are read.

    Args:
        model: in eval mode.
        rows: tokens, unpadded, or images; labels are not read.
        data: what the rows are, in words.
        batch_size: rows at once.

    Raises:
        InvalidInput: no rows, or values that are not finite.
    """
    if not len(rows):
        raise InvalidInput("there are no rows to measure the ranges of activations on")
    count = min(RANGE_ROWS, len(rows))
    chosen = [
        {name: value for name, value in rows[number * len(rows) // count].items() if name != "labels"}
        for number in range(count)
    ]
    reader = _Reader()
    first = int(model.lexical_exit is not None)  # the exit before the first layer has no block
    with _reading_inputs(model, reader):
        for numbers in tqdm(length_sorted(chosen, batch_size), desc="ranges", unit="batch", disable=None, leave=False):
            batch = collate([chosen[number] for number in numbers], model.config.pad_token_id)
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            reader.batches.append({})
            reader.at(EMBEDDING, inputs.get("attention_mask"))
            carry = model.embed(inputs)
            for exit in range(first, len(model.layers)):
                reader.at(model.layers[exit], carry.mask)
                carry = model.block(exit, carry)
    by_layer = reader.means()
    broken = [name for modules in by_layer.values() for name, ends in modules.items() if not all(map(isfinite, ends))]
    if broken:
        raise InvalidInput(f"the inputs of {broken[0]} are not finite on these rows")
    return ActivationRanges(by_layer, count, data)


@contextmanager
def _reading_inputs(model: MultiExitModel, reader: _Reader) -> Iterator[None]:
    """Let all linear layers of the encoder add what they read."""

    def add(name: str) -> Any:
        return lambda module, inputs: reader.add(name, inputs[0])

    hooks = [
        module.register_forward_pre_hook(add(name))
        for name, module in model.backbone.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
