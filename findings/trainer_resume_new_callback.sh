#!/usr/bin/env bash
# Expected by most: a run that was stopped can be resumed with one callback more, for example with early stopping, because
#   the first part took too long.
# What happens: transformers' Trainer trains on until the next checkpoint is due, and then fails with
#   KeyError: 'EarlyStoppingCallback', because it looks for the callback in the state that the old checkpoint brought.
#   The steps since that checkpoint are lost. Without resuming, the same callback works.
# Where it matters: resumed runs of any model, with callbacks that have a state of their own (EarlyStoppingCallback and
#   every subclass of ExportableState).
# Source: measured here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.24.0" "accelerate==1.15.0" 2>/dev/null
cat > "$folder/resume.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

SIZES = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
ROWS = [{"input_ids": [5, 6, 7 + row % 2], "labels": row % 2} for row in range(8)]
steps = []


class CountSteps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        steps.append(state.global_step)


def train(output, stopping, resumed=None):
    model = BertForSequenceClassification(BertConfig(**SIZES))
    every_second = dict(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    arguments = TrainingArguments(
        f"{sys.argv[1]}/{output}",
        max_steps=6,
        per_device_train_batch_size=4,
        metric_for_best_model="eval_loss",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **every_second,
    )
    callbacks = [CountSteps(), *([EarlyStoppingCallback(5)] if stopping else [])]
    trainer = Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS, callbacks=callbacks)
    steps.clear()
    try:
        trainer.train(resume_from_checkpoint=resumed)
        return "finished"
    except KeyError as error:
        return f"KeyError: {error}"


print(f"torch {torch.__version__}, transformers {transformers.__version__}")
fresh = train("fresh", stopping=True)
print(f"from the start, with early stopping: {fresh} after step {steps[-1]}")
train("first", stopping=False)
plain = train("first", stopping=False, resumed=f"{sys.argv[1]}/first/checkpoint-2")
print(f"resumed after step 2, without: {plain} after step {steps[-1]}")
added = train("first", stopping=True, resumed=f"{sys.argv[1]}/first/checkpoint-2")
print(f"resumed after step 2, with early stopping added: {added} after step {steps[-1]}")
assert (fresh, plain, added) == ("finished", "finished", "KeyError: 'EarlyStoppingCallback'")
assert steps == [3, 4], steps
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/resume.py" "$folder" 2>/dev/null | grep -v "^{"
