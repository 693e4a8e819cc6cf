"""Models inside wrappers: torch.compile, data-parallel training, PEFT."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from offramp.errors import InvalidInput
from offramp.model.wrappers import module_path, unwrap
from offramp.training.freezing import parameter_group
from support.models import tiny_classifier, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft reads it
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
LORA = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], modules_to_save=["heads"])


def test_a_model_is_taken_out_of_its_wrappers() -> None:
    model = tiny_model()
    compiled, parallel = torch.compile(model), nn.DataParallel(model)
    adapted = get_peft_model(model, LORA)
    for wrapped in (model, compiled, parallel, nn.DataParallel(compiled), adapted, torch.compile(adapted)):
        assert unwrap(wrapped) is model


def test_a_learned_prompt_is_no_part_of_the_model() -> None:
    prompts = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    with pytest.raises(InvalidInput, match="a PROMPT_TUNING adapter adds inputs to the model and cannot be merged"):
        unwrap(get_peft_model(tiny_classifier(), prompts))


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("_orig_mod.backbone.encoder.layer.0.output.dense.weight", "backbone"),
        ("module.heads.classifiers.0.weight", "early_exits"),
        ("module._orig_mod.heads.classifiers.3.weight", "final_exit"),
        ("base_model.model.backbone.encoder.layer.3.attention.self.query.lora_A.default.weight", "backbone"),
        ("base_model.model.heads.modules_to_save.default.classifiers.1.bias", "early_exits"),
        ("base_model.model.heads.modules_to_save.another.classifiers.3.bias", "final_exit"),
        ("base_model.model.heads.original_module.classifiers.3.bias", "final_exit"),
        ("base_model.model.heads.classifiers.modules_to_save.default.3.bias", "final_exit"),
        ("heads.classifiers.0.lora_B.default.weight", "early_exits"),
        ("base_model.model.gate.modules_to_save.default.linear.weight", "gate"),
        ("module.objective_modules.0.weight", "objective_modules"),
    ],
)
def test_a_parameter_belongs_to_its_exit_whatever_is_around_it(name: str, group: str) -> None:
    assert parameter_group(name, tiny_model()) == group
    assert module_path(name)[0] in ("backbone", "heads", "gate", "objective_modules")
