"""Batches in a process that runs torch: whatever joins them on the way, each row is answered as it is alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from offramp.data.padding import padded
from offramp.errors import InvalidInput
from offramp.inference import torch_rows
from offramp.inference.answer_rows import RowPlan
from offramp.inference.record import record
from offramp.inference.stage_prices import StagePrices
from offramp.inference.torch_engine import TorchEngine
from offramp.model.modeling import MultiExitModel
from offramp.serving import stages as stages_module
from offramp.serving.frames import AnswersFrame, ArrayFrame, BatchFrame, Frame, PartFrame
from offramp.serving.stages import Stages
from support.contracts import POISON
from support.graphs import lexical
from support.models import LAYERS, tiny_model, token_rows
from support.plans import expected_of, points_for

EVERY, SKIPPING = (0, 1, 2, 3, 4), (0, 2, 4)
ROWS = token_rows(40, seed=5)
DEAR = StagePrices((1.0,) * 5, (0.001,) * 5)
"""A stage takes as long for any batch of these rows: all that can go together do."""


def with_prices(prices: StagePrices, engine: TorchEngine, plans: dict[str, Any], patch: pytest.MonkeyPatch) -> Stages:
    patch.setattr(stages_module, "measured_prices", lambda engine: prices)
    return Stages(engine, lambda name, depth: RowPlan(plans[name], depth))


def frame_of(rows: list[dict[str, Any]], plans: list[tuple[str, int | None]], number: int, by_exit: bool) -> BatchFrame:
    inputs = {name: ArrayFrame.of(value) for name, value in padded(rows, 0).items()}
    return BatchFrame(inputs, plans, by_exit, number)


@pytest.mark.parametrize("prices", [DEAR, StagePrices((0.0,) * 5, (1.0,) * 5)], ids=["together", "apart"])
def test_each_row_is_answered_as_alone_and_as_soon_as_it_leaves(
    prices: StagePrices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points of two policies, of which one reads other exits; full depth; bounds; ten batches that come at any time."""
    engine, trace, draw = TorchEngine(lexical()), record(lexical(), ROWS, batch_size=1), random.Random(0)
    one, other = points_for({"name": "entropy"}, trace, EVERY), points_for({"name": "margin"}, trace, SKIPPING)
    points = {"a": one[0], "b": one[1], "c": other[0], "full": None}
    plans = [(draw.choice("abc") if draw.random() < 0.8 else "full", draw.choice([None, None, 2])) for _ in ROWS]
    stages, waiting = with_prices(prices, engine, points, monkeypatch), list(range(10))
    parts: dict[int, dict[int, AnswersFrame]] = {number: {} for number in waiting}
    whole: dict[int, AnswersFrame] = {}
    sizes = []
    while waiting or stages.busy:
        if waiting and (not stages.busy or draw.random() < 0.4):
            number = waiting.pop(0)
            own = slice(4 * number, 4 * number + 4)
            frames = stages.add(frame_of(ROWS[own], plans[own], number, number % 2 == 0))
        else:
            before = {len(group.batch) for group in stages._rows.groups}
            sizes.append(max(before))
            frames = stages.run()
        for frame in frames:
            if isinstance(frame, PartFrame):
                parts[frame.answers.number] |= dict.fromkeys(frame.rows, frame.answers)
                for index, row in enumerate(frame.rows):
                    assert_as_alone(trace, frame.answers, index, 4 * frame.answers.number + row, points, plans)
            else:
                assert isinstance(frame, AnswersFrame)
                whole[frame.number] = frame
    assert sorted(whole) == list(range(10))
    for number, answers in whole.items():
        assert answers.errors == {}
        for index in range(4):
            assert_as_alone(trace, answers, index, 4 * number + index, points, plans)
    assert sum(map(len, parts.values())) > 8  # rows were answered before the others of their batch
    assert (max(sizes) > 4) is (prices is DEAR)  # rows of several batches were one


def assert_as_alone(
    trace: Any, frame: AnswersFrame, index: int, row: int, points: dict[str, Any], plans: list[tuple[str, int | None]]
) -> None:
    name, depth = plans[row]
    expected, read = expected_of(trace, RowPlan(points[name], depth), SKIPPING if name == "c" else EVERY, EVERY[1:])
    assert frame.exit_layers[index] == expected.exit_layers[row]
    np.testing.assert_allclose(frame.logits.array()[index], expected.logits[row].numpy(), rtol=0, atol=1e-4)
    assert (frame.logits_by_exit is None) is bool(row // 4 % 2)
    if frame.logits_by_exit is not None:
        by_exit = frame.logits_by_exit.array()[index]
        passed = [layer for layer in read if layer <= frame.exit_layers[index]]
        assert [layer for layer, values in zip(EVERY, by_exit, strict=True) if np.isfinite(values).all()] == passed


def run_all(stages: Stages) -> dict[int, AnswersFrame]:
    answers = {}
    while stages.busy:
        frames: list[Frame] = stages.run()
        answers |= {frame.number: frame for frame in frames if isinstance(frame, AnswersFrame)}
    return answers


def test_a_row_at_fault_is_the_only_one_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stage that the rows of two batches share, and in the first step of a batch."""
    model = tiny_model(num_labels=3)
    block = MultiExitModel.block

    def broken(self: MultiExitModel, exit: int, carry: Any) -> Any:
        if exit == 2 and carry.hidden.isnan().any():
            raise RuntimeError("no such token")
        return block(self, exit, carry)

    monkeypatch.setattr(MultiExitModel, "block", broken)
    monkeypatch.setattr("offramp.early_exit.in_flight.nan_where_invalid", lambda score, logits: score * 0)
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight[POISON] = float("nan")
    rows = [dict(row) for row in ROWS[:6]]
    rows[4]["input_ids"] = [POISON, *rows[4]["input_ids"][1:]]
    stages = with_prices(StagePrices((1.0,) * 4, (0.0,) * 4), TorchEngine(model), {"full": None}, monkeypatch)
    full: list[tuple[str, int | None]] = [("full", None)] * 3
    assert stages.add(frame_of(rows[:3], full, 7, False)) == []
    assert stages.add(frame_of(rows[3:], full, 8, False)) == []
    answers = run_all(stages)
    assert answers[7].errors == {}
    assert answers[8].errors == {1: "RuntimeError: no such token"}
    assert answers[7].exit_layers == [LAYERS] * 3
    assert answers[8].exit_layers == [LAYERS, -1, LAYERS]


def test_rows_that_cannot_start_are_errors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = with_prices(DEAR, TorchEngine(tiny_model(num_labels=3)), {"full": None}, monkeypatch)
    (frame,) = stages.add(frame_of(ROWS[:2], [("full", 0), ("full", 0)], 3, False))
    assert isinstance(frame, AnswersFrame)
    message = f"ValueError: {InvalidInput('max_depth must be at least 1, the first exit; got 0')}"
    assert frame.errors == {0: message, 1: message}
    assert not stages.busy
    assert stages.add(frame_of(ROWS[:2], [("full", 0), ("full", None)], 4, False)) == []
    answers = run_all(stages)[4]
    assert (list(answers.errors), answers.exit_layers) == ([0], [-1, LAYERS])


def test_prices_are_measured_on_the_model() -> None:
    prices = torch_rows.measured_prices(TorchEngine(lexical()))
    assert len(prices.batch_s) == len(prices.token_s) == len(EVERY)
    assert (prices.batch_s[0], prices.token_s[0]) == (0.0, 0.0)  # the exit before the first layer
    assert sum(prices.batch_s[1:]) > 0
