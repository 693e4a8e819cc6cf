"""What crosses the borders between offramp's rooms. These values validate themselves and compute nothing else.

`L` exits, `N` samples, `B` a batch, `C` outputs, `T` tokens, `D` width.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from offramp.errors import InvalidInput

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)

POINTS_FILE = "operating_points.json"

Memory = tuple[Tensor, ...]
"""What a policy remembers of each sample: () before the first exit, then tensors with the batch first."""


@dataclass(frozen=True)
class Carry:
    """What goes from block to block.

    Attributes:
        hidden: (B, T, D) hidden states; of a convolutional backbone (B, D, H, W).
        mask: (B, T) 1 for a real token, 0 for padding; None where there is no such thing as padding.
        shares: (B, 1, T) how much each token counts in a mean over the real ones; None where nobody asks.
        attention: what the blocks take as attention mask, (B, 1, 1 or T, T) or (B, T); None = everybody
            sees everybody.
        read: (B, R, D) what the exit behind the last block reads in place of `hidden`; None = `hidden`.
        recalled: (B, C) the logits that a model with exit memory has come to; None before the first exit.
        token_scores: (B, T-1) how much each token but the first was looked at, where tokens leave (see
            `offramp.token_exit`); None = nobody asked yet, or any more.
        pairs: (1 or B, H, T, T) what the blocks need for each pair of tokens besides; 1 = all samples share it.
        places: (1 or B, T, P) what the blocks need for each token's place; 1 = all samples share it.
    """

    hidden: Tensor
    mask: Tensor | None = None
    attention: Tensor | None = None
    shares: Tensor | None = None
    read: Tensor | None = None
    recalled: Tensor | None = None
    token_scores: Tensor | None = None
    pairs: Tensor | None = None
    places: Tensor | None = None

    def take(self, rows: Tensor) -> Carry:
        """The given rows alone, (K,), cut to the columns that some of them still use; their exit has read."""
        recalled, scores = (None if each is None else _rows(each, rows) for each in (self.recalled, self.token_scores))
        if self.mask is None:
            return Carry(_rows(self.hidden, rows), recalled=recalled, token_scores=scores)
        mask = _rows(self.mask, rows)  # (K, T)
        least = 2 if torch.compiler.is_exporting() else 1  # ONNX Runtime fails where none but the first is left
        used = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).max().clamp(min=least).item()
        torch._check(used <= mask.shape[1])  # type: ignore[no-untyped-call]  # `torch.export` cannot know it
        attention = self.attention
        if attention is not None:
            attention = _rows(attention, rows)[..., :used]
            if attention.dim() == 4 and attention.shape[-2] > 1:
                attention = attention[..., :used, :]
        scores = None if scores is None else scores[:, : used - 1]
        pairs, places = (
            each if each is None or len(each) < len(self.mask) else _rows(each, rows)
            for each in (self.pairs, self.places)
        )
        return Carry(
            _rows(self.hidden, rows)[:, :used],  # rows first: those who leave are not copied
            mask[:, :used],
            attention,
            None if self.shares is None else _rows(self.shares, rows)[..., :used],
            recalled=recalled,
            token_scores=scores,
            pairs=None if pairs is None else pairs[..., :used, :used],
            places=None if places is None else places[:, :used],
        )


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows)  # in ONNX one `Gather`; indexing is slower there


@dataclass(frozen=True)
class ExitOutput:
    """What one exit says of a batch; in training and in a trace, what all exits say, with L in front.

    Attributes:
        logits: (B, C), or (L, B, C).
        certainty: (B,), or (L, B), in 0..1: a learned gate's opinion; None where the model has no gate.
        layer: how many layers ran before this exit; None = one layer an exit.
        problem_type: one of PROBLEM_TYPES; None = regression where C is 1, else single label.
        last: no exit comes after this one: whoever is here is answered, whatever the score.
    """

    logits: Tensor
    certainty: Tensor | None = None
    _: KW_ONLY
    layer: int | None = None
    problem_type: str | None = None
    last: bool = False

    def __post_init__(self) -> None:
        if self.problem_type is None:
            object.__setattr__(self, "problem_type", infer_problem_type(self.logits))


@dataclass(frozen=True)
class Answers:
    """What an adaptive run gives back, in the order of the input.

    Attributes:
        logits: (N, C) float32, of the exit at which each sample left.
        exit_layers: (N,) int64 layer numbers, 1 = after the first layer.
        failed: (N,) bool, True where the logits were not finite: no answer, an error.
    """

    logits: Tensor
    exit_layers: Tensor
    failed: Tensor


@dataclass(frozen=True)
class Trace:
    """One full-depth pass over a data set, kept: all that thresholds, curves and reports need.

    Attributes:
        logits: (L, N, C), stored as float32.
        labels: (N,) class numbers or values, (N, C) for several labels or values; None if unknown.
        certainty: (L, N) in 0..1; None where the model has no gate.
        layers: (L,) the layer number of each exit, increasing; None = 1..L.
        problem_type: one of PROBLEM_TYPES; None = regression where C is 1, several labels where the labels are
            (N, C), else single label.
        about: where it is from, in words: {"engine": ..., "data": ..., "weights": their SHA-256}.
        tokens: (N,) real tokens of each sample, for `offramp.cost`; None where that is not known.

    Raises:
        InvalidInput: shapes that do not fit together.
    """

    logits: Tensor
    labels: Tensor | None = None
    certainty: Tensor | None = None
    layers: Tensor | None = None
    problem_type: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    tokens: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logits.dim() != 3 or 0 in self.logits.shape:
            raise InvalidInput(f"a trace's logits are (exits, samples, outputs), got {tuple(self.logits.shape)}")
        depth, samples, _ = self.logits.shape
        layers = torch.arange(1, depth + 1) if self.layers is None else torch.as_tensor(self.layers, dtype=torch.int64)
        if layers.shape != (depth,) or layers[0] < 1 or (layers.diff() < 1).any():
            raise InvalidInput(
                f"a trace of {depth} exits needs {depth} increasing layer numbers, got {layers.tolist()}"
            )
        if self.certainty is not None and self.certainty.shape != (depth, samples):
            raise InvalidInput(f"certainty must be {(depth, samples)}, got {tuple(self.certainty.shape)}")
        tokens = None if self.tokens is None else torch.as_tensor(self.tokens, dtype=torch.int64)
        if tokens is not None and tokens.shape != (samples,):
            raise InvalidInput(f"tokens must be {(samples,)}, got {tuple(tokens.shape)}")
        problem_type = self.problem_type or infer_problem_type(self.logits, self.labels)
        if problem_type not in PROBLEM_TYPES:
            raise InvalidInput(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {problem_type!r}")
        if problem_type == SINGLE_LABEL and self.logits.shape[-1] == 1:
            raise InvalidInput("one output cannot be a choice among classes; one output is a regression")
        if self.labels is not None:
            _check_labels(self.labels, problem_type, self.logits)
        object.__setattr__(self, "logits", self.logits.detach().float())
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "problem_type", problem_type)

    def __len__(self) -> int:
        return self.logits.shape[1]

    @property
    def depth(self) -> int:
        """How many exits there are."""
        return self.logits.shape[0]

    @property
    def layer_numbers(self) -> list[int]:
        """The layer number of each exit."""
        assert self.layers is not None  # set in __post_init__
        return self.layers.tolist()

    def exit(self, number: int) -> ExitOutput:
        """What exit `number` (0-based) said of all samples."""
        certainty = None if self.certainty is None else self.certainty[number]
        layer, last = self.layer_numbers[number], number == self.depth - 1
        return ExitOutput(self.logits[number], certainty, layer=layer, problem_type=self.problem_type, last=last)

    def take(self, rows: Tensor) -> Trace:
        """The trace of the given samples alone; rows: (K,) indices."""
        labels = None if self.labels is None else self.labels[rows]
        certainty = None if self.certainty is None else self.certainty[:, rows]
        tokens = None if self.tokens is None else self.tokens[rows]
        return Trace(self.logits[:, rows], labels, certainty, self.layers, self.problem_type, self.about, tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file."""
        tensors = {
            "logits": self.logits,
            "labels": self.labels,
            "certainty": self.certainty,
            "layers": self.layers,
            "tokens": self.tokens,
        }
        words = {"problem_type": str(self.problem_type), "about": json.dumps(dict(self.about))}
        save_file({name: value.contiguous() for name, value in tensors.items() if value is not None}, path, words)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read what `save` wrote.

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
            return cls(**tensors, problem_type=words["problem_type"], about=json.loads(words["about"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{os.fspath(path)}: not a trace that `offramp record` wrote ({error})") from None


@dataclass(frozen=True)
class Target:
    """What a user asks of early exit: exactly one of these.

    Attributes:
        max_drop: keep at least (1 - max_drop) of the full model's score, 0..1.
        speedup: layers of the full model over mean exit layer, at least 1.
        agreement: share of samples that get the full model's answer, 0..1.
        latency_ms: mean time of a sample in milliseconds, above 0 (see `offramp.latency`).

    Raises:
        InvalidInput: none or several are given, or one is out of range.
    """

    max_drop: float | None = None
    speedup: float | None = None
    agreement: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if len(given) != 1:
            raise InvalidInput(f"a target is exactly one of {', '.join(asdict(self))}; got {given or 'none'}")
        ((name, value),) = given.items()
        if name == "speedup":
            fits, range_ = 1 <= value < math.inf, "at least 1"
        elif name == "latency_ms":
            fits, range_ = 0 < value < math.inf, "above 0"
        else:
            fits, range_ = 0 <= value <= 1, "from 0 to 1"
        if not fits:
            raise InvalidInput(f"{name} must be {range_}, got {value}")


@dataclass(frozen=True)
class Measured:
    """What an operating point did on the data that it was chosen on.

    Attributes:
        metric: the metric's name; None where there were no labels.
        score: at this point, in the metric's unit.
        full_score: of the full model, on the same samples.
        agreement: share of samples with the full model's answer; None for regression.
        mean_exit: mean exit layer.
        depth: layers of the full model.
        rows: how many samples.
        about: which data, which engine (see `Trace.about`); "timed": what the cost table was measured with.
        expected_ms: mean time of a sample by a cost table, in milliseconds; None where there was no table.
    """

    metric: str | None
    score: float | None
    full_score: float | None
    agreement: float | None
    mean_exit: float
    depth: int
    rows: int
    about: Mapping[str, str] = field(default_factory=dict)
    expected_ms: float | None = None

    @property
    def speedup(self) -> float:
        """Layers of the full model over mean exit layer."""
        return self.depth / self.mean_exit

    @property
    def saving(self) -> float:
        """Share of the layers that did not run (PCEE-BERT eq. 4)."""
        return 1 - self.mean_exit / self.depth


RISKS = {
    "quality": "the rows answered wrong where the full model is right",
    "drop": "the full model's right answers lost",
    "agreement": "the rows answered otherwise than by the full model",
}
"""What a certificate may bound: the share of ..."""


@dataclass(frozen=True)
class Certificate:
    """What is promised of an operating point, for rows drawn like the ones that it was certified on.

    Attributes:
        risk: a name of RISKS.
        level: what was asked for: a risk of at most this.
        delta: the promise is broken for at most this share of the draws of rows; None = the promise is of the mean
            over draws alone.
        bound: what is promised: `level`, or 0 at full depth.
        observed: the risk on the rows.
        rows: how many rows the risk was measured on.
        method: a name of `offramp.risk.METHODS`.
        engine: what ran the model; None = not known.
        data: SHA-256 of the rows (`offramp.hashes.digest`).
        weights: SHA-256 of the model's weights; None = not known.
        note: why there is no early exit; empty where there is one.
    """

    risk: str
    level: float
    delta: float | None
    bound: float
    observed: float
    rows: int
    method: str
    engine: str | None
    data: str
    weights: str | None = None
    note: str = ""

    def words(self) -> str:
        """The certificate in one line."""
        how = f"{self.method}, {self.rows} rows, {self.observed:.2%} seen"
        if self.note:
            return f"full depth: {self.note} ({self.risk} {self.level:g}, {how})"
        sure = "on average over draws of rows" if self.delta is None else f"with {1 - self.delta:.4g} confidence"
        return f"certified {sure}: at most {100 * self.bound:.4g}% of {RISKS[self.risk]} ({how})"


@dataclass(frozen=True)
class OperatingPoint:
    """Where to leave: a policy by name, its thresholds, and what was measured there. It holds no objects.

    Attributes:
        policy: {"name": ..., its parameters}.
        thresholds: one for each exit but the last; `math.inf` = never.
        target: what was asked for, e.g. {"max_drop": 0.01}.
        measured: what it did where it was chosen; None for a point set by hand.
        certificate: what is promised of it; None for a point that `offramp.certify` did not make.
    """

    policy: Mapping[str, Any]
    thresholds: tuple[float, ...]
    target: Mapping[str, float] = field(default_factory=dict)
    measured: Measured | None = None
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(float(value) for value in self.thresholds))
        if "name" not in self.policy:
            raise InvalidInput(f"an operating point's policy is data with a name, got {dict(self.policy)}")
        if any(math.isnan(value) for value in self.thresholds):
            raise InvalidInput(f"a threshold must be a number, got {self.thresholds}")

    def to_json(self) -> dict[str, Any]:
        """Plain data; never and always are written as words."""
        words = {math.inf: "never", -math.inf: "always"}
        data = {**asdict(self), "thresholds": [words.get(value, value) for value in self.thresholds]}
        return data | {"policy": dict(self.policy)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OperatingPoint:
        """What `to_json` made."""
        words = {"never": math.inf, "always": -math.inf}
        thresholds = tuple(words[value] if isinstance(value, str) else value for value in data["thresholds"])
        measured = Measured(**data["measured"]) if data.get("measured") else None
        certificate = Certificate(**data["certificate"]) if data.get("certificate") else None
        return cls(data["policy"], thresholds, data.get("target", {}), measured, certificate)


def _check_labels(labels: Tensor, problem_type: str, logits: Tensor) -> None:
    _, samples, outputs = logits.shape
    flat = problem_type == SINGLE_LABEL or (problem_type == REGRESSION and outputs == 1)
    wanted = (samples,) if flat else (samples, outputs)
    if labels.shape != wanted and not (problem_type == REGRESSION and labels.shape == (samples, outputs)):
        raise InvalidInput(f"labels for {samples} samples must be {wanted}, got {tuple(labels.shape)}")
    if problem_type == REGRESSION and not labels.isfinite().all():
        raise InvalidInput("labels of a regression must be finite numbers")
    if problem_type == SINGLE_LABEL and not ((labels >= 0) & (labels < outputs)).all():
        raise InvalidInput(
            f"labels must be class numbers from 0 to {outputs - 1}, got {labels.min()} to {labels.max()}"
        )


def infer_problem_type(logits: Tensor, labels: Tensor | None = None) -> str:
    """The rule of transformers: one output is regression; labels with a row for each sample are several labels."""
    if logits.shape[-1] == 1:
        return REGRESSION
    return MULTI_LABEL if labels is not None and labels.dim() == 2 else SINGLE_LABEL


def read_points(path: str | os.PathLike[str]) -> dict[str, OperatingPoint]:
    """The operating points of a model folder's file, by name.

    Raises:
        InvalidInput: the file cannot be read as operating points.
    """
    try:
        points = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: OperatingPoint.from_json(point) for name, point in points.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{os.fspath(path)}: not a file of operating points ({error!r})") from None


def write_points(points: Mapping[str, OperatingPoint], path: str | os.PathLike[str]) -> None:
    """Write operating points; the old file stays whole until the new one is complete."""
    text = json.dumps({name: point.to_json() for name, point in points.items()}, indent=2)
    unfinished = Path(f"{os.fspath(path)}.tmp")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)
