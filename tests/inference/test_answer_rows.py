"""A batch of rows with points and depths of their own: each row is answered as it is alone, by every engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from offramp.errors import InvalidInput
from offramp.inference.answer_rows import RowPlan, answer_rows
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.policies.registry import load_policy
from offramp.types.operating_point import OperatingPoint
from support.contracts import CHOICES, POISON
from support.graphs import arrays, gated, graph_of, lexical, weights_in
from support.models import LAYERS, VOCABULARY, WIDTH, padded, tiny_model, token_rows
from support.plans import assert_each_row_has_its_own_plan, mixed, points_for

ROWS = token_rows(28, seed=2)
DEPTHS = (None, 0, 1, 2, 3, LAYERS)
EVERY, LEXICAL = (1, 2, 3, 4), (0, 1, 2, 3, 4)
# without memory, with it, fitted, with offsets, and ensembles, whose answer is no exit's own
POLICIES = ("entropy", "patience", "consistency", "entropy, by class", "pcee, run", "entropy, all")
QUICK = ("entropy", "entropy, all")
TOLERANCE = 1e-4
SKIPPING = (0, 2, 4)
"""Exits that a policy reads: the one before the first layer, and not all behind it."""


def depths(read: tuple[int, ...]) -> list[int | None]:
    return [depth for depth in DEPTHS if depth is None or depth >= read[0]]


@pytest.mark.parametrize("name", POLICIES)
def test_in_torch_each_row_has_its_own_plan(name: str) -> None:
    """Points of two policies, of which the second one reads other exits; without a point all exits are read."""
    engine, trace = TorchEngine(lexical()), record(lexical(), ROWS, batch_size=1)
    points = points_for(CHOICES[name], trace, EVERY)
    plans = mixed(len(ROWS), [*points, None], depths(EVERY))
    left = assert_each_row_has_its_own_plan(engine, ROWS, trace, plans, (EVERY, EVERY), TOLERANCE)
    assert len(left) > 1
    if name == "entropy":
        others = points_for({"name": "margin"}, trace, SKIPPING)
        plans = mixed(len(ROWS), others, depths(SKIPPING))
        assert assert_each_row_has_its_own_plan(engine, ROWS, trace, plans, (SKIPPING, EVERY), TOLERANCE) == set(
            SKIPPING
        )


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in POLICIES]
)
def test_in_a_graph_each_row_has_its_own_plan(name: str, int8: bool) -> None:
    engine = OnnxEngine(graph_of(gated(), load_policy(CHOICES[name]), int8=int8), gated().config)
    trace = record(engine, ROWS, batch_size=1)
    plans = mixed(len(ROWS), [*points_for(CHOICES[name], trace, EVERY), None], depths(EVERY))
    left = assert_each_row_has_its_own_plan(engine, ROWS, trace, plans, (EVERY, EVERY), TOLERANCE, exact=int8)
    assert len(left) > 1


def test_a_graph_that_reads_some_exits_bounds_rows_at_these() -> None:
    engine = OnnxEngine(graph_of(lexical(), load_policy("margin"), read=SKIPPING, int8=True), lexical().config)
    trace = record(engine, ROWS, batch_size=1)
    points = points_for({"name": "margin"}, trace, SKIPPING)
    plans = mixed(len(ROWS), [*points, None], depths(SKIPPING))
    left = assert_each_row_has_its_own_plan(engine, ROWS, trace, plans, (SKIPPING, SKIPPING), TOLERANCE, exact=True)
    assert left == set(SKIPPING)


def test_without_a_point_a_row_may_leave_before_the_first_layer_in_torch() -> None:
    engine, trace = TorchEngine(lexical()), record(lexical(), ROWS, batch_size=1)
    plans = [RowPlan(None, 0 if row % 2 else None) for row in range(len(ROWS))]
    found = answer_rows(engine, arrays(padded(lexical(), ROWS)), plans)
    assert found.exit_layers.tolist() == [0 if row % 2 else LAYERS for row in range(len(ROWS))]
    assert np.array_equal(found.logits[1::2], trace.logits[0, 1::2])  # integers with a common scale
    assert found.logits_by_exit is None


def test_one_point_for_all_rows_is_the_engines_own_answer() -> None:
    engine = TorchEngine(gated())
    batch = padded(gated(), ROWS)
    for point in (OperatingPoint({"name": "entropy"}, (0.2, 0.1, 0.1)), None):
        found, expected = answer_rows(engine, arrays(batch), [RowPlan(point)] * len(ROWS)), engine.answer(batch, point)
        assert torch.equal(torch.from_numpy(found.logits), expected.logits)
        assert torch.equal(torch.from_numpy(found.exit_layers), expected.exit_layers)


def poisoned_graph() -> OnnxSession:
    """The graph of `gated`, in which the embedding of one token is NaN."""
    source = graph_of(gated(), load_policy("entropy")).source
    assert isinstance(source, bytes)
    graph = onnx.load_from_string(source)
    (table,) = [weight for weight in weights_in(graph) if list(weight.dims) == [VOCABULARY, WIDTH]]
    values = onnx.numpy_helper.to_array(table).copy()
    values[POISON] = math.nan
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    return OnnxSession.load(graph.SerializeToString())


@pytest.mark.parametrize("kind", ["torch", "graph"])
def test_a_row_that_turns_to_nan_has_failed_and_its_mates_have_not(kind: str) -> None:
    rows = [dict(row) for row in ROWS]
    rows[3]["input_ids"] = [POISON, *rows[3]["input_ids"][1:]]
    model = tiny_model(num_labels=3)
    engine: Any = TorchEngine(model)
    if kind == "graph":
        engine = OnnxEngine(poisoned_graph(), gated().config)
    else:
        with torch.no_grad():
            model.backbone.get_input_embeddings().weight[POISON] = math.nan
    points = [OperatingPoint({"name": "entropy"}, (0.2, 0.1, 0.1)), None]
    found = answer_rows(engine, arrays(padded(model, rows)), mixed(len(rows), points, depths(EVERY)), by_exit=True)
    assert found.failed.tolist() == [row == 3 for row in range(len(rows))]
    assert np.isfinite(found.logits).all(axis=1).tolist() == (~found.failed).tolist()


class Own:
    """An engine of a class that is not offramp's."""

    def __init__(self) -> None:
        self.engine = TorchEngine(gated())
        self.name, self.config, self.layers = "own-float32", self.engine.config, self.engine.layers
        self.check, self.answer, self.all_exits = self.engine.check, self.engine.answer, self.engine.all_exits


