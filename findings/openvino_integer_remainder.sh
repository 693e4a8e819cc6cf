#!/usr/bin/env bash
# Expected by most: the remainder of two int64 numbers is exact in an ONNX graph, whatever runs it.
# What happens: OpenVINO on the CPU computes an integer Mod in float32. Numbers above 2^24 lose digits before they are
#   divided, so most remainders are wrong, by up to the distance of neighbouring floats; ONNX Runtime's are right. Neither
#   says anything. Products and sums of the same size are exact.
# Where it matters: hashes inside a graph (hashed n-grams, feature hashing, bucketed embeddings): they look up other rows
#   than in training. Below 2^24 all is well, so a small vocabulary hides it. A table of number x factor % buckets, looked
#   up before the next sum, keeps the numbers small.
# Source: measured here; https://docs.openvino.ai, operation FloorMod-1, whose text allows any numeric type
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6" "onnx==1.23.2" "onnxruntime==1.32.0" "openvino==2026.4.1" 2>/dev/null
cat > "$folder/remainder.py" <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

BUCKETS = 49019
info = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in "xy"]
weight = numpy_helper.from_array(np.array(BUCKETS), "buckets")
graph = helper.make_graph([helper.make_node("Mod", ["x", "buckets"], ["y"])], "remainder", info[:1], info[1:], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
compiled = openvino.compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU")
rng = np.random.default_rng(0)
print(f"openvino {openvino.__version__}, onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
for least, most in ((0, 2**24), (2**24, 2**27), (2**27, 2**31 - 1)):
    x = rng.integers(least, most, 100_000)
    expected = x % BUCKETS
    assert np.array_equal(session.run(None, {"x": x})[0], expected)
    wrong = compiled({"x": x})["y"] != expected
    print(f"x from {least} to {most}: ONNX Runtime 0 % wrong, OpenVINO {wrong.mean():.0%} wrong")
    assert (wrong.mean() == 0) if most == 2**24 else (wrong.mean() > 0.2)
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/remainder.py"
