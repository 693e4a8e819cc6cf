"""Look through what others put around a model: torch.compile, data-parallel training, PEFT."""

from __future__ import annotations

import sys
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn

from offramp.errors import InvalidInput

OUTSIDE = ("_orig_mod", "module", "base_model", "model")
"""Names that wrappers put before those of a model's modules."""


def unwrap(model: Any) -> Any:
    """Return the model inside wrappers of torch.compile, of data-parallel training and of PEFT; others as they are.

    The adapters of PEFT lie in the layers of the model and go on working.

    Raises:
        InvalidInput: an adapter that is not in the layers, such as a learned prompt.
    """
    while isinstance(model, nn.Module):
        inner = without_parallel(model)
        if is_peft(inner):
            refuse_prompts(inner)
            inner = inner.get_base_model()
        if inner is model:
            break
        model = inner
    return model


def without_parallel(model: Any) -> Any:
    """Return the model inside wrappers of torch.compile and of data-parallel training; others as they are."""
    return extract_model_from_parallel(model, keep_torch_compile=False) if isinstance(model, nn.Module) else model


def is_peft(model: object) -> bool:
    """Return True for a `peft.PeftModel` or a `peft.PeftMixedModel`; peft is not loaded for it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, (peft.PeftModel, peft.PeftMixedModel))


def refuse_prompts(model: Any) -> None:
    """Raise InvalidInput for a `peft.PeftModel` whose adapter is not in the layers of the model."""
    config = next(iter(model.peft_config.values()))  # one prompt does not go with other adapters
    if config.is_prompt_learning:
        raise InvalidInput(
            f"a {config.peft_type.value} adapter adds inputs to the model and cannot be merged into its weights;"
            " LoRA, DoRA and IA3 can"
        )


def module_path(name: str) -> list[str]:
    """Return the parts of a parameter's name in the model itself, without those that wrappers add.

    Args:
        name: such as "base_model.model.heads.modules_to_save.default.classifiers.0.weight" (PEFT's copy of the heads).
    """
    path = name.split(".")
    while path[0] in OUTSIDE:
        del path[0]
    if "modules_to_save" in path:  # the adapter's name comes after it
        copy = path.index("modules_to_save")
        del path[copy : copy + 2]
    return [part for part in path if part != "original_module"]
