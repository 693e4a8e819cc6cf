"""The operating points that a server moves along, from the strictest, which runs the most layers, on. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from offramp.errors import InvalidInput
from offramp.serving.served import FULL
from offramp.types.operating_point import OperatingPoint


@final
@dataclass(frozen=True)
class Rung:
    """A point of a ladder.

    Attributes:
        name: of the point; FULL = full depth.
        cost: the mean cost of a row, as a share of that at full depth: above 0, at most 1.
        level: the share of rows that its certificate lets differ from the full model's answers; 0 at full depth, None =
            it has no such certificate, and is not watched.
    """

    name: str
    cost: float
    level: float | None


@final
@dataclass(frozen=True)
class Ladder:
    """The rungs of a server.

    Attributes:
        rungs: the strictest first; their costs fall.
        nominal: the number of the rung without load.
        floor: the number of the loosest one that load may lead to, `nominal` or later.
    """

    rungs: tuple[Rung, ...]
    nominal: int
    floor: int

    @property
    def names(self) -> list[str]:
        """Return the names of the rungs."""
        return [rung.name for rung in self.rungs]


def ladder_of(points: Mapping[str, OperatingPoint], nominal: str | None, floor: str | None) -> Ladder:
    """Return the ladder of a model's points.

    Args:
        points: the rungs, in any order; full depth is one whether it is there or not.
        nominal: the name of the rung without load; None = the strictest.
        floor: the name of the loosest one that load may lead to; None = the loosest.

    Raises:
        InvalidInput: a name is of no rung, or the floor is stricter than the rung without load.
    """
    rungs = [_rung(name, point) for name, point in points.items() if name != FULL]
    rungs = [Rung(FULL, 1.0, 0.0), *sorted(rungs, key=lambda rung: -rung.cost)]
    names = [rung.name for rung in rungs]
    for option, name in (("--operating-point", nominal), ("--floor", floor)):
        if name is not None and name not in names:
            raise InvalidInput(f"{option} {name!r} is no point of the ladder; it has: {', '.join(names)}")
    start, end = _number(names, nominal, 0), _number(names, floor, len(names) - 1)
    if end < start:
        raise InvalidInput(f"--floor {floor!r} is stricter than the point without load, {names[start]!r}")
    return Ladder(tuple(rungs), start, end)


def _number(names: Sequence[str], name: str | None, other: int) -> int:
    return other if name is None else names.index(name)


def _rung(name: str, point: OperatingPoint) -> Rung:
    cost = 1.0 if point.measured is None else min(1.0, 1 / point.measured.speedup)
    return Rung(name, cost, None if point.agreement is None else point.agreement.bound)
