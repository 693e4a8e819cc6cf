"""The ladder that a model's folder holds, and the engine that runs it; no process is needed for that."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

from offramp.errors import InvalidInput
from offramp.inference.choose_engine import Choice, choose_engine, fault, name_of
from offramp.inference.load_engine import AUTO
from offramp.model.files import find_file
from offramp.model.points import load_points
from offramp.serving.served import FULL
from offramp.serving.settings import ModelSettings
from offramp.types.graph_file import GRAPHS
from offramp.types.ladder_names import LADDER_NAMES
from offramp.types.operating_point import OperatingPoint

log = logging.getLogger("offramp.serving")


def read_rungs(folder: str) -> dict[str, OperatingPoint]:
    """Return the points of a folder's ladder, by name; full depth is not among them.

    Those whose cost is not known are left out, with a line in the log: nothing says which others are stricter.

    Raises:
        InvalidInput: there are none.
    """
    rungs, unknown = _rungs(folder)
    if unknown:
        names = ", ".join(unknown)
        log.warning("left out of the ladder: %s, whose cost is not measured; `offramp calibrate --ladder` does", names)
    if not rungs:
        engine = next((name for name in ("onnx-int8", "onnx", "openvino") if find_file(folder, GRAPHS[name])), "torch")
        raise InvalidInput(f"{folder} has no ladder; {calibration(folder, engine)} saves one")
    return rungs


def _rungs(folder: str) -> tuple[dict[str, OperatingPoint], list[str]]:
    """Return the points of a folder's ladder but for full depth, and the names of those whose cost is not known."""
    points = load_points(folder)
    rungs = {name: points[name] for name in LADDER_NAMES if name in points and name != FULL}
    unknown = [name for name, point in rungs.items() if point.measured is None and min(point.thresholds) < math.inf]
    return {name: point for name, point in rungs.items() if name not in unknown}, unknown


def engine_of(model: ModelSettings, rungs: Mapping[str, OperatingPoint]) -> Choice:
    """Return the engine that runs a ladder: the one asked for, else that of its certificates, else as for a point.

    Raises:
        InvalidInput: it cannot run a rung, or the certificates hold for another one.
    """
    own, point = certified_with(rungs), list(rungs.values())[-1]
    choice = Choice(model.engine, model.threads, model.workers, "asked for")
    if model.engine == AUTO:
        choice = Choice(name_of(own) or AUTO, model.threads, model.workers, "the ladder's certificates hold for it")
        if choice.engine == AUTO or (model.allow_other_engine and fault(model.folder, choice.engine, point, own)):
            choice = choose_engine(model.folder, point, model.threads, model.workers, 1, model.allow_other_engine)
        if choice.without is not None:
            log.warning("torch runs the ladder: %s", choice.without)
    if own is not None and name_of(own) != choice.engine and not model.allow_other_engine:
        raise _other_engine(model.folder, own, choice.engine)
    recorded = own if name_of(own) == choice.engine else None
    for rung in rungs.values():
        if reason := fault(model.folder, choice.engine, rung, recorded):
            raise InvalidInput(f"{choice.engine} does not run the ladder: {reason}")
    return choice


def watched_rungs(folder: str, engine: str, allow_other_engine: bool) -> dict[str, OperatingPoint]:
    """Return the points of a folder's ladder for an engine; those with certificates of another one are not watched.

    Args:
        folder: of the model.
        engine: with its precision.
        allow_other_engine: let it run the ladder, with a warning.

    Raises:
        InvalidInput: the certificates hold for another engine, or another precision of it.
    """
    rungs, _ = _rungs(folder)
    own = certified_with(rungs)
    if own in (None, engine):
        return rungs
    if not allow_other_engine:
        raise _other_engine(folder, own, engine)
    log.warning("the ladder's certificates hold for %s, not for %s: its drift is not watched", own, engine)
    return {name: replace(point, agreement=None) for name, point in rungs.items()}


def certified_with(rungs: Mapping[str, OperatingPoint]) -> str | None:
    """Return the engine, with its precision, that a ladder's certificates hold for; None where it has none."""
    certificates = (certificate for point in rungs.values() for certificate in (point.agreement, point.certificate))
    return next((certificate.engine for certificate in certificates if certificate is not None), None)


def calibration(folder: str, engine: str) -> str:
    """Return the command that saves a ladder for an engine."""
    return f"`offramp calibrate {folder} --data FILE --ladder --engine {engine}`"


def _other_engine(folder: str, own: str | None, engine: str) -> InvalidInput:
    return InvalidInput(
        f"the ladder's certificates hold for {own}, not for {engine}; {calibration(folder, name_of(engine) or engine)}"
        " makes some for it, --allow-other-engine runs it without them"
    )
