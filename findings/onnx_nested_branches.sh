#!/usr/bin/env bash
# Expected by most: a model that onnx.helper built and serialized can be read again, at least by onnx itself.
# What happens: with enough `If` nodes inside each other's branches it cannot. Building and writing raise nothing, but
#   reading the very bytes fails: onnx.load says "Exceeded upb_DecodeOptions_MaxDepth", the checker says that the data is
#   "malformed, truncated", and ONNX Runtime says INVALID_PROTOBUF. Each branch costs three levels of messages
#   (graph, node, attribute) of the hundred that protobuf's decoders allow, a typed output of the innermost graph four
#   more. So with typed outputs 31 branches can be read, and 32 cannot. Without types and shapes on the outputs of
#   branches 32 can be read.
# Where it matters: graphs that leave early after each layer, unrolled loops, decision trees as branches. A model of 33
#   exits is the deepest that fits.
# Source: measured here; protobuf's default limit of 100 levels when decoding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "protobuf==7.36.2" "numpy==2.4.6" 2>/dev/null
cat > "$folder/nested.py" <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper


def branch(name, nodes, output, typed):
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1] if typed else None)
    return helper.make_graph(nodes, name, [], [info])


def model(depth, typed):
    """`depth` Ifs inside each other; the innermost hands on x."""
    inner = branch("innermost", [helper.make_node("Identity", ["x"], [f"y{depth}"])], f"y{depth}", typed)
    for level in reversed(range(depth)):
        other = branch(f"other{level}", [helper.make_node("Identity", ["x"], [f"z{level}"])], f"z{level}", typed)
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=inner, else_branch=other)
        inner = branch(f"level{level}", [node], f"y{level}", typed)
    del inner.output[:]
    inner.output.append(helper.make_tensor_value_info("y0", TensorProto.FLOAT, [1]))
    inner.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    inner.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outcome(action):
    try:
        action()
        return "read"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"


def run(content):
    session = onnxruntime.InferenceSession(content)
    session.run(None, {"x": np.ones(1, np.float32), "c": np.array(True)})


print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")
found = {}
for depth, typed in ((31, True), (32, True), (32, False)):
    content = model(depth, typed).SerializeToString()
    for reader, action in (("onnx.load", onnx.load_from_string), ("checker", onnx.checker.check_model), ("ORT", run)):
        found[depth, typed, reader] = outcome(lambda: action(content))
        print(f"{depth} branches, {'typed' if typed else 'untyped'} outputs, {reader}: {found[depth, typed, reader]}")
for (depth, typed, reader), result in found.items():
    assert (result == "read") == (depth == 31 or not typed), (depth, typed, reader, result)
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/nested.py"
