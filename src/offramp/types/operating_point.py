"""Operating points: targets, thresholds, measurements, certificates, and their file. Needs no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from offramp.errors import InvalidInput
from offramp.types.fingerprint import Fingerprint
from offramp.types.point_fields import WORDS, check_point, read_point_data
from offramp.types.whole_file import whole_file

POINTS_FILE = "operating_points.json"

POINTS_FORMAT = 1
"""The newest format of POINTS_FILE: {"format": 1, "points": {name: point}}. Before it the file was {name: point}."""

DEFAULT = "default"
"""The name of the operating point that is used where none is named."""


def rows_text(rows: int) -> str:
    """Return "1 row" or "n rows"."""
    return "1 row" if rows == 1 else f"{rows} rows"


@dataclass(frozen=True)
class Target:
    """The requirement that an operating point is chosen for: exactly one of these.

    Attributes:
        max_drop: keep at least (1 - max_drop) of the full model's score, 0..1.
        speedup: mean cost at full depth over mean cost at the point, at least 1; by a cost table where there is one,
            else in multiply-accumulates where the trace has them, else in layers (see `Measured.speedup_of`).
        agreement: share of samples that get the full model's answer, 0..1.
        latency_ms: mean time of a sample in milliseconds, above 0 (see `offramp.types.cost_table`).

    Raises:
        InvalidInput: none or several are set, or one is out of range.

    Example:
        >>> target = offramp.Target(speedup=2.0)
        >>> target.kind, target.value
        ('speedup', 2.0)
    """

    max_drop: float | None = None
    speedup: float | None = None
    agreement: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        values = self._values()
        if len(values) != 1:
            raise InvalidInput(f"a target is exactly one of {', '.join(asdict(self))}; got {values or 'none'}")
        ((name, value),) = values.items()
        if name == "speedup":
            fits, range_ = 1 <= value < math.inf, "at least 1"
        elif name == "latency_ms":
            fits, range_ = 0 < value < math.inf, "above 0"
        else:
            fits, range_ = 0 <= value <= 1, "from 0 to 1"
        if not fits:
            raise InvalidInput(f"{name} must be {range_}, got {value}")

    @property
    def kind(self) -> str:
        """Return the name of the field that is set, e.g. "max_drop"."""
        return next(iter(self._values()))

    @property
    def value(self) -> float:
        """Return the number of the field that is set."""
        return next(iter(self._values().values()))

    def _values(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Measured:
    """An operating point's results on the data that it was chosen on.

    Attributes:
        metric: the metric's name; None where there were no labels.
        score: at this point, in the metric's unit.
        full_score: of the full model, on the same samples.
        agreement: share of samples with the full model's answer; None for regression.
        mean_exit: mean exit layer.
        depth: layers of the full model.
        rows: number of samples.
        provenance: the data and the engine (see `Trace.provenance`); "timed": what the cost table was measured with.
            In JSON its key is "about".
        expected_ms: mean time of a sample by a cost table, in milliseconds; None where there was no table.
        full_ms: likewise at full depth.
        macs: mean multiply-accumulates of a sample; None where the trace has none (see `Trace.macs`).
        full_macs: likewise at full depth.
    """

    metric: str | None
    score: float | None
    full_score: float | None
    agreement: float | None
    mean_exit: float
    depth: int
    rows: int
    provenance: Mapping[str, str] = field(default_factory=dict)
    expected_ms: float | None = None
    full_ms: float | None = None
    macs: float | None = None
    full_macs: float | None = None

    @property
    def speedup(self) -> float:
        """Return the mean cost at full depth over the mean cost here; inf where that is 0 (see `speedup_of`)."""
        _, full, mean = self._costs()
        return full / mean if mean > 0 else math.inf

    @property
    def speedup_of(self) -> str:
        """Return the unit of the costs that `speedup` compares: "milliseconds", "multiply-accumulates" or "layers".

        The first of them that is known at both depths. Points saved without costs compare layers.
        """
        return self._costs()[0]

    @property
    def saving(self) -> float:
        """Return the share of the layers that did not run (PCEE-BERT eq. 4)."""
        return 1 - self.mean_exit / self.depth

    def _costs(self) -> tuple[str, float, float]:
        """Return the unit of the costs, the mean cost at full depth and the mean cost here."""
        if self.expected_ms is not None and self.full_ms is not None:
            return "milliseconds", self.full_ms, self.expected_ms
        if self.macs is not None and self.full_macs is not None:
            return "multiply-accumulates", self.full_macs, self.macs
        return "layers", self.depth, self.mean_exit

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `provenance` has the key "about". Costs that are not known have no key."""
        data = {"about" if name == "provenance" else name: value for name, value in asdict(self).items()}
        return {name: value for name, value in data.items() if value is not None or name not in COSTS}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        """Read the data that `to_json` returns."""
        return cls(**{"provenance" if name == "about" else name: value for name, value in data.items()})


