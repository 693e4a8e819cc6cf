#!/usr/bin/env bash
# Expected by most: `max_length=n, truncation=True` gives at most n tokens, or an error.
# What happens: where n is smaller than the special tokens around a text, nothing is cut at all. A limit of 2 leaves [CLS]
#   and [SEP] of a text; a limit of 1 gives the whole text, however long, without an error or a warning. For a pair, which
#   has three special tokens, that is so from a limit of 2 on.
# Where it matters: servers that hand a client's limit on to the tokenizer (vLLM's truncate_prompt_tokens, Hugging Face's
#   max_length): the smallest limits are the ones that do not limit, and the encoder gets more tokens than it has positions.
# Source: measured here; tokenizers, `TokenizerImpl::post_process`
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.24.0" "tokenizers==0.23.3" 2>/dev/null
cat > "$folder/cut.py" <<'PYTHON'
import tokenizers
import transformers
from transformers import BertTokenizer

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]
tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
for texts, expected in ((("a b c d",), {3: 3, 2: 2, 1: 6}), (("a b", "c d"), {4: 4, 3: 3, 2: 7, 1: 7})):
    for limit, count in expected.items():
        ids = tokenizer(*texts, truncation=True, max_length=limit)["input_ids"]
        print(f"{' + '.join(texts)}: at most {limit} tokens asked, {len(ids)} returned: {' '.join(words[i] for i in ids)}")
        assert len(ids) == count, ids
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/cut.py" 2>/dev/null
