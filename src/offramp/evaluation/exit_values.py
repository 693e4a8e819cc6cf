"""What each exit of an operating point takes and saves, in milliseconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from offramp.policies.registry import load_policy
from offramp.policies.replay import answers_at, run_policy
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import OperatingPoint
from offramp.types.trace import Trace


@dataclass(frozen=True)
class ExitValue:
    """One exit but the last.

    Attributes:
        layer: its layer number.
        takes_ms: what reading it takes, of a row that reaches it.
        saves_ms: what a row would take more on average without it, below 0 where it would take less; None where the
            point does not read it.
    """

    layer: int
    takes_ms: float
    saves_ms: float | None


def exit_values(trace: Trace, point: OperatingPoint, cost: CostTable | None) -> tuple[ExitValue, ...]:
    """Return what every exit but the last takes and saves at a point.

    Without an exit the rows that leave there go on to the next; the other thresholds stay as they are.

    Args:
        trace: of rows like those to come; labels are not used.
        point: whose exits the trace has.
        cost: of the trace's exits, or of more.

    Returns:
        () where it is not known what reading an exit takes: no table, or one without prices or of other exits.
    """
    layers = trace.layer_numbers
    if cost is None or cost.exit_ms is None or not set(layers) <= set(cost.layers) or layers[-1] != cost.layers[-1]:
        return ()
    read = list(point.layers_read(layers))
    rows = trace.select(read)
    scores, logits = run_policy(load_policy(point.policy), rows)

    def mean_ms(thresholds: list[float], table: CostTable) -> float:
        return table.mean_ms(answers_at(rows, scores, logits, thresholds).exit_layers)

    limits, values = list(point.thresholds), []
    with_all = mean_ms(limits, cost.select(read))
    for layer, takes in zip(layers[:-1], cost.select(layers).exit_ms or (), strict=True):
        saves = None
        if layer in read:
            closed = [math.inf if other == layer else limit for other, limit in zip(read, limits, strict=False)]
            saves = mean_ms(closed, cost.select([other for other in read if other != layer])) - with_all
        values.append(ExitValue(layer, takes, saves))
    return tuple(values)
