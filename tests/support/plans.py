"""Rows of one batch at points and depths of their own, against replays of their traces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from offramp.data.padding import Array
from offramp.data.padding import padded as padded_arrays
from offramp.inference.answer_rows import RowPlan, answer_rows
from offramp.inference.engine import Engine
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers
from offramp.types.trace import Trace
from support.traces import threshold_between


def points_for(data: dict[str, Any], trace: Trace, read: Sequence[int]) -> tuple[OperatingPoint, OperatingPoint]:
    """Two points of a policy: one at which many rows leave early, one at which few do."""
    score = scores(load_policy(data), trace.select(read))[:-1]
    few, many = (threshold_between(score, place) for place in (0.8, 0.4))
    return tuple(OperatingPoint(data, (limit,) * (len(read) - 1), exit_layers=tuple(read)) for limit in (many, few))  # type: ignore[return-value]


def mixed(rows: int, points: Sequence[OperatingPoint | None], depths: Sequence[int | None]) -> list[RowPlan]:
    """Every point with every depth, in turn."""
    plans = [RowPlan(point, depth) for point in points for depth in depths]
    return [plans[(5 * row) % len(plans)] for row in range(rows)]  # 5 and the number of plans have no common factor


def expected_of(trace: Trace, plan: RowPlan, read: Sequence[int], whole: Sequence[int]) -> tuple[Answers, list[int]]:
    """The answers to all rows of a trace at a plan, and the layers whose exits it reads.

    Args:
        trace: of all exits of the engine.
        plan: of all rows.
        read: the layers that the point reads.
        whole: those at which rows leave without a point.
    """
    layers = list(whole if plan.point is None else read)
    limits = [math.inf] * (len(layers) - 1) if plan.point is None else list(plan.point.thresholds)
    if plan.max_depth is not None and plan.max_depth < layers[-1]:
        limits[max(number for number, layer in enumerate(layers) if layer <= plan.max_depth)] = -math.inf
    part = trace.select(layers)
    answers = replay(part, "certainty" if plan.point is None else plan.point.policy, limits)
    if plan.point is None:
        exits = torch.tensor([layers.index(layer) for layer in answers.exit_layers.tolist()])
        answers = Answers(part.logits[exits, torch.arange(len(exits))], answers.exit_layers, answers.failed)
    return answers, layers


def assert_each_row_has_its_own_plan(
    engine: Engine,
    rows: list[dict[str, Any]],
    trace: Trace,
    plans: Sequence[RowPlan],
    layers: tuple[Sequence[int], Sequence[int]],
    tolerance: float,
    exact: bool = False,
) -> set[int]:
    """All rows in one batch, in batches of seven, and alone; return the layers at which they left.

    Args:
        engine: answers.
        rows: of tokens.
        trace: of all exits of the engine.
        plans: one a row.
        layers: as `read` and `whole` of `expected_of`.
        tolerance: of the logits.
        exact: the logits are the same in every batch, to the last bit.
    """
    expected = [expected_of(trace, plan, *layers) for plan in plans]
    runs = [list(answers_of(engine, rows, plans, size)) for size in (len(rows), 7, 1)]
    for found in runs:
        for row, (logits, layer, by_exit) in enumerate(found):
            answers, read = expected[row]
            assert layer == answers.exit_layers[row], plans[row]
            np.testing.assert_allclose(logits, answers.logits[row].numpy(), rtol=0, atol=tolerance)
            passed = [number for number in read if number <= layer]
            assert [number for number, values in by_exit.items() if np.isfinite(values).all()] == passed
            for number in passed:
                wanted = trace.logits[trace.layer_numbers.index(number), row].numpy()
                np.testing.assert_allclose(by_exit[number], wanted, rtol=0, atol=0 if exact else tolerance)
            assert not exact or np.array_equal(logits, runs[0][row][0])
    return {layer for _, layer, _ in runs[0]}


def answers_of(
    engine: Engine, rows: list[dict[str, Any]], plans: Sequence[RowPlan], size: int
) -> Iterator[tuple[Array, int, dict[int, Array]]]:
    """Logits, exit layer and logits by exit of each row, in batches of a size."""
    for start in range(0, len(rows), size):
        batch = padded_arrays(rows[start : start + size], engine.config.pad_token_id)
        found = answer_rows(engine, batch, plans[start : start + size], by_exit=True)
        assert found.logits_by_exit is not None
        assert not found.failed.any()
        for logits, layer, by_exit in zip(found.logits, found.exit_layers.tolist(), found.logits_by_exit, strict=True):
            yield logits, layer, dict(zip(found.layers, by_exit, strict=True))
