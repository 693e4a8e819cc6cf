#!/usr/bin/env bash
# Expected by most: torch.onnx.export(..., optimize=False) differs from optimize=True in speed, not in the names of the
#   graph's inputs and outputs, which the caller gives with input_names and output_names.
# What happens: a function that returns one tensor twice becomes a graph with two outputs of the same name; the first name
#   that was asked for is nowhere, and two outputs of one name are no valid ONNX. A function that returns its own input
#   becomes a graph whose *input* bears the output's name, so a caller who feeds "x" is refused. Nothing warns. With
#   optimize=True both are right: an Identity carries the second name.
# Where it matters: whoever exports without the optimizer to keep the parameters' names (to put other weights into the same
#   graph, say), and models that return a state beside an answer, which for some settings are the same tensor.
#   Returning `tensor.clone()` for the second one avoids it.
# Source: measured here.
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

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


class Twice(torch.nn.Module):
    def forward(self, x):
        y = x * 2
        return y, y


class InputToo(torch.nn.Module):
    def forward(self, x):
        return x, x * 2


def names(module, optimize):
    program = torch.onnx.export(
        module,
        (torch.ones(3),),
        input_names=["x"],
        output_names=["first", "second"],
        dynamo=True,
        optimize=optimize,
        verbose=False,
    )
    graph = program.model_proto.graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


print("torch", torch.__version__)
for module, expected in ((Twice(), (["x"], ["second", "second"])), (InputToo(), (["first"], ["first", "second"]))):
    for optimize in (True, False):
        inputs, outputs = names(module, optimize)
        print(f"{type(module).__name__}, optimize={optimize}: inputs {inputs}, outputs {outputs}")
        assert (inputs, outputs) == ((["x"], ["first", "second"]) if optimize else expected)
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/export.py" 2> /dev/null
