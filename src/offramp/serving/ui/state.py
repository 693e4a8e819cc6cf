"""The state of a server for its page: the model, the points, the traffic, the audit. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from offramp.serving.ladder import Rung, ladder_of
from offramp.serving.metrics import served_point
from offramp.serving.served import FULL, Served
from offramp.serving.ui.traffic import Window

if TYPE_CHECKING:
    from offramp.serving.audit import Audit
    from offramp.serving.service import Service


class PointState(msgspec.Struct):
    """An operating point.

    Attributes:
        name: FULL = full depth.
        cost: mean cost of a row, as a share of that at full depth; None = not measured.
        level: the share of rows that its certificate lets differ from the full model's answers; None = it has none.
        allowed: whether load may lead to it; without a ladder always.
        closed: whether drift has closed it.
        audited, differ: rows that were audited at it, and those with another answer than the full model's.
        agreement_bound: what the agreement was below, at some time, by the audit; 1 = nothing is known, None = not
            watched.
    """

    name: str
    cost: float | None
    level: float | None
    allowed: bool = True
    closed: bool = False
    audited: int = 0
    differ: int = 0
    agreement_bound: float | None = None


class State(msgspec.Struct):
    """What the page shows of a server.

    Attributes:
        model, engine, problem: of the model.
        outputs: how many classes, labels or values it has.
        layers: of the exits that are read.
        ladder: whether the server moves along a ladder.
        point: the name of the one in force.
        points: the strictest first.
        processes: that run the model, alive.
        waiting: rows that wait for one.
        audited, dropped: rows of the audit; 0 without one.
        traffic: of the last minute.
    """

    model: str
    engine: str
    problem: str
    outputs: int
    layers: list[int]
    ladder: bool
    point: str
    points: list[PointState]
    processes: int
    waiting: int
    audited: int
    dropped: int
    traffic: Window


def shown_points(service: Service) -> list[Rung]:
    """Return the rungs of a server's ladder, else all points and full depth; the strictest first."""
    if service.adaptive is not None:
        return list(service.adaptive.ladder.rungs)
    return list(ladder_of(service.served.points, None, None).rungs)


def state_of(service: Service, window: Window) -> State:
    """Return the state of a server with the traffic of the last minute."""
    served, adaptive = service.served, service.adaptive
    audit = None if adaptive is None else adaptive.audit
    return State(
        served.name,
        served.engine,
        served.config.problem_type,
        served.config.num_labels,
        list(served.layers_read),
        adaptive is not None,
        served_point(service),
        [_point(service, number, rung) for number, rung in enumerate(shown_points(service))],
        service.pool.alive,
        len(service.queue),
        0 if audit is None else audit.audited,
        0 if audit is None else audit.dropped,
        window,
    )


def _point(service: Service, number: int, rung: Rung) -> PointState:
    point = PointState(rung.name, rung.cost if _measured(service.served, rung.name) else None, rung.level)
    adaptive = service.adaptive
    if adaptive is not None:
        point.allowed = adaptive.ladder.nominal <= number <= adaptive.ladder.floor
        if adaptive.audit is not None:
            _add_audit(point, number, adaptive.audit)
    return point


def _add_audit(point: PointState, number: int, audit: Audit) -> None:
    """Add what the audit knows of a rung."""
    point.closed = audit.closed is not None and number >= audit.closed
    monitor = audit.monitors.get(number)
    if monitor is not None:
        point.audited, point.differ, point.agreement_bound = monitor.rows, monitor.losses, monitor.bound


def _measured(served: Served, name: str) -> bool:
    return name == FULL or served.points[name].measured is not None
