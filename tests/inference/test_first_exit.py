"""The exit before the first layer alone: it decides and answers as the nested graph does, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from offramp.data.padding import padded
from offramp.inference.onnx.first_exit import FirstExit
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.record import record
from offramp.policies.registry import load_policy
from offramp.policies.replay import scores
from support.contracts import CHOICES
from support.graphs import gated, graph_of, lexical
from support.models import token_rows
from support.traces import fitted, threshold_between

ROWS = token_rows(40, longest=30, seed=6)
EVERY, SKIPPING = (0, 1, 2, 3, 4), (0, 2, 4)

POLICIES = CHOICES | {
    "consistency": fitted("consistency", exits=5),
    "margin, tempered": {"name": "margin", "temperatures": (2.0, 0.5, 1.5, 1.0, 1.0)},
}


def saved(graph: OnnxSession, folder: Path) -> str:
    assert isinstance(graph.source, bytes)
    path = folder / "model.onnx"
    path.write_bytes(graph.source)
    return str(path)


@pytest.mark.parametrize(
    ("name", "read", "int8"),
    [
        ("margin", SKIPPING, True),
        ("entropy, by class", EVERY, False),
        pytest.param("consistency", EVERY, True, marks=pytest.mark.slow),
        pytest.param("patience, run", EVERY, False, marks=pytest.mark.slow),
        pytest.param("margin, tempered", EVERY, False, marks=pytest.mark.slow),
        pytest.param("entropy, all", EVERY, True, marks=pytest.mark.slow),
        pytest.param("certainty", SKIPPING, False, marks=pytest.mark.slow),
    ],
)
def test_it_answers_as_the_nested_graph_does(name: str, read: Sequence[int], int8: bool, tmp_path: Path) -> None:
    policy = load_policy(POLICIES[name])
    graph = graph_of(lexical(), policy, read=None if read is EVERY else read, int8=int8)
    first = FirstExit.load(saved(graph, tmp_path), lexical().config.pad_token_id)
    assert first is not None
    score = scores(policy, record(OnnxEngine(graph, lexical().config), ROWS).select(read))[0]
    middle = threshold_between(score, 0.5)
    limits = np.array([(middle, math.inf, -math.inf, middle)[row % 4] for row in range(len(ROWS))], np.float32)
    nested_limits = np.full((len(ROWS), 4), math.inf, np.float32)
    nested_limits[:, 0] = limits
    expected = graph.run(padded(ROWS, 0), nested_limits)
    for size in (len(ROWS), 7, 1):
        for start in range(0, len(ROWS), size):
            some = slice(start, start + size)
            logits, leaves = first.answer(ROWS[some], limits[some])
            assert leaves.tolist() == (expected.exit_layers[some] == 0).tolist()
            assert np.array_equal(logits[leaves], expected.logits[some][leaves])
    at_middle = expected.exit_layers[limits == np.float32(middle)] == 0
    assert 0 < at_middle.mean() < 1 or len(score.unique()) == 1  # policies that remember score the first exit alike


@pytest.mark.parametrize("read", [None, (2, 4)])
def test_a_graph_whose_policy_does_not_begin_there_has_none(read: Sequence[int] | None, tmp_path: Path) -> None:
    graph = graph_of(gated(), load_policy("entropy"), read=read)
    assert FirstExit.load(saved(graph, tmp_path), 0) is None