def test_an_engine_of_another_class_answers_at_points_and_says_that_it_takes_no_bounds() -> None:
    points = [
        OperatingPoint({"name": "entropy"}, (0.2, 0.1, 0.1)),
        None,
        OperatingPoint({"name": "patience"}, (1.5,) * 3),
    ]
    plans, batch = [RowPlan(points[row % 3]) for row in range(len(ROWS))], padded(gated(), ROWS)
    found = answer_rows(Own(), arrays(batch), plans)
    for number, point in enumerate(points):
        expected = TorchEngine(gated()).answer(batch, point)
        assert np.array_equal(found.exit_layers[number::3], expected.exit_layers[number::3])
        assert np.allclose(found.logits[number::3], expected.logits[number::3], atol=1e-4)
    for by_exit, some in ((True, plans), (False, [RowPlan(None, 2)] * len(ROWS))):
        with pytest.raises(InvalidInput, match="own-float32 answers at operating points alone"):
            answer_rows(Own(), arrays(batch), some, by_exit)


@pytest.mark.parametrize("kind", ["torch", "graph"])
def test_a_bound_before_the_first_exit_is_refused(kind: str) -> None:
    graph = graph_of(gated(), load_policy("entropy"))
    engine: Any = TorchEngine(gated()) if kind == "torch" else OnnxEngine(graph, gated().config)
    with pytest.raises(InvalidInput, match="max_depth must be at least 1, the first exit; got 0"):
        answer_rows(engine, arrays(padded(gated(), ROWS[:1])), [RowPlan(None, 0)])
