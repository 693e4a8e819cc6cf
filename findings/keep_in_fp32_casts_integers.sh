#!/usr/bin/env bash
# Expected by most: a part that a transformers model names in `_keep_in_fp32_modules_strict` stays as it was saved when
#   the model is loaded with dtype=torch.bfloat16 or float16; only its floating-point tensors can be meant by the name.
# What happens: its integer buffers are turned into float32 as well. Numbers above 2^24 lose their last digits (ids, hashes
#   and counts become other ones), and what indexes with them fails. Loaded without dtype they are what was saved, and so
#   are the integers of parts that nobody asked to keep.
# Where it matters: models with lookup tables, hashes or counters beside layers that need full precision. They keep the
#   integers outside of that part, or hold its precision by other means.
# Source: measured here; https://github.com/huggingface/transformers, src/transformers/modeling_utils.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.24.0" 2>/dev/null
cat > "$folder/keep.py" <<'PYTHON'
import sys

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

transformers.logging.set_verbosity_error()
ID = 2**53 + 1


class TableConfig(PreTrainedConfig):
    model_type = "table"


class TableModel(PreTrainedModel):
    config_class = TableConfig
    _keep_in_fp32_modules_strict = ["kept"]

    def __init__(self, config):
        super().__init__(config)
        self.kept, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        for part in (self.kept, self.other):
            part.register_buffer("ids", torch.tensor([ID]))
        self.post_init()


TableModel(TableConfig()).save_pretrained(sys.argv[1])
print(f"torch {torch.__version__}, transformers {transformers.__version__}; saved: {ID} as int64")
for dtype in (None, torch.bfloat16, torch.float16):
    model = TableModel.from_pretrained(sys.argv[1], dtype=dtype)
    kept, other = model.kept.ids, model.other.ids
    print(f"dtype={dtype}: kept {kept.dtype} {int(kept)}, other {other.dtype} {int(other)}")
    assert (other.dtype, int(other)) == (torch.int64, ID)
    assert (kept.dtype == torch.float32, int(kept) == ID) == (dtype is not None, dtype is None)
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/keep.py" "$folder/model" 2>/dev/null
