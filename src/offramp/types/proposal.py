"""What a server proposes after drift: the point that drifted, the evidence, old and new thresholds. Needs no torch.

    {"format": 1, "time": ..., "model": ..., "weights": ..., "engine": ..., "operating_point": ..., "in_force": ...,
     "certificate": {...}, "evidence": {...}, "thresholds": {"old": {"1": 0.9}, "new": {"1": "never"}}, "command": ...}

Beside it lies a trace of the rows that were audited after the alarm, once there are some (`trace_path`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from offramp.types.operating_point import Certificate
from offramp.types.point_fields import WORDS, read_proposal_data
from offramp.types.whole_file import whole_file

PROPOSAL_FORMAT = 1
"""The newest format of a proposal that this version reads."""


@final
@dataclass(frozen=True)
class Evidence:
    """What an alarm rests on.

    Attributes:
        rows: that were audited at the point.
        differing: those of them whose answers were not the full model's.
        agreement_bound: the agreement was below it at some time, but for a share `delta` of histories.
        delta: of this point; the server's own is the sum over all points that it watches.
    """

    rows: int
    differing: int
    agreement_bound: float
    delta: float


@final
@dataclass(frozen=True)
class Proposal:
    """What a server did about drift, for whoever decides on the point.

    Attributes:
        time: of the alarm, ISO 8601 in UTC.
        model: its name on the server.
        weights: their SHA-256.
        engine: that ran the model.
        operating_point: the name of the point that drifted.
        in_force: the name of the point that the server answers at instead, one step stricter.
        certificate: on the agreement of the point that drifted.
        evidence: of the audit.
        old: the thresholds of the point that drifted, by layer number.
        new: those of the one in force.
        command: that makes a point of it.
    """

    time: str
    model: str
    weights: str
    engine: str
    operating_point: str
    in_force: str
    certificate: Certificate
    evidence: Evidence
    old: Mapping[int, float]
    new: Mapping[int, float]
    command: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file (see `whole_file`)."""
        data = {"format": PROPOSAL_FORMAT, **asdict(self)}
        command = data.pop("command")
        data["thresholds"] = {name: _words(data.pop(name)) for name in ("old", "new")}
        with whole_file(path) as file:
            file.write(json.dumps({**data, "command": command}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Proposal:
        """Read a file that `save` wrote.

        Raises:
            InvalidInput: it cannot be read, or a field is missing, unknown or not right, or its format is newer.
        """
        data = read_proposal_data(path, PROPOSAL_FORMAT)
        thresholds = data.pop("thresholds")
        del data["format"]
        data["certificate"], data["evidence"] = Certificate(**data["certificate"]), Evidence(**data["evidence"])
        return cls(**data, old=_numbers(thresholds["old"]), new=_numbers(thresholds["new"]))


def trace_path(proposal: Path) -> Path:
    """Return the path of the trace beside a proposal's."""
    return proposal.with_suffix(".safetensors")


def _words(thresholds: Mapping[int, float]) -> dict[str, float | str]:
    words = {value: word for word, value in WORDS.items()}
    return {str(layer): words.get(value, value) for layer, value in thresholds.items()}


def _numbers(thresholds: Mapping[str, float | str]) -> dict[int, float]:
    return {int(layer): WORDS[value] if isinstance(value, str) else value for layer, value in thresholds.items()}
