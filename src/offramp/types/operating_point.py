"""Operating points: targets, thresholds, measurements, certificates, and their file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from offramp.errors import InvalidInput

POINTS_FILE = "operating_points.json"


@dataclass(frozen=True)
class Target:
    """What a user asks of early exit: exactly one of these.

    Attributes:
        max_drop: keep at least (1 - max_drop) of the full model's score, 0..1.
        speedup: layers of the full model over mean exit layer, at least 1.
        agreement: share of samples that get the full model's answer, 0..1.
        latency_ms: mean time of a sample in milliseconds, above 0 (see `offramp.types.cost_table`).

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

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return next(name for name, value in asdict(self).items() if value is not None)

    @property
    def value(self) -> float:
        """The value of the field that is set."""
        value: float = getattr(self, self.kind)
        return value


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
        method: a name of `offramp.calibration.certify.METHODS`.
        engine: what ran the model; None = not known.
        data: SHA-256 of the rows (`offramp.types.trace.trace_digest`).
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

    def describe(self) -> str:
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


DEFAULT = "default"


def fixed_depth_point(layer: int, layers: Sequence[int]) -> OperatingPoint:
    """Everybody leaves at one layer: under any policy every score reaches a threshold of -inf, and none one of inf."""
    return OperatingPoint({"name": "fixed"}, tuple(-math.inf if each >= layer else math.inf for each in layers[:-1]))
