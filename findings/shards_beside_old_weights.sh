#!/usr/bin/env bash
# Expected by most: save_pretrained into a folder that has a model already replaces the model. It removes shards of the
#   save before, so what from_pretrained loads is what was saved last.
# What happens: a save in several shards leaves the single model.safetensors of an earlier save where it is, and
#   from_pretrained looks for that name first. It loads the old weights, without a word. The other way round, one file
#   over shards, is right. Fine-tuned answers turn into those of the model before.
# Where it matters: folders that are saved again with another max_shard_size, or with a model that outgrew the limit of one
#   file; "save over, then load" in tests passes for small models and fails for large ones.
# Source: measured here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.24.0" 2>/dev/null
cat > "$folder/shards.py" <<'PYTHON'
import os
import sys

import torch
import transformers
from transformers import BertConfig, BertModel

CONFIG = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
SHARD = "8KB"


def saved_twice(folder, *limits):
    """Save two models into one folder; return the one whose weights are loaded from there."""
    models = [BertModel(CONFIG) for _ in limits]
    for model, limit in zip(models, limits):
        model.save_pretrained(folder, max_shard_size=limit)
    print("   ", ", ".join(sorted(os.listdir(folder))))
    weight = BertModel.from_pretrained(folder).embeddings.word_embeddings.weight
    return [torch.equal(model.embeddings.word_embeddings.weight, weight) for model in models].index(True)


print(f"torch {torch.__version__}, transformers {transformers.__version__}")
loaded = {}
for name, limits in {"one file, then shards": ("5GB", SHARD), "shards, then one file": (SHARD, "5GB")}.items():
    loaded[name] = saved_twice(f"{sys.argv[1]}/{name}", *limits)
    print(f"{name}: the model that was saved {('first', 'last')[loaded[name]]} is loaded")
assert loaded == {"one file, then shards": 0, "shards, then one file": 1}
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/shards.py" "$folder" 2>/dev/null
