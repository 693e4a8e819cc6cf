"""One full-depth pass over a data set, and the hashes that identify its rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import PROBLEM_TYPES, REGRESSION, SINGLE_LABEL, infer_problem_type
from offramp.types.whole_file import whole_path


@dataclass(frozen=True)
class Trace:
    """One full-depth pass over a data set: all that thresholds, curves and reports need.

    Attributes:
        logits: (L, N, C), stored as float32.
        labels: (N,) class numbers or values, (N, C) for several labels or values; None if unknown.
        certainty: (L, N) in 0..1; None where the model has no gate.
        layers: (L,) the layer number of each exit, increasing from 0 (before the first layer) or more; None = 1..L.
        problem_type: one of PROBLEM_TYPES; None = regression where C is 1, several labels where the labels are
            (N, C), else single label.
        provenance: where it is from, in words: {"engine": ..., "data": ..., "weights": their SHA-256}. In the file its
            key is "about".
        tokens: (N,) real tokens of each sample, for `offramp.model.flops`; None where that is not known.
        macs: (L, N) multiply-accumulates of a sample that leaves at each exit, with all exits before it; None where
            they are not known.
        fit_rows: (N,) bool, True for samples that fitted the lexical exit; None where there is none.

    Raises:
        InvalidInput: shapes that do not fit together.

    Example:
        >>> logits = torch.tensor([[[0.1, 0.2], [0.3, 0.1]], [[2.0, -1.0], [3.0, 0.0]]])  # 2 exits, 2 samples
        >>> trace = offramp.Trace(logits, labels=torch.tensor([0, 1]))
        >>> trace.depth, len(trace), trace.layer_numbers
        (2, 2, [1, 2])
    """

    logits: Tensor
    labels: Tensor | None = None
    certainty: Tensor | None = None
    layers: Tensor | None = None
    problem_type: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    tokens: Tensor | None = None
    macs: Tensor | None = None
    fit_rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logits.dim() != 3 or 0 in self.logits.shape:
            raise InvalidInput(f"a trace's logits are (exits, samples, outputs), got {tuple(self.logits.shape)}")
        depth, samples, _ = self.logits.shape
        layers = torch.arange(1, depth + 1) if self.layers is None else torch.as_tensor(self.layers, dtype=torch.int64)
        if layers.shape != (depth,) or layers[0] < 0 or (layers.diff() < 1).any():
            raise InvalidInput(
                f"a trace of {depth} exits needs {depth} increasing layer numbers, got {layers.tolist()}"
            )
        if self.certainty is not None and self.certainty.shape != (depth, samples):
            raise InvalidInput(f"certainty must be {(depth, samples)}, got {tuple(self.certainty.shape)}")
        tokens = None if self.tokens is None else torch.as_tensor(self.tokens, dtype=torch.int64)
        if tokens is not None and tokens.shape != (samples,):
            raise InvalidInput(f"tokens must be {(samples,)}, got {tuple(tokens.shape)}")
        if self.macs is not None and self.macs.shape != (depth, samples):
            raise InvalidInput(f"macs must be {(depth, samples)}, got {tuple(self.macs.shape)}")
        if self.fit_rows is not None and self.fit_rows.shape != (samples,):
            raise InvalidInput(f"fit_rows must be {(samples,)}, got {tuple(self.fit_rows.shape)}")
        problem_type = self.problem_type or infer_problem_type(self.logits, self.labels)
        if problem_type not in PROBLEM_TYPES:
            raise InvalidInput(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {problem_type!r}")
        if problem_type == SINGLE_LABEL and self.logits.shape[-1] == 1:
            raise InvalidInput("one output cannot be a choice among classes; one output is a regression")
        if self.labels is not None:
            check_labels(self.labels, problem_type, samples, self.logits.shape[-1])
        object.__setattr__(self, "logits", self.logits.detach().float())
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "problem_type", problem_type)

    def __len__(self) -> int:
        return self.logits.shape[1]

    @property
    def depth(self) -> int:
        """Return the number of exits."""
        return self.logits.shape[0]

    @property
    def layer_numbers(self) -> list[int]:
        """Return the layer number of each exit."""
        assert self.layers is not None  # set in __post_init__
        return self.layers.tolist()

    def exit(self, number: int) -> ExitOutput:
        """Return the output of exit `number` (0-based) for all samples."""
        certainty = None if self.certainty is None else self.certainty[number]
        layer, last = self.layer_numbers[number], number == self.depth - 1
        return ExitOutput(self.logits[number], certainty, layer=layer, problem_type=self.problem_type, last=last)

    def take(self, rows: Tensor) -> Trace:
        """Return the trace of some samples; rows: (K,) their indices."""
        return self._indexed(
            ((slice(None), rows), ("logits", "certainty", "macs")), (rows, ("labels", "tokens", "fit_rows"))
        )

    def select(self, layers: Sequence[int]) -> Trace:
        """Return the trace of some exits: the one that a policy reads which skips the others.

        `macs` stay those with all exits.

        Args:
            layers: their layer numbers, increasing.

        Raises:
            InvalidInput: no layers, a layer without an exit, or numbers that do not increase.

        Example:
            >>> trace.select([2, 4]).layer_numbers
            [2, 4]
        """
        numbers, wanted = self.layer_numbers, [int(layer) for layer in layers]  # `layers` may be another trace's
        if not wanted or any(layer not in numbers for layer in wanted):
            raise InvalidInput(f"the trace has exits at layers {numbers}, got {wanted}")
        exits = torch.tensor([numbers.index(layer) for layer in wanted])
        return self._indexed((exits, ("logits", "certainty", "layers", "macs")))

    def _indexed(self, *choices: tuple[Any, tuple[str, ...]]) -> Trace:
        """Return the trace with an index applied to each of some fields that are not None."""
        fields = {name: getattr(self, name) for _, names in choices for name in names}
        chosen = {name: fields[name][index] for index, names in choices for name in names if fields[name] is not None}
        return replace(self, **chosen)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Raises:
            InvalidInput: it cannot be written.
        """
        tensors = {
            "logits": self.logits,
            "labels": self.labels,
            "certainty": self.certainty,
            "layers": self.layers,
            "tokens": self.tokens,
            "macs": self.macs,
            "fit_rows": self.fit_rows,
        }
        words = {"problem_type": str(self.problem_type), "about": json.dumps(dict(self.provenance))}
        present = {name: value.contiguous() for name, value in tensors.items() if value is not None}
        try:
            with whole_path(path) as unfinished:
                save_file(present, unfinished, words)
        except SafetensorError as error:
            raise InvalidInput(f"{os.fspath(path)}: it cannot be written ({error})") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a file that `save` wrote.

        Raises:
            InvalidInput: there is no such file, or it is not a trace.
        """
        try:
            with safe_open(path, framework="pt") as file:
                words = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise InvalidInput(f"{os.fspath(path)}: not a readable trace ({error})") from None
        try:
            return cls(**tensors, problem_type=words["problem_type"], provenance=json.loads(words["about"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{os.fspath(path)}: not a trace that `offramp record` wrote ({error})") from None


def check_labels(labels: Tensor, problem_type: str, samples: int, outputs: int) -> None:
    """Raise InvalidInput unless labels fit so many samples of a model with so many outputs."""
    flat = problem_type == SINGLE_LABEL or (problem_type == REGRESSION and outputs == 1)
    expected = (samples,) if flat else (samples, outputs)
    if labels.shape != expected and not (problem_type == REGRESSION and labels.shape == (samples, outputs)):
        raise InvalidInput(f"labels for {samples} samples must be {expected}, got {tuple(labels.shape)}")
    if problem_type == REGRESSION and not labels.isfinite().all():
        raise InvalidInput("labels of a regression must be finite numbers")
    if problem_type == SINGLE_LABEL and not ((labels >= 0) & (labels < outputs)).all():
        raise InvalidInput(
            f"labels must be class numbers from 0 to {outputs - 1}, got {labels.min()} to {labels.max()}"
        )


DECIMALS = 3
"""Of the logits in a row's hash: float noise between batches is far below, different rows differ far more."""