COSTS = ("full_ms", "macs", "full_macs")
"""Fields of `Measured` that points of earlier versions do not have."""

RISKS = {
    "quality": "the rows answered wrong where the full model is right",
    "drop": "the full model's right answers lost",
    "agreement": "the rows answered otherwise than by the full model",
}
"""Risks that a certificate may bound: the share of ..."""


def confidence_text(delta: float) -> str:
    """Return 1 - delta with four digits, or as many as it takes not to read as 1."""
    return f"{1 - delta:.{max(4, math.ceil(-math.log10(max(delta, 1e-15))))}g}"


@dataclass(frozen=True)
class Certificate:
    """A bound on an operating point's risk, for rows drawn like the ones that it was certified on.

    Attributes:
        risk: a name of RISKS.
        level: the risk that was allowed, at most.
        delta: the bound is broken for at most this share of the draws of rows; None = the bound is on the mean
            over draws alone.
        bound: the bound itself: `level`, or 0 at full depth.
        observed: the risk on the rows.
        rows: number of rows that the risk was measured on.
        method: a name of `offramp.calibration.certify.METHODS`.
        engine: the engine that ran the model; None = not known.
        data: SHA-256 of the rows (`offramp.types.trace.trace_digest`).
        weights: SHA-256 of the model's weights; None = not known.
        note: the reason why there is no early exit; empty where there is one.

    Example:
        >>> certificate = offramp.Certificate("agreement", 0.05, 0.05, 0.05, 0.03, 500, "binomial", None, "ab12")
        >>> certificate.describe()
        'certified with 0.95 confidence: at most 5% of the rows answered otherwise than by the full model (...)'
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

    def describe(self) -> str:
        """Return the certificate in one line."""
        basis = f"{self.method}, {rows_text(self.rows)}, {self.observed:.2%} seen"
        if self.note:
            return f"full depth: {self.note} ({self.risk} {self.level:g}, {basis})"
        confidence = (
            "on average over draws of rows" if self.delta is None else f"with {confidence_text(self.delta)} confidence"
        )
        return f"certified {confidence}: at most {100 * self.bound:.4g}% of {RISKS[self.risk]} ({basis})"


@dataclass(frozen=True)
class OperatingPoint:
    """A policy by name, its thresholds, and the results there. It holds no objects.

    Attributes:
        policy: {"name": ..., its parameters}.
        thresholds: one for each exit but the last; `math.inf` = never.
        target: the requirement it was chosen for, e.g. {"max_drop": 0.01}.
        measured: the results where it was chosen; None for a point set by hand.
        certificate: the bound on its risk; None for a point that `offramp.certify` did not make.
        label_thresholds: for several labels, the probability above which each is part of an answer, at every exit;
            above 0, below 1. None = 0.5 for all. They change no exit.
        exit_layers: the layer numbers of the exits that it reads, one more than thresholds; None = see `layers_read`.
        agreement: the bound on how often its answers differ from the full model's, beside `certificate`, for a server
            to watch; None = there is none.
        fingerprint: of the part of the model that it was chosen for, written where it is saved with the model; None =
            not known. Equal points may have different ones.

    Raises:
        InvalidInput: a policy without a name, a threshold that is NaN, or a label threshold out of range.

    Example:
        >>> point = offramp.OperatingPoint({"name": "entropy"}, (0.5, 0.4, float("inf")))
        >>> point.to_json()["thresholds"]
        [0.5, 0.4, 'never']
    """

    policy: Mapping[str, Any]
    thresholds: tuple[float, ...]
    target: Mapping[str, float] = field(default_factory=dict)
    measured: Measured | None = None
    certificate: Certificate | None = None
    label_thresholds: tuple[float, ...] | None = None
    exit_layers: tuple[int, ...] | None = None
    agreement: Certificate | None = None
    fingerprint: Fingerprint | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.label_thresholds is not None:
            object.__setattr__(self, "label_thresholds", checked_label_thresholds(self.label_thresholds))
        if any(isinstance(value, (bool, str)) for value in self.thresholds):
            raise InvalidInput(f"a threshold must be a number, got {self.thresholds}")
        object.__setattr__(self, "thresholds", tuple(float(value) for value in self.thresholds))
        if "name" not in self.policy:
            raise InvalidInput(f"an operating point's policy is data with a name, got {dict(self.policy)}")
        if any(math.isnan(value) for value in self.thresholds):
            raise InvalidInput(f"a threshold must be a number, got {self.thresholds}")
        if self.exit_layers is not None:
            object.__setattr__(self, "exit_layers", checked_layers(self.exit_layers, len(self.thresholds) + 1))

    def layers_read(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Return the layer numbers of the exits that the point reads.

        Where it does not name them, they are all, or all but one before the first layer: that one was added later.

        Args:
            layers: of the exits of a model or a trace.

        Raises:
            InvalidInput: it reads exits that are not there, or not the last one, or has another number of thresholds.
        """
        exits, count = tuple(layers), len(self.thresholds) + 1
        if self.exit_layers is not None:
            if not set(self.exit_layers) <= set(exits) or self.exit_layers[-1] != exits[-1]:
                raise InvalidInput(
                    f"the point reads the exits at layers {list(self.exit_layers)}; there are {list(exits)}, and the"
                    " last one must be read"
                )
            return self.exit_layers
        if exits[0] == 0 and count == len(exits) - 1:
            return exits[1:]
        if count != len(exits):
            raise InvalidInput(
                f"{len(exits)} exits take 1 or {len(exits) - 1} thresholds (all exits but the last), got {count - 1}"
            )
        return exits

    def to_json(self) -> dict[str, Any]:
        """Return plain data; the thresholds inf and -inf are the words "never" and "always".

        Without label thresholds, exit layers, agreement or fingerprint there is no key for them.
        """
        words = {value: word for word, value in WORDS.items()}
        data = asdict(self)
        for name in ("label_thresholds", "exit_layers", "agreement", "fingerprint"):
            if data[name] is None:
                del data[name]
        return {
            **data,
            "policy": dict(self.policy),
            "thresholds": [words.get(value, value) for value in self.thresholds],
            "measured": self.measured and self.measured.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OperatingPoint:
        """Read the data that `to_json` returns.

        Raises:
            InvalidInput: a field that is missing, unknown or not right.
        """
        check_point(data, "an operating point")
        thresholds = tuple(WORDS[value] if isinstance(value, str) else value for value in data["thresholds"])
        measured = Measured.from_json(data["measured"]) if data.get("measured") else None
        certificate, agreement = (
            Certificate(**data[name]) if data.get(name) else None for name in ("certificate", "agreement")
        )
        labels, target = data.get("label_thresholds"), data.get("target") or {}
        fingerprint = Fingerprint.from_json(data["fingerprint"]) if data.get("fingerprint") else None
        layers = data.get("exit_layers")
        return cls(data["policy"], thresholds, target, measured, certificate, labels, layers, agreement, fingerprint)


def checked_label_thresholds(values: Sequence[float]) -> tuple[float, ...]:
    """Return label thresholds as a tuple.

    Raises:
        InvalidInput: none, or one that is no number above 0 and below 1.
    """
    numbers = isinstance(values, Sequence) and all(type(value) in (int, float) and 0 < value < 1 for value in values)
    if not numbers or not values:
        raise InvalidInput(f"label_thresholds are probabilities above 0 and below 1, one for each label; got {values}")
    return tuple(float(value) for value in values)


def checked_layers(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the layer numbers of `count` exits as a tuple.

    Raises:
        InvalidInput: another number of them, or numbers that do not increase from 0 or more.
    """
    rises = all(type(layer) is int for layer in layers) and list(layers) == sorted({*layers})
    if not rises or len(layers) != count or layers[0] < 0:
        raise InvalidInput(f"exit_layers are {count} increasing layer numbers, one more than thresholds; got {layers}")
    return tuple(layers)


def threshold_words(thresholds: Sequence[float]) -> list[str]:
    """Return thresholds as text; inf and -inf are "never" and "always"."""
    words = {math.inf: "never", -math.inf: "always"}
    return [words.get(value, f"{value:.4g}") for value in thresholds]


def label_thresholds_text(values: Sequence[float], most: int = 20) -> str:
    """Return label thresholds in words, the first `most` of them."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f"labels above {', '.join(f'{value:.3g}' for value in values[:most])}{more}"


def read_points(path: str | os.PathLike[str]) -> dict[str, OperatingPoint]:
    """Read the operating points of a model folder's file, by name.

    Raises:
        InvalidInput: the file cannot be read as operating points, or its format is newer than `POINTS_FORMAT`.
    """
    return {name: OperatingPoint.from_json(data) for name, data in read_point_data(path, POINTS_FORMAT).items()}


def write_points(points: Mapping[str, OperatingPoint], path: str | os.PathLike[str]) -> None:
    """Write operating points (see `whole_file`)."""
    data = {"format": POINTS_FORMAT, "points": {name: point.to_json() for name, point in points.items()}}
    with whole_file(path) as file:
        file.write(json.dumps(data, indent=2) + "\n")


def fixed_depth_point(layer: int, layers: Sequence[int]) -> OperatingPoint:
    """Return the point at which all rows leave at one layer: the threshold is inf before it and -inf from it on."""
    thresholds = tuple(-math.inf if exit >= layer else math.inf for exit in layers[:-1])
    return OperatingPoint({"name": "fixed"}, thresholds, exit_layers=tuple(layers))
