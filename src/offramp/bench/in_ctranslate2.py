"""The full-depth encoder in CTranslate2 with int8 weights; the classifier stays in torch.

Its converter knows BERT, DistilBERT, RoBERTa, XLM-RoBERTa and CamemBERT.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import CONFIG_NAME, logging

from offramp.bench.baselines import log
from offramp.bench.texts import Batch, BatchRun, PlainModel
from offramp.data.padding import Array
from offramp.errors import one_line
from offramp.model.modeling import MultiExitModel

FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert")


def in_ctranslate2(model: MultiExitModel, tokenizer: Any, folder: Path) -> list[PlainModel]:
    """Return the contestant; none, and a log line, where it is not installed or does not know the encoder.

    Args:
        model: on the CPU, in eval mode.
        tokenizer: its vocabulary goes into CTranslate2's file.
        folder: gets the encoder, in both forms.
    """
    family = model.config.backbone.model_type
    if find_spec("ctranslate2") is None:
        log.info("without CTranslate2: pip install ctranslate2")
        return []
    if family not in FAMILIES or model.config.bypass is not None or model.config.token_exit is not None:
        log.info("without CTranslate2: its converter knows %s, this is %s", ", ".join(FAMILIES), family)
        return []
    convert = cache(partial(_convert, model, tokenizer, folder))
    try:
        convert()
    except Exception as error:  # a configuration that the converter does not know
        log.info("without CTranslate2: %s", one_line(error))
        return []
    depth = model.config.exit_layers[-1]
    load = partial(_load, model, convert)
    return [PlainModel("plain ctranslate2 int8", "full-depth", "ctranslate2", depth, load)]


def _convert(model: MultiExitModel, tokenizer: Any, folder: Path) -> Path:
    """Return the folder of the encoder in CTranslate2's form."""
    from ctranslate2.converters import TransformersConverter

    source, converted = folder / "encoder", folder / "ctranslate2"
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # an encoder without its pooler, which CTranslate2 wants and nobody reads
    try:
        model.backbone.save_pretrained(source)
        tokenizer.save_pretrained(source)
        config = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
        absolute = {
            "position_embedding_type": "absolute"
        }  # which transformers 5 has no longer, and the converter reads
        (source / CONFIG_NAME).write_text(json.dumps(absolute | config), encoding="utf-8")
        TransformersConverter(str(source)).convert(str(converted), quantization="int8")
    finally:
        logging.set_verbosity(verbosity)
    return converted


def _load(model: MultiExitModel, convert: Callable[[], Path], threads: int, workers: int) -> BatchRun:
    """Load the encoder; `workers` of its own threads wait for batches."""
    import ctranslate2

    encoder = ctranslate2.Encoder(str(convert()), compute_type="int8", inter_threads=workers, intra_threads=threads)
    last = len(model.config.exit_layers) - 1
    view = ctranslate2.StorageView.from_array

    @torch.inference_mode()
    def run(batch: Batch) -> Array:
        integers = {name: np.ascontiguousarray(values, np.int32) for name, values in batch.items()}
        types = {"token_type_ids": integers["token_type_ids"].tolist()} if "token_type_ids" in batch else {}
        lengths = integers["attention_mask"].sum(axis=1, dtype=np.int32)
        output = encoder.forward_batch(view(integers["input_ids"]), view(lengths), **types)
        hidden = torch.from_numpy(np.array(output.last_hidden_state))
        logits: Array = model.heads(last, hidden, torch.from_numpy(batch["attention_mask"])).float().numpy()
        return logits

    return run
