"""What a graph does with a batch, by hand: thresholds of each row, padding, NaN, and what is refused."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from offramp.errors import InvalidInput
from offramp.inference.graph_inputs import Array
from offramp.inference.onnx.assemble import assemble
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.record import record
from offramp.policies.registry import load_policy, policy_to_dict
from support.contracts import POISON
from support.graphs import arrays, gated, graph_of, parts_of, with_policies
from support.models import LAYERS, padded, tiny_model, token_rows

ROWS = token_rows(9)
TOLERANCE = 1e-5


@cache
def graph(policy: str = "fixed") -> OnnxSession:
    return graph_of(gated(), load_policy(policy))


def batch(rows: list[dict[str, Any]] = ROWS, extra: int = 0) -> dict[str, Array]:
    return arrays(padded(gated(), rows, extra))


@cache
def said_by_torch() -> tuple[Array, Array]:
    """(B, L, C) and (B, L): what every exit says of the rows, one row at a time."""
    trace = record(gated(), ROWS, batch_size=1)
    return trace.logits.transpose(0, 1).numpy(), trace.certainty.T.numpy()


def close(found: Array, wanted: Array) -> bool:
    return np.allclose(found, wanted, atol=TOLERANCE, rtol=0, equal_nan=True)


# Thresholds.


def test_each_row_may_have_thresholds_of_its_own() -> None:
    layers = np.array([3, 1, 4, 2, 2, 4, 1, 3, 4])
    thresholds = np.repeat(layers[:, None] - 0.5, LAYERS - 1, axis=1)  # of the policy "fixed": the layer's number
    told = graph().run(batch(), thresholds)
    assert told.exit_layers.tolist() == layers.tolist()
    assert told.exit_layers.dtype == np.int64
    assert close(told.logits, said_by_torch()[0][np.arange(9), layers - 1])


def test_one_row_of_thresholds_is_for_all() -> None:
    for thresholds in ([9, 1.5, 9], np.array([[9, 1.5, 9]]), np.full((9, 3), [9, 1.5, 9])):
        assert graph().run(batch(), thresholds).exit_layers.tolist() == [2] * 9


def test_minus_infinity_at_an_exit_is_a_greatest_depth_there() -> None:
    told = graph("entropy").run(batch(), [math.inf, -math.inf, math.inf])
    assert told.exit_layers.tolist() == [2] * 9
    assert close(told.logits, said_by_torch()[0][:, 1])


def test_a_threshold_that_a_score_reaches_exactly_lets_it_go() -> None:
    assert graph().run(batch(), 2.0).exit_layers.tolist() == [2] * 9
    assert graph().run(batch(), math.nextafter(2.0, 3.0) + 1e-6).exit_layers.tolist() == [3] * 9


def test_never_is_the_last_layer() -> None:
    told = graph("entropy").run(batch(), math.inf)
    assert told.exit_layers.tolist() == [LAYERS] * 9
    assert close(told.logits_by_exit, said_by_torch()[0])
    assert close(told.certainty_by_exit, said_by_torch()[1])


@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
def test_behind_the_exit_at_which_a_row_left_stands_nan_and_nowhere_else(layer: int) -> None:
    others = layer % LAYERS + 1
    layers = np.array([layer] * 4 + [others] * 5)
    told = graph().run(batch(), np.repeat(layers[:, None] - 0.5, LAYERS - 1, axis=1))
    behind = np.arange(1, LAYERS + 1) > layers[:, None]  # (B, L)
    logits, certainty = said_by_torch()
    assert close(told.logits_by_exit, np.where(behind[..., None], np.nan, logits))
    assert close(told.certainty_by_exit, np.where(behind, np.nan, certainty))


def test_without_a_gate_no_certainty_is_told() -> None:
    model = tiny_model("cifar_resnet", 1)
    told = graph_of(model, load_policy("fixed")).run({"pixel_values": np.zeros((2, 3, 8, 8), np.float32)}, 1.0)
    assert told.certainty_by_exit is None
    assert told.logits_by_exit.shape == (2, 4, 1)


# Padding and masks.


def test_columns_of_padding_on_the_right_change_nothing() -> None:
    few, many = (graph().run(batch(extra=extra), 3.0) for extra in (0, 20))
    assert close(few.logits, many.logits)
    assert close(few.logits_by_exit, many.logits_by_exit)


def test_without_a_mask_every_token_is_real() -> None:
    without = {name: value for name, value in batch().items() if name != "attention_mask"}
    ones = {**without, "attention_mask": np.ones_like(without["input_ids"])}
    told = graph().run(without, math.inf)
    assert np.array_equal(told.logits, graph().run(ones, math.inf).logits)
    assert not close(told.logits, said_by_torch()[0][:, -1])  # the mask matters


def test_without_types_all_are_0_and_types_are_read() -> None:
    given = batch()
    told = graph().run(given, math.inf)
    assert "token_type_ids" not in given
    zeros, ones = np.zeros_like(given["input_ids"]), np.ones_like(given["input_ids"])
    assert np.array_equal(told.logits, graph().run({**given, "token_type_ids": zeros}, math.inf).logits)
    assert not close(told.logits, graph().run({**given, "token_type_ids": ones}, math.inf).logits)


@pytest.mark.parametrize("size", [1, 2])
def test_texts_of_one_token_are_answered(size: int) -> None:
    rows = [{"input_ids": [number + 5], "attention_mask": [1]} for number in range(size)]
    told = graph().run(batch(rows), [9, 2, 9])
    expected = record(gated(), rows).logits[1].numpy()
    assert told.exit_layers.tolist() == [2] * size
    assert close(told.logits, expected)


def test_other_integers_and_lists_are_taken_for_tokens() -> None:
    told = graph().run(batch(), 2.0)
    small = {name: value.astype(np.int32) for name, value in batch().items()}
    lists = {name: value.tolist() for name, value in batch().items()}
    assert np.array_equal(told.logits, graph().run(small, 2.0).logits)
    assert np.array_equal(told.logits, graph().run(lists, 2.0).logits)


# A row that turns to NaN.


@pytest.mark.parametrize("policy", ["entropy", "patience"])
def test_a_row_of_nan_leaves_at_once_and_touches_nobody(policy: str) -> None:
    poison = parts_of(gated(), "of a test")
    table = next(weight for weight in poison.embed.weights if list(weight.dims) == [40, 16])
    values = onnx.numpy_helper.to_array(table).copy()
    values[POISON] = np.nan
    sick = TensorProto()
    sick.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    weights = tuple(sick if weight.name == table.name else weight for weight in poison.embed.weights)
    rule = load_policy(policy)
    parts = with_policies(replace(poison, embed=replace(poison.embed, weights=weights)), [rule])
    poisoned = OnnxSession.load(assemble(parts, policy_to_dict(rule)).SerializeToString())
    rows = [dict(row, input_ids=list(row["input_ids"])) for row in ROWS]
    rows[3]["input_ids"][0] = POISON
    well = [number for number in range(9) if number != 3]
    for thresholds in (math.inf, [0.5, 1.5, 2.5] if policy == "patience" else 0.05):
        told, expected = poisoned.run(batch(rows), thresholds), graph(policy).run(batch(), thresholds)
        assert np.isnan(told.logits[3]).all()
        assert told.exit_layers[3] == 1
        assert told.exit_layers[well].tolist() == expected.exit_layers[well].tolist()
        assert close(told.logits[well], expected.logits[well])
        assert close(told.logits_by_exit[well], expected.logits_by_exit[well])


# What is refused.


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        ([0.5, 0.5], r"4 exits take 1 or 3 thresholds \(all exits but the last\).*got \(1, 2\)"),
        (np.zeros((2, 3)), r"for each of 9 rows; got \(2, 3\)"),
        (np.zeros((9, 4)), r"got \(9, 4\)"),
        (np.zeros((1, 9, 3)), r"got \(1, 9, 3\)"),
        ([], r"got \(1, 0\)"),
        (math.nan, "a threshold must be a number, got .*nan"),
        ([0.5, math.nan, 0.5], "a threshold must be a number, got .*nan"),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(thresholds: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        graph().run(batch(), thresholds)


TOKENS = np.ones((2, 3), np.int64)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "the graph reads input_ids, got nothing"),
        ({"pixel_values": TOKENS}, "the graph reads input_ids, got pixel_values"),
        ({"input_ids": TOKENS[:0]}, r"input_ids must have 2 axes, none of them empty; got \(0, 3\)"),
        ({"input_ids": TOKENS[:, :0]}, r"none of them empty; got \(2, 0\)"),
        ({"input_ids": TOKENS[0]}, r"must have 2 axes, none of them empty; got \(3,\)"),
        (
            {"input_ids": TOKENS, "attention_mask": TOKENS[:, :2]},
            r"attention_mask must be of shape \(2, 3\) as input_ids is, got \(2, 2\)",
        ),
        ({"input_ids": TOKENS, "token_type_ids": TOKENS[:1]}, r"token_type_ids must be of shape \(2, 3\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, Array], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        graph().run(inputs, 0.5)


def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    for content in (b"", b"not a graph", b"\x08\x0a" * 40):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(InvalidInput, match=r"model\.onnx: ONNX Runtime cannot load it") as refused:
            OnnxSession.load(tmp_path / "model.onnx")
        assert "\n" not in str(refused.value)
    with pytest.raises(InvalidInput, match=r"none\.onnx: ONNX Runtime cannot load it"):
        OnnxSession.load(tmp_path / "none.onnx")
    with pytest.raises(InvalidInput, match="the graph: ONNX Runtime cannot load it"):
        OnnxSession.load(b"not a graph")


def test_a_graph_of_somebody_else_is_refused_by_name(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    alien = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "alien", [x], [y])
    onnx.save(helper.make_model(alien, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "a.onnx")
    with pytest.raises(InvalidInput, match=r"a\.onnx: not a graph that `offramp export` wrote"):
        OnnxSession.load(tmp_path / "a.onnx")


def test_weights_beside_a_graph_are_those_inside(exported: Path) -> None:
    beside = OnnxSession.load(exported / "model.onnx")
    inside = OnnxSession.load(onnx.load(exported / "model.onnx").SerializeToString())
    assert beside.metadata == inside.metadata
    assert np.array_equal(beside.run(batch(), math.inf).logits, inside.run(batch(), math.inf).logits)


def test_the_runner_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, offramp.inference.onnx.session; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_may_share_a_graph() -> None:
    expected = graph("entropy").run(batch(), 0.05)
    with ThreadPoolExecutor(4) as pool:
        for told in pool.map(lambda _: graph("entropy").run(batch(), 0.05), range(12)):
            assert np.array_equal(told.exit_layers, expected.exit_layers)
            assert np.array_equal(told.logits, expected.logits)
