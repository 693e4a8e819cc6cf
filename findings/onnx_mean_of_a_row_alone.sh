#!/usr/bin/env bash
# Expected by most: a mean over one axis is the same for a row alone and for that row in a batch.
# What happens: ONNX Runtime's ReduceMean over axis 1 of (B, H, 1, T) has another kernel for B = 1, which drops that axis: from
#   H = 6 on it adds in another order, and a fifth to half of the means differ in the last bit. With H = 2 or 4 none does,
#   and batches of 2 and 3 agree. A product with equal weights (MatMul) gives a row the same in any batch.
# Where it matters: means over attention heads (token pruning, attention as a score): which of two tokens that score alike
#   stays may depend on whether the text comes alone. Caches and tests that compare single requests with batches notice.
# Source: measured here; ONNX Runtime, onnxruntime/core/providers/cpu/reduction/reduction_ops.cc
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6" "onnx==1.23.2" "onnxruntime==1.32.0" 2>/dev/null
cat > "$folder/mean.py" <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def session(heads, product):
    info = helper.make_tensor_value_info
    if product:
        constant = numpy_helper.from_array(np.full((1, 1, heads), 1 / heads, np.float32), "weights")
        nodes = [helper.make_node("Squeeze", ["x", "axis"], ["flat"]), helper.make_node("MatMul", ["weights", "flat"], ["y"])]
        constants = [constant, numpy_helper.from_array(np.array([2]), "axis")]
    else:
        nodes = [helper.make_node("ReduceMean", ["x", "axis"], ["y"], keepdims=0)]
        constants = [numpy_helper.from_array(np.array([1]), "axis")]
    inputs = [info("x", TensorProto.FLOAT, ["B", heads, 1, "T"])]
    graph = helper.make_graph(nodes, "mean", inputs, [info("y", TensorProto.FLOAT, ["B", 1, "T"])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


print(f"onnxruntime {onnxruntime.__version__}")
rng = np.random.default_rng(0)
batches = [3, 2]  # rows beside which the first one is compared with itself alone
for heads in (2, 4, 6, 8, 12):
    shares = []
    for product in (False, True):
        run, differ = session(heads, product), []
        for tokens in (5, 13, 30, 57, 100):
            x = rng.random((3, heads, 1, tokens), np.float32)
            alone, *wide = (run.run(None, {"x": x[:rows]})[0][0] for rows in (1, *batches))
            assert np.array_equal(*wide), "batches of two sizes"
            differ.append((wide[0] != alone).mean())
        shares.append(np.mean(differ))
    print(f"{heads} heads: alone {shares[0]:.1%} of a row's means differ, and {shares[1]:.1%} of its products")
    assert (shares[0] > 0.05) == (heads >= 6), heads
    assert shares[1] == 0, heads
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/mean.py" 2>/dev/null
