#!/usr/bin/env bash
# Expected by most: in a runtime's matrix product, a row's result is the same alone and among other rows; and a graph gives
#   the same numbers wherever it keeps its weights.
# What happens: ONNX Runtime packs a constant matrix ahead, and then a row alone and in a batch are equal to the last bit.
#   It does so where the matrix is an initializer of the graph that reads it, or of the graph around that one. A branch
#   inside a branch that reads an initializer of the outermost graph gets no packed matrix. One row then takes a kernel of
#   its own, which adds in another order: nearly every row alone differs from the same row in a batch in the last bits.
# Where it matters: models in branches with shared weights (adaptive networks, mixtures, merged decoders): the same text
#   alone and in a batch has two scores, which a threshold between them, a cache or a test by equality notices. A copy of
#   the matrix in the branch cures it.
# Source: measured here; ONNX Runtime, onnxruntime/core/mlas/lib/sgemm.cpp (the path for one row), and its documentation
#   of "session.disable_prepacking"
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6" "onnx==1.23.2" "onnxruntime==1.32.0" 2>/dev/null
cat > "$folder/rows.py" <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
rows = rng.normal(size=(64, 384)).astype(np.float32)
weight = numpy_helper.from_array(rng.normal(size=(150, 384)).astype(np.float32), "weight")


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def choice(name, inner, weights):
    """An `If` whose one branch computes `inner` with its own weights, and whose other one returns x."""
    outputs = [value(inner.output[0], TensorProto.FLOAT, None)]
    then = helper.make_graph([inner], f"{name}.then", [], outputs, weights)
    other = [helper.make_node("Identity", ["x"], [f"{name}.x"])]
    branch = helper.make_graph(other, f"{name}.else", [], [value(f"{name}.x", TensorProto.FLOAT, None)])
    return helper.make_node("If", ["yes"], [name], then_branch=then, else_branch=branch)


def session(branches, inside=False):
    """A product inside so many branches, with a matrix of its own branch or of the outermost graph."""
    node = helper.make_node("Gemm", ["x", "weight"], ["product"], transB=1)
    for number in range(branches):
        node = choice(f"out{number}", node, [weight] if inside and not number else [])
    inputs = [value("x", TensorProto.FLOAT, ["rows", 384]), value("yes", TensorProto.BOOL, [])]
    outputs = [value(node.output[0], TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "graph", inputs, outputs, [] if inside else [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")
for branches, inside in ((1, False), (2, False), (3, False), (2, True)):
    run = session(branches, inside)
    together = run.run(None, {"x": rows, "yes": np.array(True)})[0]
    alone = np.concatenate([run.run(None, {"x": row[None], "yes": np.array(True)})[0] for row in rows])
    differ = (alone != together).any(axis=1).mean()
    print(f"product inside {branches} branch(es), matrix {'in the innermost' if inside else 'in the outermost graph'}: "
          f"{differ:.0%} of the rows alone differ from the same row in a batch, by up to {np.abs(alone - together).max():.1e}")
    assert (differ > 0.5) if branches > 1 and not inside else (differ == 0)
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/rows.py"
