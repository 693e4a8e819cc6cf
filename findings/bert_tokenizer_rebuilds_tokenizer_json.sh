#!/usr/bin/env bash
# Expected by most: a folder's tokenizer.json says how texts become tokens; transformers and the library `tokenizers`, which
#   wrote it, read the same file and give the same tokens.
# What happens: for the class BertTokenizer transformers 5 takes the vocabulary from tokenizer.json and builds normalizer,
#   pre-tokenizer and post-processor anew, from tokenizer_config.json and its own defaults. A tokenizer that was trained
#   cased, and says so in tokenizer.json alone, lower-cases its texts in transformers; `tokenizers` does not. The class
#   PreTrainedTokenizerFast follows the file.
# Where it matters: encoders that were trained with their own tokenizer and saved as BERT's; servers that read
#   tokenizer.json (text-embeddings-inference, candle, tokenizers in a browser) beside training code in transformers.
# Source: measured here; transformers, models/bert/tokenization_bert.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.24.0" "tokenizers==0.23.3" 2>/dev/null
cat > "$folder/read.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "paris"]
cased = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
cased.normalizer = normalizers.BertNormalizer(lowercase=False)
cased.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
for name in ("BertTokenizer", "PreTrainedTokenizerFast"):
    here = folder / name
    here.mkdir()
    cased.save(str(here / "tokenizer.json"))
    (here / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "unk_token": "[UNK]"}))
    (here / "config.json").write_text(json.dumps({"model_type": "bert"}))
    file = Tokenizer.from_file(str(here / "tokenizer.json")).encode("Paris", add_special_tokens=False).tokens
    loaded = AutoTokenizer.from_pretrained(here)
    tokens = loaded.convert_ids_to_tokens(loaded("Paris", add_special_tokens=False)["input_ids"])
    print(f"{name}: {file} by the file, {tokens} by transformers ({type(loaded).__name__})")
    assert file == ["Paris"], file
    assert tokens == (["paris"] if name == "BertTokenizer" else ["Paris"]), tokens
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/read.py" "$folder" 2>/dev/null
