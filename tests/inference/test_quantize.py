"""What int8 does to a graph, on small graphs written by hand: sums over tokens, products of integers, tables."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from offramp.errors import InvalidInput
from offramp.inference.onnx import quantize as quantizing
from offramp.inference.onnx.quantize import exact_int8, quantize
from offramp.inference.onnx.token_padding import pad_tokens
from offramp.model.activation_ranges import ActivationRanges

GENERATOR = np.random.default_rng(0)
SCOPES = "pkg.torch.onnx.name_scopes"


def graph(
    nodes: list[NodeProto], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], **weights: Any
) -> ModelProto:
    def infos(values: dict[str, list[Any]]) -> list[Any]:
        kinds = {name: TensorProto.INT64 if name == "ids" else TensorProto.FLOAT for name in values}
        return [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in values.items()]

    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "hand", infos(inputs), infos(outputs), initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: ModelProto, **inputs: Any) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(None, inputs)[0]
    return result


def of_module(node: NodeProto, module: str) -> NodeProto:
    node.metadata_props.add(key=SCOPES, value=str(["", f"model.backbone.{module}", "linear"]))
    return node


ATTENTION = graph(
    [
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "values"], ["out"]),
    ],
    {"scores": ["rows", 2, "tokens"], "values": ["rows", "tokens", 3]},
    {"out": ["rows", 2, 3]},
)
SUM = graph(
    [helper.make_node("ReduceSum", ["x", "axes"], ["out"], keepdims=0)],
    {"x": ["rows", "tokens"]},
    {"out": ["rows"]},
    axes=[1],
)


@pytest.mark.parametrize("tokens", [2, 3, 7, 8, 9, 21])
def test_attention_over_more_masked_tokens_is_the_same_to_the_last_bit(tokens: int) -> None:
    scores, values = (GENERATOR.normal(size=shape).astype(np.float32) for shape in ((4, 2, tokens), (4, tokens, 3)))
    exponentials = np.exp(scores.astype(np.float64))
    expected = exponentials / exponentials.sum(axis=-1, keepdims=True) @ values
    padded = pad_tokens(ATTENTION)
    plain = run(padded, scores=scores, values=values)
    assert np.allclose(plain, expected, atol=1e-6)
    for more in (1, 5, 43):
        hidden = np.pad(scores, ((0, 0), (0, 0), (0, more)), constant_values=-3e38)
        longer = np.pad(values, ((0, 0), (0, more), (0, 0)), constant_values=7)  # their share is 0
        assert np.array_equal(run(padded, scores=hidden, values=longer), plain)
    alone = [run(padded, scores=scores[[row]], values=values[[row]])[0] for row in range(4)]
    assert np.array_equal(alone, plain)


@pytest.mark.parametrize("tokens", range(2, 24))
def test_a_mean_over_more_tokens_of_weight_0_is_the_same_to_the_last_bit(tokens: int) -> None:
    shapes: dict[str, list[Any]] = {"weights": ["rows", 1, "tokens"], "states": ["rows", "tokens", 48]}
    mean = graph([helper.make_node("MatMul", ["weights", "states"], ["out"])], shapes, {"out": ["rows", 1, 48]})
    weights, states = (GENERATOR.normal(size=(4, *shape)).astype(np.float32) for shape in ((1, tokens), (tokens, 48)))
    padded = pad_tokens(mean)
    plain = run(padded, weights=weights, states=states)
    assert np.allclose(plain, weights.astype(np.float64) @ states, atol=1e-5)
    for more in (1, 5, 43):
        longer, behind = np.pad(weights, ((0, 0), (0, 0), (0, more))), ((0, 0), (0, more), (0, 0))
        assert np.array_equal(run(padded, weights=longer, states=np.pad(states, behind, constant_values=7)), plain)


def test_who_reads_a_softmax_itself_gets_its_own_columns() -> None:
    shares = graph(ATTENTION.graph.node[:1], {"scores": ["rows", 2, "tokens"]}, {"shares": ["rows", 2, "tokens"]})
    found = run(pad_tokens(shares), scores=np.zeros((1, 2, 5), np.float32))
    assert found.shape == (1, 2, 5)
    assert np.allclose(found, 0.2)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_sum_over_tokens_is_the_same_with_zeros_behind(keepdims: int) -> None:
    model = ModelProto.FromString(SUM.SerializeToString())
    model.graph.node[0].attribute[0].i = keepdims
    if keepdims:
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    numbers = GENERATOR.normal(size=(5, 13)).astype(np.float32)
    found = run(pad_tokens(model), x=numbers)
    assert found.shape == ((5, 1) if keepdims else (5,))
    assert np.allclose(found.reshape(5), numbers.sum(axis=1), atol=1e-5)
    assert np.array_equal(run(pad_tokens(model), x=np.pad(numbers, ((0, 0), (0, 30)))), found)
    assert np.array_equal(run(pad_tokens(model), x=numbers[2:3])[0], found[2])
    assert "ReduceSum" not in {node.op_type for node in pad_tokens(model).graph.node}


def test_a_product_over_a_known_width_stays_as_it_is() -> None:
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["out"])],
        {"x": ["rows", 4]},
        {"out": ["rows", 2]},
        w=np.ones((4, 2), np.float32),
    )
    assert pad_tokens(model).graph == model.graph


def test_a_linear_layer_multiplies_integers_by_the_scale_of_its_range() -> None:
    weight, bias = np.array([[1.0, -0.5], [0.25, 2.0]], np.float32), np.array([10.0, 0.0], np.float32)
    nodes = [
        of_module(helper.make_node("MatMul", ["x", "w"], ["product"]), "layer"),
        of_module(helper.make_node("Add", ["product", "b"], ["out"]), "layer"),
    ]
    model = quantize(graph(nodes, {"x": ["rows", 2]}, {"out": ["rows", 2]}, w=weight, b=bias), {"layer": (-1.0, 4.1)})
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    x = np.array([[0.5, -0.99], [100.0, 0.0]], np.float32)
    step = 5.1 / 255  # = 0.02; the zero point is 50
    rounded = np.clip(np.round(x / step) + 50, 0, 255) - 50  # 100 is beyond the range: cut to 4.1
    assert rounded.tolist() == [[25, -50], [205, 0]]
    scales = np.array([1.0, 2.0]) / 127
    integers = np.round(weight / scales)
    assert integers.tolist() == [[127, -32], [32, 127]]
    assert np.allclose(run(model, x=x), rounded * step @ (integers * scales) + bias, atol=1e-5)


def test_layers_that_read_one_value_share_its_integers_and_those_without_a_range_stay_in_float32() -> None:
    nodes = [of_module(helper.make_node("MatMul", ["x", f"w{n}"], [f"y{n}"]), f"layer{n}") for n in range(3)]
    weights = {f"w{n}": np.full((2, 2), n + 1.0, np.float32) for n in range(3)}
    model = graph(nodes, {"x": ["rows", 2]}, {f"y{n}": ["rows", 2] for n in range(3)}, **weights)
    kinds = [node.op_type for node in quantize(model, {"layer0": (0.0, 1.0), "layer1": (0.0, 1.0)}).graph.node]
    assert kinds == ["QuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat", "MatMul"]


def test_ranges_that_miss_a_layer_are_refused() -> None:
    prepare = exact_int8(ActivationRanges({1: {"layer": (0.0, 1.0)}}, 1, "rows"))
    with pytest.raises(InvalidInput, match=r"activation_ranges\.json: no ranges for layer 2; remove it"):
        prepare(SUM, [1, 2], {})


def test_a_large_table_is_stored_in_integers_with_a_scale_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (GENERATOR.normal(size=(9, 4)) * np.arange(1, 10)[:, None]).astype(np.float32)
    node = of_module(helper.make_node("Gather", ["table", "ids"], ["out"]), "embeddings.word_embeddings")
    model = graph([node], {"ids": ["rows", "tokens"]}, {"out": ["rows", "tokens", 4]}, table=table)
    assert [weight.name for weight in quantize(model, {}).graph.initializer] == ["table"]  # this one is small
    monkeypatch.setattr(quantizing, "LARGE", 36)
    small = quantize(model, {})
    assert {weight.name: weight.data_type for weight in small.graph.initializer} == {
        "table.integers": TensorProto.INT8,
        "table.scales": TensorProto.FLOAT,
    }
    ids = np.array([[0, 8], [3, 3]])
    error = np.abs(run(small, ids=ids) - table[ids])
    assert (error <= np.abs(table[ids]).max(axis=-1, keepdims=True) / 254 + 1e-6).all()
