#!/usr/bin/env bash
# Expected by most: an elementwise function gives a number the same result wherever it stands in a tensor.
# What happens: torch's float32 sigmoid on the CPU takes vectors of numbers, and what is left at the end one by one, with
#   another formula for the exponential. So a number at the end of a tensor may get another last bit than the same number
#   in its middle, and a row of three other probabilities alone than in a batch. A softmax over (x, 0), which is the same
#   function, does not differ.
# Where it matters: several labels a text: probabilities of the same logits depend on the batch, although the model does
#   not. Comparisons for equality, caches and thresholds between two such numbers notice.
# Source: measured here; torch, aten/src/ATen/native/cpu/UnaryOpsKernel.cpp
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" 2>/dev/null
cat > "$folder/sigmoid.py" <<'PYTHON'
import torch

torch.set_num_threads(1)
logits = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 3
functions = {
    "sigmoid(x)": torch.sigmoid,
    "softmax of (x, 0)": lambda x: torch.stack((x, torch.zeros_like(x)), dim=-1).softmax(dim=-1)[..., 0],
}
print(f"torch {torch.__version__}")
for name, function in functions.items():
    together = function(logits)
    alone = torch.cat([function(row.unsqueeze(0)) for row in logits])
    differ = (together != alone).any(dim=1).float().mean().item()
    print(f"{name}: {differ:.1%} of the rows alone differ from the same row among 1,000, "
          f"by up to {(together - alone).abs().max():.1e}")
    assert (differ > 0.01) == name.startswith("sigmoid"), name
    assert differ > 0.01 or differ == 0, name
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/sigmoid.py" 2>/dev/null
