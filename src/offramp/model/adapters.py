"""Adapters of PEFT (LoRA, DoRA, IA3, ...): loaded onto their base model, and merged into its weights."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, logging

from offramp.errors import InvalidInput, one_line
from offramp.model.files import find_file
from offramp.model.wrappers import is_peft, refuse_prompts, without_parallel

logger = logging.get_logger(__name__)

CLASSES = {  # PEFT's task -> the class of the base model; without a task the adapter names the class itself
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}


def load_merged(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> PreTrainedModel:
    """Load the base model of an adapter, in float32, with the adapter merged into its weights.

    The head comes along where adapter and base model have all of its weights.

    Args:
        folder: of the adapter, or its hub name.
        settings: its `adapter_settings`.

    Raises:
        InvalidInput: PEFT is not installed, nothing can be loaded, or the adapter cannot be merged.
    """
    if find_spec("peft") is None:
        raise InvalidInput(f"{folder}: an adapter of PEFT, which is not installed: pip install peft")
    from peft import PeftModel

    weights = find_file(folder, ADAPTER_SAFE_WEIGHTS_NAME)
    if weights is None:
        raise InvalidInput(
            f"{folder}: an adapter without {ADAPTER_SAFE_WEIGHTS_NAME}, the one file of weights read here"
        )
    with safe_open(weights, "pt") as file:
        saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    base, labels = settings["base_model_name_or_path"], _number_of_labels(saved)
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": bool(labels)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Found missing adapter keys")
            model, loading = _base_class(settings).from_pretrained(base, **options, **labels)
            merged = _merge(PeftModel.from_pretrained(model, folder))
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise InvalidInput(f"{folder}: an adapter of {base}; the two do not load ({one_line(error)})") from None
    random = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    missing = sorted(name for name in random if not any(key.endswith(f".{name}") for key in saved))
    plain = merged.base_model is merged
    for name in missing:
        if "pooler" not in name and (plain or name.startswith(f"{merged.base_model_prefix}.")):
            raise InvalidInput(f"{folder}: neither the adapter nor {base} has weights for {name}")
    if missing and not plain:
        text = "%s: the adapter's head is left out: neither the adapter nor %s has weights for %s"
        logger.warning(text, folder, base, missing[0])
        return merged.base_model
    return merged


def without_wrappers(model: Any) -> Any:
    """Return the model inside wrappers; of a `peft.PeftModel` a copy, with its adapters merged into the weights.

    Raises:
        InvalidInput: an adapter that cannot be merged.
    """
    inner = without_parallel(model)
    return _merge(copy.deepcopy(inner)) if is_peft(inner) else inner


def _merge(model: Any) -> PreTrainedModel:
    refuse_prompts(model)
    try:
        merged: PreTrainedModel = model.merge_and_unload()
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        kind = type(model.base_model).__name__
        raise InvalidInput(f"PEFT cannot merge this adapter ({kind}) into the weights: {one_line(error)}") from None
    return merged.eval()


def _base_class(settings: Mapping[str, Any]) -> Any:
    own = (settings.get("auto_mapping") or {}).get("base_model_class")
    name = CLASSES.get(settings.get("task_type") or "") or own or "AutoModel"
    if own == "MultiExitModel":
        name = CLASSES["SEQ_CLS"]
    if not hasattr(transformers, name):
        raise InvalidInput(f"an adapter of a {name}, which transformers does not have")
    return getattr(transformers, name)


def _number_of_labels(saved: Mapping[str, list[int]]) -> dict[str, int]:
    """Return `num_labels` by the weights of a fine-tuned head: the base model's configuration does not know it."""
    heads = ("classifier.weight", "classifier.out_proj.weight", "score.weight", "qa_outputs.weight")
    rows = [shape[0] for name, shape in saved.items() if name.endswith(tuple(f".{head}" for head in heads))]
    return {"num_labels": rows[0]} if rows else {}
