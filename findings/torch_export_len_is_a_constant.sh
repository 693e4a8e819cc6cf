#!/usr/bin/env bash
# Expected by most: len(x) and x.shape[0] are the same number, so torch.export treats them alike.
# What happens: in its default mode (non-strict since 2.7) len(x) is a plain integer: the axis becomes the constant of the
#   example. With Dim.AUTO the program is exported for that batch size alone, without a word; with Dim.DYNAMIC there is an
#   error that names the input and not the line. In strict mode both spellings stay dynamic. torch.onnx.export (dynamo)
#   hides the failure: it traces once more, in strict mode, so the file is right and the export takes twice as long.
# Where it matters: exports of models that pad, or make a mask, by len(batch); export times of large models.
# Source: measured here
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxscript==0.7.2" "numpy==2.4.6" 2>/dev/null
cat > "$folder/export.py" <<'PYTHON'
import logging
import warnings

import torch
import torch.export
from torch.export import Dim

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


class ByLen(torch.nn.Module):
    def forward(self, x):
        return torch.cat((x.new_zeros(len(x), 1), x), 1)


class ByShape(torch.nn.Module):
    def forward(self, x):
        return torch.cat((x.new_zeros(x.shape[0], 1), x), 1)


def first_axis(module, dim, strict):
    try:
        program = torch.export.export(module, (torch.ones(3, 4),), dynamic_shapes=({0: dim},), strict=strict)
    except Exception as error:
        return type(error).__name__
    (axis, _), *_ = (node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder")
    return "3" if str(axis) == "3" else "dynamic"


print("torch", torch.__version__)
expected = {("AUTO", False): "3", ("DYNAMIC", False): "UserError", ("AUTO", True): "dynamic", ("DYNAMIC", True): "dynamic"}
for module in (ByLen(), ByShape()):
    for (dim, strict), by_len in expected.items():
        axis = first_axis(module, getattr(Dim, dim), strict)
        print(f"{type(module).__name__}, Dim.{dim}, strict={strict}: the first axis is {axis}")
        assert axis == (by_len if isinstance(module, ByLen) else "dynamic"), axis

export, traces = torch.export.export, []


def counted(*arguments, **options):
    traces.append(options.get("strict"))
    return export(*arguments, **options)


torch.export.export = counted
for module, modes in ((ByLen(), [False, True]), (ByShape(), [False])):
    traces.clear()
    torch.onnx.export(module, (torch.ones(3, 4),), dynamic_shapes=({0: Dim.DYNAMIC},), dynamo=True, verbose=False)
    print(f"{type(module).__name__}: torch.onnx.export traces with strict = {traces}")
    assert traces == modes, traces
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/export.py" 2>/dev/null
