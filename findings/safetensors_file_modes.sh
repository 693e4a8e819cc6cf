#!/usr/bin/env bash
# Expected by most: weights that are saved may be read by whoever may read the config.json beside them; both files are new,
#   and the umask decides. So it was up to safetensors 0.7.
# What happens: safetensors 0.8 writes a file with mode 0600, whatever the umask, also where the file before it had 0644.
# Where it matters: a model folder made by one user (root in a container's build, a training job) and served by another
#   one, who reads the configuration and the tokenizer, and is refused the weights. Whoever saves has to set the mode.
# Source: measured here; https://pypi.org/project/safetensors/0.8.0/
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/save.py" <<'PYTHON'
import os
import stat
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

os.umask(0o022)
path = Path(sys.argv[1])
modes = []
for _ in range(2):
    save_file({"weight": np.zeros(3, np.float32)}, path)
    modes.append(oct(stat.S_IMODE(path.stat().st_mode)))
    path.chmod(0o644)
print(f"safetensors {safetensors.__version__}: a new file {modes[0]}, over one of 0o644 {modes[1]}")
assert modes == sys.argv[2:], modes
PYTHON
for case in "0.7.0 0o644 0o644" "0.8.0 0o600 0o600"; do
  read -r version new over <<< "$case"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" "numpy==2.1.3" 2>/dev/null
  "$folder/venv/bin/python" "$folder/save.py" "$folder/$version.safetensors" "$new" "$over"
done
echo "as described"