def trace_digest(trace: Trace) -> str:
    """Return the SHA-256 of all that `certify` reads of a trace: logits, labels, certainty."""
    digest = hashlib.sha256()
    for tensor in (trace.logits, trace.labels, trace.certainty):
        if tensor is not None:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def row_hashes(trace: Trace) -> tuple[str, ...]:
    """Return a hash for each row, N of them: the first 8 bytes, in hex, of the SHA-256 of its logits (L, C).

    The logits are those of the exits behind a layer, so that an exit before the first layer, added later or not read,
    changes no hash. Labels are not in it, so a row has the same hash with and without them. The logits are rounded to
    `DECIMALS`: recorded in another batch nearly every row keeps its hash, but not every one (in int8 fewer). Equal
    texts have equal hashes.
    """
    behind = trace.select([layer for layer in trace.layer_numbers if layer] or trace.layer_numbers)
    rounded = behind.logits.double().round(decimals=DECIMALS) + 0.0  # (L, N, C); -0 becomes 0
    rows = rounded.transpose(0, 1).contiguous().numpy()  # (N, L, C)
    return tuple(hashlib.sha256(row.tobytes()).digest()[:8].hex() for row in rows)


def labels_of(trace: Trace) -> Tensor:
    """Return the labels of a trace that must have them.

    Raises:
        InvalidInput: it has none.
    """
    if trace.labels is None:
        raise InvalidInput("this needs labels, and the trace has none")
    return trace.labels
