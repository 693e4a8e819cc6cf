#!/usr/bin/env bash
# Expected by most: a folder with a config.json and no tokenizer files has no tokenizer, so AutoTokenizer.from_pretrained
#   raises, as it did before version 5 of transformers.
# What happens: for BERT, RoBERTa, ALBERT, ELECTRA, DistilBERT, DeBERTa, CamemBERT and XLM-RoBERTa it returns a tokenizer
#   that knows nothing but the special tokens, five to eight of them. Every word of BERT's becomes [UNK]; RoBERTa's
#   tokenizer drops all words, so each text is an empty one. MPNet's raises
#   on the first word.
# Where it matters: encoders copied without their tokenizer, a save_pretrained of the model alone, checkpoints. Training
#   and inference run through, every text of a length has the same answer, and nothing but the accuracy shows it.
# Source: measured here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.24.0" "tokenizers==0.23.3" 2>/dev/null
cat > "$folder/without_files.py" <<'PYTHON'
import os
import sys
import tempfile

import tokenizers
import transformers

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
lengths = {}
for family in ("Bert", "Roberta", "Albert", "Electra", "DistilBert", "DebertaV2", "Camembert", "XLMRoberta", "MPNet"):
    folder = tempfile.mkdtemp(dir=sys.argv[1])
    getattr(transformers, f"{family}Config")().save_pretrained(folder)
    assert os.listdir(folder) == ["config.json"]
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        good, bad = (tokenizer(text)["input_ids"] for text in ("a very good film", "one truly awful bore"))
    except Exception as error:
        print(f"{family}: {error}")
        continue
    lengths[family] = len(tokenizer)
    print(f"{family}: {type(tokenizer).__name__} of {len(tokenizer)} tokens; two texts of four words: {good}, {bad}")
    assert good == bad
assert len(lengths) == 8 and max(lengths.values()) <= 8, lengths
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/without_files.py" "$folder" 2>/dev/null
