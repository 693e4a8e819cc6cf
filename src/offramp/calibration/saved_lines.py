"""Lines for a threshold at each exit that training leaves with the model (`lines.json`).

Lines (`offramp.policies.exit_scaling`) that are fitted on rows of a certificate would spoil it, so that one half of the
rows fits them and only the other half certifies. A certificate holds for any lines that do not depend on its rows. So
`offramp train` fits them on some of the rows that it trained on, and all rows of `offramp calibrate` may certify.

The exit before the first layer knows the rows that fitted it by heart, much more than the others do: a line of such
rows sends other rows out there too early. Its line is fitted on logits of a twin that these rows did not fit. Deep
exits give the last one's answer on all rows that were trained on, which fits a flat line: all rows would leave there,
or none. They have the line of the exit before them, which is stricter (`benchmarks/results/lexical_lines.md`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.calibration.lexical_rows import MOST_SHARED
from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.fitting import fit_lines
from offramp.policies.registry import POLICIES
from offramp.registry import load
from offramp.types.file_format import newer_format
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.trace import Trace, row_hashes
from offramp.types.whole_file import whole_file

LINES_FILE = "lines.json"
LINES_FORMAT = 1
FIT_ROWS = 500
"""Rows that training fits the lines on, at most."""


@dataclass(frozen=True)
class SavedLines:
    """Lines of each policy that may have them, for one set of weights.

    Attributes:
        weights: SHA-256 of the weights.
        lines: by the policy's name: for each exit a constant and a slope > 0.
        fitted_on: hashes of the rows that they were fitted on (`offramp.types.trace.row_hashes`).
        layers: the layer number of each exit; None = not known, in files of earlier versions.
    """

    weights: str
    lines: Mapping[str, tuple[tuple[float, float], ...]]
    fitted_on: tuple[str, ...]
    layers: tuple[int, ...] | None = None

    def refusal(self, trace: Trace, policy: str) -> str:
        """Return why a policy's lines must not serve a certificate on the rows of a trace; empty where they may."""
        if trace.provenance.get("weights") != self.weights:
            return f"{LINES_FILE} is of other weights"
        if policy not in self.lines:
            return f"{LINES_FILE} has no lines for {policy}"
        if self.layers is None and len(self.lines[policy]) != trace.depth:
            return f"{LINES_FILE} is of {len(self.lines[policy])} exits"
        if missing := sorted(set(trace.layer_numbers) - set(self.layers or trace.layer_numbers)):
            return f"{LINES_FILE} has no line for the exit at layer {missing[0]}"
        fitted_on = set(self.fitted_on)
        shared = sum(row in fitted_on for row in row_hashes(trace))
        return f"{LINES_FILE} was fitted on {shared} of these rows" if shared > MOST_SHARED * len(trace) else ""

    def parameters(self, policy: str, layers: Sequence[int]) -> dict[str, Any]:
        """Return a policy's lines at these layers as `offramp.fit_lines` returns them."""
        lines = dict(zip(self.layers or layers, self.lines[policy], strict=True))
        return {"lines": tuple(lines[layer] for layer in layers), "fitted_on": self.fitted_on}


def fit_saved_lines(trace: Trace, lexical_logits: Tensor | None = None) -> SavedLines:
    """Fit the lines of every policy that may have them.

    Args:
        trace: recorded from a model's folder, so that it names the weights; labels are not used.
        lexical_logits: (N, C) of the exit before the first layer, by one that these rows did not fit; None = it has no
            line.

    Raises:
        InvalidInput: rows whose logits are not finite; a trace that does not name its weights.
        NotApplicable: a regression, whose exits never agree.
    """
    if "weights" not in trace.provenance:
        raise InvalidInput("lines are kept for one set of weights, and the trace does not name its own")
    if trace.layer_numbers[0] == 0:
        trace = trace.select(trace.layer_numbers[1:]) if lexical_logits is None else _with_first(trace, lexical_logits)
    fitted = {"margin": fit_lines("margin", trace)}
    for name in (name for name in POLICIES if load(POLICIES, name).unit_interval):
        with suppress(NotApplicable):  # certainty without a gate
            fitted[name] = fit_lines(name, trace)
    answers = predictions(ExitOutput(trace.logits, problem_type=trace.problem_type))  # (L, N, G)
    repeats = (answers == answers[-1]).flatten(1).all(dim=1).tolist()
    lines = {name: _without_flat(result["lines"], repeats) for name, result in fitted.items()}
    return SavedLines(trace.provenance["weights"], lines, fitted["margin"]["fitted_on"], tuple(trace.layer_numbers))


def _without_flat(lines: Sequence[tuple[float, float]], repeats: Sequence[bool]) -> tuple[tuple[float, float], ...]:
    """Return lines with the line of the exit before in place of those of exits that repeat the last one's answers."""
    result: list[tuple[float, float]] = []
    for line, flat in zip(lines, repeats, strict=True):
        result.append(result[-1] if result and flat else line)
    return tuple(result)


def _with_first(trace: Trace, logits: Tensor) -> Trace:
    """Return a trace with other logits (N, C) at its first exit."""
    return replace(trace, logits=torch.cat((logits.unsqueeze(0), trace.logits[1:])))


def write_saved_lines(saved: SavedLines, folder: str | os.PathLike[str]) -> None:
    """Write a model folder's lines."""
    with whole_file(Path(folder) / LINES_FILE) as file:
        json.dump({"format": LINES_FORMAT, **asdict(saved)}, file)


def read_saved_lines(folder: str | os.PathLike[str]) -> SavedLines | None:
    """Read a model folder's lines; None where it has none.

    Raises:
        InvalidInput: the file cannot be read as lines, or its format is newer than `LINES_FORMAT`.
    """
    path = Path(folder) / LINES_FILE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] > LINES_FORMAT:
            raise newer_format(path, data["format"], LINES_FORMAT)
        lines = {name: tuple((float(a), float(b)) for a, b in pairs) for name, pairs in data["lines"].items()}
        if not all(math.isfinite(a) and math.isfinite(b) and b > 0 for pairs in lines.values() for a, b in pairs):
            raise ValueError("a line is a finite constant and a slope above 0")
        layers = None if data.get("layers") is None else tuple(map(int, data["layers"]))
        if layers is not None and any(len(pairs) != len(layers) for pairs in lines.values()):
            raise ValueError("each exit has one line")
        return SavedLines(str(data["weights"]), lines, tuple(map(str, data["fitted_on"])), layers)
    except InvalidInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidInput(f"{path}: not the lines that `offramp train` wrote ({reason}); remove it") from None
