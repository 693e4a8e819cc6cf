#!/usr/bin/env bash
# Expected by most: equal tensors with equal metadata make equal bytes, as the format's sorted tensors suggest. Files are
#   compared and stored by their digest (caches, DVC, hub uploads, "did the model change?").
# What happens: safetensors 0.8 writes the metadata of a file in an order that differs from run to run, as soon as there is
#   more than one entry. The same call gives another file, of the same length, each time. With one entry, such as
#   transformers' {"format": "pt"}, files are equal.
# Where it matters: reproducible builds and content-addressed storage of weights or traces with metadata of one's own;
#   compare the tensors and the metadata as read, not the file.
# Source: measured here
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==0.8.0" "numpy>=1.26" 2>/dev/null
cat > "$folder/save.py" <<'PYTHON'
import hashlib
import sys

import numpy as np
from safetensors.numpy import save

entries = {f"key {number}": "value" for number in range(int(sys.argv[1]))}
print(hashlib.sha256(save({"weight": np.zeros(4, np.float32)}, entries)).hexdigest())
PYTHON
digests() { for _ in 1 2 3 4 5; do "$folder/venv/bin/python" "$folder/save.py" "$1"; done | sort -u | wc -l; }
"$folder/venv/bin/python" -c 'import safetensors; print("safetensors", safetensors.__version__)'
one=$(digests 1) eight=$(digests 8)
echo "5 runs, 1 entry of metadata: $one different files; 8 entries: $eight"
[ "$one" = 1 ]
[ "$eight" -gt 1 ]
echo "as described"
