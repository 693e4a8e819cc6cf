#!/usr/bin/env bash
# Expected by most: padding that has weight 0 changes no digit of a masked mean: x + 0 is x, in floats too.
# What happens: in ONNX Runtime on x86 the product of weights (1, T) and states (T, D) is another number, in the last bits,
#   once zeros are behind the weights, and only for T = 7, 11, 15, 19 ... The kernel for one row takes the rows of the
#   matrix four at a time, then two, then one, and groups the sum accordingly: with 3 left it adds (a + b) + c in one
#   order, with a fourth that is 0 in another. Other lengths are not affected; nor is the product with two rows or more.
# Where it matters: mean pooling and attention pooling of texts in padded batches. One text in four has an embedding that
#   depends on the longest text of its batch; int8 behind it turns a last bit into a step of 1/256. Lengths rounded up to a
#   multiple of 4 or 8 cure it.
# Source: measured here; ONNX Runtime, onnxruntime/core/mlas/lib/amd64/SgemmKernelM1Avx.asm (the kernel for one row)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6" "onnx==1.23.2" "onnxruntime==1.32.0" 2>/dev/null
cat > "$folder/mean.py" <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

info = helper.make_tensor_value_info
inputs = [info("w", TensorProto.FLOAT, ["B", "M", "T"]), info("x", TensorProto.FLOAT, ["B", "T", "D"])]
outputs = [info("y", TensorProto.FLOAT, ["B", "M", "D"])]
graph = helper.make_graph([helper.make_node("MatMul", ["w", "x"], ["y"])], "mean", inputs, outputs)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)


def differs(rows, tokens):
    """The share of numbers that another count of zeros behind changes."""
    w = rng.normal(size=(8, rows, tokens)).astype(np.float32)
    x = rng.normal(size=(8, tokens, 384)).astype(np.float32)
    plain = session.run(None, {"w": w, "x": x})[0]
    changed = []
    for zeros in (1, 5, 32):
        wider, longer = ((0, 0), (0, 0), (0, zeros)), ((0, 0), (0, zeros), (0, 0))
        padded = session.run(None, {"w": np.pad(w, wider), "x": np.pad(x, longer, constant_values=1)})[0]
        changed.append((padded != plain).mean())
    return max(changed)


print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")
for rows in (1, 2):
    lengths = [tokens for tokens in range(2, 41) if differs(rows, tokens) > 0]
    print(f"products of {rows} row(s): zeros behind change numbers at the lengths {lengths}")
    assert lengths == ([tokens for tokens in range(7, 41, 4)] if rows == 1 else []), lengths
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/mean.py"
