#!/usr/bin/env bash
# Expected by most: a model whose weights lie beside it in a file of external data loads wherever the two names lead to
#   those files: in the cache of the Hugging Face hub (links to blobs), on a Kubernetes volume, in a backup of hard links.
# What happens: ONNX Runtime 1.32 loads it if the weights belong to the outermost graph. If they belong to the branches of
#   an `If`, it calls the same files INVALID_GRAPH, for symbolic links and for a weights file that has a second hard link
#   ("potential hardlink attack"). onnx.load 1.23 refuses both kinds of links in either case.
# Where it matters: models with control flow (early exit, decoders merged with and without past) that are downloaded into
#   the hub's cache; every tool that reads linked models with onnx, such as quantizers; `cp -l`, `rsync --link-dest`,
#   package managers that link files into environments.
# Source: measured here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6" 2>/dev/null
cat > "$folder/linked.py" <<'PYTHON'
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1024]) for name in "xy")


def graph(name, inputs, nodes=None):
    weight = [] if nodes else [numpy_helper.from_array(np.ones(1024, np.float32), f"w_{name}")]
    return helper.make_graph(nodes or [helper.make_node("Add", ["x", f"w_{name}"], ["y"])], name, inputs, [Y], weight)


def save(path, branches):
    outer = graph("outer", [X])
    if branches:
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph("one", []), else_branch=graph("two", []))
        outer = graph("outer", [X, helper.make_tensor_value_info("c", TensorProto.BOOL, [])], [node])
    model = helper.make_model(outer, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)


def outcome(load, path):
    try:
        load(str(path))
        return "loads"
    except Exception as error:
        return f"refused: {' '.join(str(error).split())[-110:]}"


print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")
seen = {}
for branches in (False, True):
    where = Path(sys.argv[1], f"branches {branches}")
    plain, blobs, snapshot = where / "plain", where / "blobs", where / "snapshot"
    for part in (plain, blobs, snapshot):
        part.mkdir(parents=True)
    save(plain / "model.onnx", branches)
    save(blobs / "model.onnx", branches)
    for name in ("model.onnx", "model.onnx.data"):
        (snapshot / name).symlink_to(f"../blobs/{name}")
    for files, path in (("plain", plain), ("symbolic links", snapshot), ("a second hard link", plain)):
        if files == "a second hard link":
            os.link(plain / "model.onnx.data", where / "backup")
        for tool, load in (("onnxruntime", onnxruntime.InferenceSession), ("onnx.load", onnx.load)):
            result = outcome(load, path / "model.onnx")
            print(f"weights in {'branches' if branches else 'the outer graph'}, {files}, {tool}: {result}")
            seen[branches, files, tool] = result == "loads"
for (branches, files, tool), loads in seen.items():
    assert loads == (files == "plain" or (tool == "onnxruntime" and not branches)), (branches, files, tool)
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/linked.py" "$folder"
