#!/usr/bin/env bash
# Expected by most: a classifier that was trained with LoRA (task type SEQ_CLS) and saved as an adapter answers the same
#   when base and adapter are loaded again; PEFT saves the new classification head beside the adapter.
# What happens: PEFT saves modules called "classifier" or "score" and no others. Where transformers puts further new layers
#   before the last one, they start at random, stay frozen, and are not in the adapter: `pooler.dense` of DeBERTa v2/v3,
#   `head` of ModernBERT. Loaded again, they are other random numbers, and so are the answers. BERT, RoBERTa, ELECTRA,
#   DistilBERT and ALBERT answer the same.
# Where it matters: adapters on DeBERTa-v3 and ModernBERT, whose published encoders have no such layers: the model that
#   was evaluated cannot be loaded a second time. `modules_to_save` has to name those layers as well.
# Source: measured here; https://github.com/huggingface/peft, PeftModelForSequenceClassification.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.24.0" "peft==0.21.2" 2>/dev/null
cat > "$folder/head.py" <<'PYTHON'
import sys
from pathlib import Path

import peft
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification

transformers.logging.set_verbosity_error()
SIZES = dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
FAMILIES = {
    "Bert": (SIZES, "query"),
    "Roberta": (SIZES, "query"),
    "Electra": (SIZES, "query"),
    "Albert": (SIZES, "query"),
    "DistilBert": (dict(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32), "q_lin"),
    "DebertaV2": (SIZES, "query_proj"),
    "ModernBert": (SIZES | SPECIAL, "Wqkv"),
}
print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
ids = torch.tensor([[1, 17, 23, 42, 2]])
for family, (sizes, target) in FAMILIES.items():
    base, adapter = Path(sys.argv[1], family), Path(sys.argv[1], f"{family}-adapter")
    AutoModel.from_config(getattr(transformers, f"{family}Config")(**sizes)).save_pretrained(base)

    def classifier():
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)

    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=[target])
    trained = peft.get_peft_model(classifier(), lora).eval()
    trained.save_pretrained(adapter)
    loaded = peft.PeftModel.from_pretrained(classifier(), adapter).eval()
    with torch.no_grad():
        change = (trained(input_ids=ids).logits - loaded(input_ids=ids).logits).abs().max().item()
    print(f"{family}: logits differ by {change:.2g} after loading again")
    assert (change > 1e-4) == (family in ("DebertaV2", "ModernBert")), family
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/head.py" "$folder" 2>/dev/null
