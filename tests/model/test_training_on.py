"""Training on from a model with exits: the same exits go on, what is new starts anew, and both are said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.model.backbones.restack import restack
from offramp.model.bypass import Bypass
from offramp.model.hub import load_encoder
from offramp.model.modeling import MultiExitModel
from support.models import LAYERS, padded, tiny_classifier, tiny_model, token_rows

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
NAMES = {0: "no", 1: "yes", 2: "perhaps"}
FORMS: dict[str, dict[str, Any]] = {
    "linear": {},
    "shared pooler, mean": {"head": "shared_pooler", "pooling": "mean"},
    "poolers, bypasses, gate, memory": {"head": "pooler", "bypass": Bypass(rank=2), "certainty": True, "memory": 0.5},
    "attention": {"head": "attention"},
    "some layers": {"exit_layers": [2, 4]},
}


@torch.no_grad()
def moved(model: MultiExitModel) -> MultiExitModel:
    """A model whose every weight is away from its start."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def answers(model: MultiExitModel) -> Tensor:
    found: Tensor = model.eval()(**padded(model, token_rows(4))).logits_by_exit
    return found


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_the_same_exits_go_on(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = moved(tiny_model(id2label=NAMES, **FORMS[form]))
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path, torch.compile(model), nn.DataParallel(model)):
        for labels in ({}, {"num_labels": 3}, {"id2label": NAMES}):
            caplog.clear()
            again = MultiExitModel.from_backbone(source, **labels, **FORMS[form])
            assert torch.equal(answers(again), answers(model))
            assert again.config.id2label == NAMES
            assert caplog.messages == ["the exits go on from their weights"]
    for parameter in again.parameters():
        parameter.zero_()
    assert answers(model).abs().sum() > 0


@torch.no_grad()
def test_what_is_new_starts_anew_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = moved(tiny_model(id2label=NAMES, exit_layers=[2, 4]))
    again = MultiExitModel.from_backbone(model, exit_layers=[1, 2, 3, 4], certainty=True)
    found, before = answers(again), answers(model)
    assert torch.equal(found[:, [1, 3]], before)
    assert not torch.allclose(again.heads.classifiers[0].weight, model.heads.classifiers[0].weight)
    assert caplog.messages == [
        "the exits go on from their weights; but exit_layers [1, 2, 3, 4] (was [2, 4]), certainty True (was False)"
    ]


@torch.no_grad()
def test_exits_of_another_form_start_anew_on_the_same_encoder(caplog: pytest.LogCaptureFixture) -> None:
    model = moved(tiny_model(id2label=NAMES))
    again = MultiExitModel.from_backbone(model, head="pooler")
    assert caplog.messages == ["every exit starts anew: head pooler (was linear)"]
    assert all(
        torch.equal(one, two) for one, two in zip(again.backbone.parameters(), model.backbone.parameters(), strict=True)
    )
    assert not torch.allclose(again.heads.classifiers[-1].weight, model.heads.classifiers[-1].weight)


@torch.no_grad()
@pytest.mark.parametrize(
    "labels",
    [{"num_labels": 2}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"problem_type": "multi_label_classification"}],
)
def test_for_other_labels_the_encoder_is_kept(labels: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    model = moved(tiny_model(id2label=NAMES))
    again = MultiExitModel.from_backbone(model, **labels)
    assert caplog.messages == ["the head of MultiExitModel is left out: every exit starts anew"]
    assert all(
        torch.equal(one, two) for one, two in zip(again.backbone.parameters(), model.backbone.parameters(), strict=True)
    )
    assert again.heads.classifiers[-1].bias.eq(0).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "head"), [("bert", "linear"), ("roberta", "attention"), ("distilbert", "shared_pooler")]
)
def test_a_fine_tuned_head_stays_the_last_exit(family: str, head: str, caplog: pytest.LogCaptureFixture) -> None:
    model = moved(MultiExitModel.from_backbone(tiny_classifier(family, num_labels=3)))
    caplog.clear()
    again = MultiExitModel.from_backbone(model, head=head, pooling="mean")
    assert again.config.own_head == model.config.own_head
    assert torch.equal(answers(again)[:, -1], answers(model)[:, -1])
    assert caplog.messages[0].startswith("the early exits start anew: ")


@torch.no_grad()
def test_an_old_attention_head_goes_on_with_its_one_tanh() -> None:
    model = tiny_model(head="attention")
    model.config.format = 1
    for attention in model.heads.attentions:
        attention.first_tanh = False
    again = MultiExitModel.from_backbone(model, head="attention")
    assert torch.equal(answers(again), answers(model))
    assert MultiExitModel.from_backbone(tiny_model(), head="attention").config.format == 2


def test_layers_are_taken_from_a_model_with_exits(tmp_path: Path) -> None:
    model = moved(tiny_model())
    model.save_pretrained(tmp_path)
    short = MultiExitModel.from_backbone(restack(load_encoder(tmp_path), range(2)), 3)
    batch = padded(model, token_rows(4))
    states = model(**batch, output_hidden_states=True).hidden_states
    found = short.eval()(**batch, output_hidden_states=True).hidden_states
    assert len(found) == 3 < LAYERS
    assert torch.equal(found[-1], states[2])
