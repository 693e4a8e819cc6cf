"""Adapters of PEFT: merged on loading, trained with exits, refused where there is nothing to merge."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PolyConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer

from offramp.data.examples import Examples
from offramp.errors import InvalidInput
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.model import hub
from offramp.model.modeling import MultiExitModel
from offramp.training.fit import default_arguments, fit
from offramp.training.trainer import ExitTrainer
from offramp.types.problem_types import SINGLE_LABEL
from support.models import encoder_config, save_folder, texts, tiny_model, tiny_tokenizer, token_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft reads it
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
IDS = torch.tensor([[5, 6, 7, 8]])
ATTENTION = {"bert": ["query", "value"], "roberta": ["query", "value"], "distilbert": ["q_lin", "v_lin"]}


def adapted(base: Path, family: str = "bert", labels: int = 3, **options: Any) -> PeftModel:
    """A classifier on a base model's folder, with an adapter and a head that are not at their start."""
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    kind = IA3Config if options.pop("ia3", False) else LoraConfig
    model = get_peft_model(model, kind(task_type="SEQ_CLS", target_modules=ATTENTION[family], **options))
    moved(model)
    return model.eval()


@torch.no_grad()
def moved(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    folder = tmp_path / "base"
    AutoModel.from_config(encoder_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"ia3": True, "feedforward_modules": []}])
def test_an_adapter_folder_is_merged_with_its_head(kind: dict[str, Any], base: Path, tmp_path: Path) -> None:
    model = adapted(base, **kind)
    model.save_pretrained(tmp_path / "adapter")
    expected = model(input_ids=IDS).logits
    for source in (tmp_path / "adapter", str(tmp_path / "adapter"), model, torch.compile(model)):
        exits = MultiExitModel.from_backbone(source)
        assert exits.config.own_head == "tanh"
        assert exits.config.num_labels == 3
        assert torch.allclose(exits.eval()(input_ids=IDS).logits, expected, atol=1e-5)
        assert not any("lora" in name or "ia3" in name for name in exits.state_dict())
    assert hub.load_tokenizer(tmp_path / "adapter").vocab_size == tiny_tokenizer().vocab_size  # its base's


