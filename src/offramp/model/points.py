"""Read the operating points of a model's folder or hub repository. Needs no torch where a graph has their policies."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from offramp.errors import InvalidInput, UnknownName, one_line
from offramp.model.files import find_file
from offramp.policies.registry import acting, load_policy
from offramp.types.graph_file import ABOUT, GRAPHS, read_metadata
from offramp.types.model_content import ModelContent
from offramp.types.operating_point import DEFAULT, POINTS_FILE, OperatingPoint, read_points

logger = logging.getLogger(__name__)


def load_points(folder: str | os.PathLike[str], **options: Any) -> dict[str, OperatingPoint]:
    """Load the operating points of a model, by name; those of other weights are left out with a warning.

    Args:
        folder: or a hub name.
        options: transformers' arguments for the repository, such as `revision`.

    Raises:
        InvalidInput: a point that the model cannot run.
    """
    return _fresh_and_stale(folder, **options)[0]


def load_point(folder: str | os.PathLike[str], name: str) -> OperatingPoint | None:
    """Load one operating point of a model; None = full depth, where the point "default" is not there or stale.

    Raises:
        UnknownName: there is none of that name.
        InvalidInput: it was chosen for other weights; a point that the model cannot run.
    """
    points, stale = _fresh_and_stale(folder)
    if name in stale and name != DEFAULT:
        raise InvalidInput(
            f"{folder}: operating point {name!r} was chosen for {stale[name]}; `offramp calibrate` chooses it anew"
        )
    return None if name == DEFAULT and name not in points else named_point(points, name)


def _fresh_and_stale(
    folder: str | os.PathLike[str], **options: Any
) -> tuple[dict[str, OperatingPoint], dict[str, str]]:
    """Return the points of a model, and for the stale ones what they were chosen for; warn of those."""
    examined = examine_points(folder, **options)
    stale = {name: reason for name, (_, reason) in examined.items() if reason is not None}
    if stale:
        depth = "; answers run at full depth" if DEFAULT in stale else ""
        names = ", ".join(map(repr, stale))
        reason = next(iter(stale.values())) if len(set(stale.values())) == 1 else "another model"
        _warn_once(
            f"{folder}: operating points {names} were chosen for {reason} and are not used; "
            f"`offramp calibrate` chooses them anew{depth}"
        )
    return {name: point for name, (point, _) in examined.items() if name not in stale}, stale


def examine_points(folder: str | os.PathLike[str], **options: Any) -> dict[str, tuple[OperatingPoint, str | None]]:
    """Return the points of a model, by name, each with what it was chosen for instead ("other weights") or None.

    Raises:
        InvalidInput: a point that the model cannot run.
    """
    path = find_file(folder, POINTS_FILE, **options)
    if path is None:
        return {}
    content = ModelContent(Path(path).parent)
    points, checked = {}, list(_policies_of_graphs(content.folder))
    for name, point in read_points(path).items():
        where = f"{path}: point {name!r}"
        if acting(point.policy) not in checked:
            _check_policy(point, where)
        points[name] = _known_point(point, where, content)
    return {
        name: (point, None if point.fingerprint is None else content.difference(point.fingerprint))
        for name, point in points.items()
    }


@cache
def _warn_once(line: str) -> None:
    """Log a warning, once for a file: a model and its predictor read the same points."""
    logger.warning("%s", line)


def _policies_of_graphs(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the policies that the graphs in a folder hold, as data: they were built when the graphs were exported."""
    for name in GRAPHS.values():
        with suppress(InvalidInput):  # what loads the graph refuses it
            for key in json.loads(read_metadata(folder / name)[ABOUT]).get("policies", {}):
                policy = json.loads(key)
                yield {name: value for name, value in policy.items() if name != "exit_layers"}


def _check_policy(point: OperatingPoint, where: str) -> None:
    """Refuse a policy that cannot be built, which imports torch.

    Raises:
        InvalidInput: a policy that is not known, or a parameter of it that is not right.
    """
    try:
        load_policy(point.policy)
    except (InvalidInput, TypeError, ValueError) as error:
        raise InvalidInput(f"{where}: policy: {one_line(error)}") from None


def _known_point(point: OperatingPoint, where: str, content: ModelContent) -> OperatingPoint:
    """Return a point with a fingerprint, which points of earlier versions lack.

    Raises:
        InvalidInput: the wrong number of thresholds.
    """
    layers = content.layers or []
    if point.fingerprint is None:
        read = _layers_read(point, where, layers) if layers else None
        return replace(point, fingerprint=content.fingerprint(read, whole=False))
    if point.exit_layers is None and list(point.fingerprint.exit_layers) != layers:  # exits were added or removed since
        try:
            return replace(point, exit_layers=point.fingerprint.exit_layers)
        except InvalidInput as error:
            raise InvalidInput(f"{where}: thresholds: {error}") from None
    if set(point.fingerprint.exit_layers) <= set(layers):
        _layers_read(point, where, layers)
    return point


def _layers_read(point: OperatingPoint, where: str, layers: Sequence[int]) -> tuple[int, ...]:
    """Return the layers of the exits that a point reads.

    Raises:
        InvalidInput: the model does not have them.
    """
    try:
        return point.layers_read(layers)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: thresholds: {error}") from None


def named_point(points: Mapping[str, OperatingPoint], name: str) -> OperatingPoint:
    """Return the point of that name.

    Raises:
        UnknownName: there is none; the message lists those that exist.
    """
    if name not in points:
        known = ", ".join(points) or "none; `offramp calibrate` makes them"
        raise UnknownName(f"no operating point {name!r}; there are: {known}")
    return points[name]