@torch.no_grad()
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_heads_of_other_families_come_along(family: str, tmp_path: Path) -> None:
    AutoModel.from_config(encoder_config(family)).save_pretrained(tmp_path / "base")
    model = adapted(tmp_path / "base", family)
    model.save_pretrained(tmp_path / "adapter")
    exits = MultiExitModel.from_backbone(tmp_path / "adapter", 3).eval()
    assert torch.allclose(exits(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5)


def test_the_callers_model_stays_as_it_was(base: Path) -> None:
    model = adapted(base)
    before = copy.deepcopy(model.state_dict())
    MultiExitModel.from_backbone(model, 2)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_head_without_its_pooler_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A base encoder without the pooler of its classifier: PEFT does not save what was random there."""
    AutoModel.from_config(encoder_config(), add_pooling_layer=False).save_pretrained(tmp_path / "base")
    model = adapted(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    exits = MultiExitModel.from_backbone(tmp_path / "adapter", 3).eval()
    assert exits.config.own_head is None
    assert "the adapter's head is left out: neither the adapter nor" in caplog.text
    expected = model.get_base_model().bert(IDS).last_hidden_state
    found = exits(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": None}, r"adapter_config\.json: an adapter that does not name its base model"),
        ({"base_model_name_or_path": "/nowhere/base"}, "an adapter of /nowhere/base; the two do not load"),
        ({"target_modules": ["nothing"]}, "the two do not load"),
        ("no weights", r"an adapter without adapter_model\.safetensors"),
        ("broken", r"adapter_config\.json: no JSON"),
        ("no peft", "an adapter of PEFT, which is not installed: pip install peft"),
    ],
)
def test_an_adapter_that_does_not_load_is_refused_in_one_line(
    change: Any, message: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    adapted(base).save_pretrained(folder)
    if change == "no weights":
        (folder / "adapter_model.safetensors").unlink()
    elif change == "broken":
        (folder / "adapter_config.json").write_text("{")
    elif change == "no peft":
        monkeypatch.setattr("offramp.model.adapters.find_spec", lambda name: None)
    else:
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(InvalidInput, match=message) as caught:
        MultiExitModel.from_backbone(folder, 3)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_no_adapter(tmp_path: Path) -> None:
    for load in (MultiExitModel.from_backbone, Predictor.load, hub.load_tokenizer):
        with pytest.raises(InvalidInput, match=r"nothing: no (model|tokenizer) can be loaded from there"):
            load(tmp_path / "nothing")


def test_a_learned_prompt_is_refused(base: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    prompted = get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    prompted.save_pretrained(tmp_path / "adapter")
    for source in (prompted, tmp_path / "adapter"):
        with pytest.raises(InvalidInput, match="a PROMPT_TUNING adapter adds inputs to the model and cannot be merged"):
            MultiExitModel.from_backbone(source, 3)


def test_what_peft_cannot_merge_is_refused_and_mixed_adapters_are_merged(base: Path) -> None:
    settings = {"target_modules": ["query"]}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    poly = get_peft_model(copy.deepcopy(model), PolyConfig(**settings))
    with pytest.raises(InvalidInput, match=r"PEFT cannot merge this adapter \(PolyModel\) into the weights: \w"):
        MultiExitModel.from_backbone(poly, 3)
    mixed = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings), mixed=True).eval()
    exits = MultiExitModel.from_backbone(mixed, 3).eval()
    assert torch.allclose(exits(input_ids=IDS).logits, mixed(IDS).logits, atol=1e-5)


def test_fit_saves_the_merged_model_and_frozen_exits_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = Examples(texts(8), [0, 1] * 4, ("no", "yes"), SINGLE_LABEL)
    model = tiny_model(id2label={0: "no", 1: "yes"}, certainty=True)
    adapter = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["gate"]))
    fit(adapter, tiny_tokenizer(), tmp_path / "model", examples, num_train_epochs=1)
    assert "heads of the model take no gradient" in caplog.text
    assert "modules_to_save=['heads']" in caplog.text
    assert isinstance(adapter, PeftModel)
    expected = adapter(input_ids=IDS).logits
    assert torch.allclose(MultiExitModel.from_pretrained(tmp_path / "model")(IDS).logits, expected, atol=1e-5)
    assert set(Predictor.load(tmp_path / "model")(["a cat"])[0]) == {"label", "score", "exit_layer"}


def test_layers_with_adapters_but_no_peft_model_are_refused(base: Path) -> None:
    with pytest.raises(InvalidInput, match="adapters of PEFT lie in the encoder's layers: give the PeftModel"):
        MultiExitModel.from_backbone(adapted(base).get_base_model(), 3)


@pytest.mark.parametrize("kind", ["ExitTrainer", "Trainer"])
@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_a_model_with_exits_trains_with_an_adapter(kind: str, task: str | None, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "base", tiny_model())
    model = MultiExitModel.from_pretrained(folder)
    settings = LoraConfig(task_type=task, target_modules=["query", "value"], modules_to_save=["heads"])
    adapter = get_peft_model(model, settings)
    rows = [{**row, "labels": number % 3} for number, row in enumerate(token_rows(8, longest=1))]
    arguments = default_arguments(tmp_path / "run", max_steps=2, eval_strategy="no", save_strategy="no")
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    if kind == "ExitTrainer":
        trainer: Any = ExitTrainer(adapter, arguments, exit_learning_rate=1e-2, train_dataset=rows)
    else:
        trainer = Trainer(adapter, arguments, train_dataset=rows)
    trainer.train()
    changed = {name for name, value in adapter.state_dict().items() if not torch.equal(value, before[name])}
    assert any("heads.modules_to_save" in name for name in changed)
    assert any("lora_B" in name for name in changed)
    assert all("lora" in name or "modules_to_save" in name for name in changed)

    trainer.save_model(tmp_path / "adapter")
    adapter.eval()
    expected = adapter(input_ids=IDS).logits_by_exit
    loaded = PeftModel.from_pretrained(MultiExitModel.from_pretrained(folder), tmp_path / "adapter").merge_and_unload()
    for merged in (loaded, MultiExitModel.from_backbone(tmp_path / "adapter"), MultiExitModel.from_backbone(adapter)):
        assert isinstance(merged, MultiExitModel)
        assert torch.allclose(merged.eval()(input_ids=IDS).logits_by_exit, expected, atol=1e-5)
    assert torch.allclose(record(adapter, [{"input_ids": IDS[0].tolist()}]).logits[:, 0], expected[0], atol=1e-5)
    with pytest.raises(InvalidInput, match=r"an adapter of .*base, no whole model; .*from_backbone\(folder\)"):
        Predictor.load(tmp_path / "adapter")
