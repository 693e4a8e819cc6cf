"""The arguments that transformers' models take: understood, or refused in words; never ignored."""

from typing import Any

import pytest
import torch
from transformers import AutoModel

from offramp.errors import InvalidInput
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.types.operating_point import OperatingPoint
from support.models import FAMILIES, LAYERS, TEXTS, encoder_config, padded, rows_for, tiny_model

AT_ONCE = OperatingPoint({"name": "entropy"}, (-1.0,) * (LAYERS - 1))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_plain_encoder(family: str) -> None:
    torch.manual_seed(1)
    plain = AutoModel.from_config(encoder_config(family)).eval()
    model = MultiExitModel.from_backbone(plain, 3, exit_layers=[2, 4]).eval()
    batch = padded(model, rows_for(model, 5))
    expected = plain(**batch, output_hidden_states=True).hidden_states
    expected = expected[:: (len(expected) - 1) // LAYERS]  # ALBERT has more: one for each layer in a layer
    out = model(**batch, output_hidden_states=True)
    assert len(out.hidden_states) == len(expected) == LAYERS + 1
    real = batch["attention_mask"].bool() if "attention_mask" in batch else ...
    for state, reference in zip(out.hidden_states, expected, strict=True):
        assert state.shape == reference.shape
        assert torch.allclose(state[real], reference[real], atol=1e-5)
    assert torch.equal(out.logits, model(**batch).logits)
    assert model(**batch).hidden_states is None
    assert torch.equal(model(**batch, output_hidden_states=True, return_dict=False)[-1][1], out.hidden_states[1])


@torch.no_grad()
@pytest.mark.parametrize("family", TEXTS)
def test_rows_of_the_embedding_stand_in_for_token_ids(family: str) -> None:
    torch.manual_seed(1)
    plain = AutoModel.from_config(encoder_config(family)).eval()
    model = MultiExitModel.from_backbone(plain, 3).eval()
    batch = padded(model, rows_for(model, 5))
    embedded = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]), **batch}
    del embedded["input_ids"]
    found = model(**embedded, output_hidden_states=True)
    expected = plain(**embedded).last_hidden_state
    real = batch["attention_mask"].bool()
    assert torch.allclose(found.hidden_states[-1][real], expected[real], atol=1e-5)
    assert torch.allclose(found.logits_by_exit, model(**batch).logits_by_exit, atol=1e-5)
    row = {"inputs_embeds": embedded["inputs_embeds"][:, :1]}  # all tokens are real
    assert torch.allclose(model(**row).logits, model(input_ids=batch["input_ids"][:, :1]).logits, atol=1e-5)
    model.set_operating_point(AT_ONCE)
    assert torch.allclose(model(**embedded).logits, model(**batch).logits, atol=1e-5)


def test_gradients_reach_the_embedded_rows() -> None:
    model = tiny_model()
    rows = torch.randn(2, 4, 16, requires_grad=True)
    model(inputs_embeds=rows, labels=torch.tensor([0, 1])).loss.backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum() > 0


@torch.no_grad()
def test_states_are_of_the_tokens_that_stay() -> None:
    model = tiny_model(token_exit=TokenExit(keep_ratio={2: 0.5}), bypass=None)
    batch = padded(model, rows_for(model, 5))
    out = model(**batch, output_hidden_states=True)
    lengths = [state.shape[1] for state in out.hidden_states]
    assert lengths[0] == lengths[1] > lengths[2] == lengths[-1]
    assert torch.equal(out.logits, model(**batch).logits)


def test_the_configuration_may_ask_for_hidden_states() -> None:
    model = tiny_model()
    batch = padded(model, rows_for(model, 2))
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == LAYERS + 1
    assert model(**batch, output_hidden_states=False).hidden_states is None


IDS = torch.tensor([[2, 7, 3]])
PIXELS = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("bert", {"input_ids": IDS, "head_mask": torch.ones(4, 2)}, "does not take head_mask; its encoder"),
        ("bert", {"input_ids": IDS, "output_attentions": True}, "does not take output_attentions"),
        ("bert", {"input_ids": IDS, "inputs_embeds": torch.zeros(1, 3, 16)}, "got input_ids and inputs_embeds"),
        (
            "bert",
            {"input_ids": IDS, "attention_mask": torch.ones(1, 2)},
            r"must be \(1, 3\), as input_ids",
        ),
        ("bert", {"input_ids": IDS, "labels": torch.tensor([3])}, "a label is 3, and the classes are 0 to 2"),
        ("bert", {"input_ids": IDS, "labels": torch.tensor([-1])}, "a label is -1, and the classes are 0 to 2"),
        ("bert", {}, "takes input_ids or inputs_embeds; got neither"),
        ("bert", {"pixel_values": PIXELS}, "takes input_ids or inputs_embeds; got pixel_values"),
        ("vit", {"input_ids": IDS}, "takes pixel_values; got input_ids"),
        ("vit", {"inputs_embeds": PIXELS}, "takes pixel_values; got inputs_embeds"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(family: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        tiny_model(family)(**arguments)
    assert "\n" not in str(caught.value)


def test_off_is_not_a_request() -> None:
    tiny_model()(input_ids=IDS, output_attentions=False, output_hidden_states=False, head_mask=None)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'encoder_hidden_states'"):
        tiny_model()(input_ids=IDS, encoder_hidden_states=IDS)


def test_hidden_states_are_refused_with_an_operating_point() -> None:
    model = tiny_model()
    model.set_operating_point(AT_ONCE)
    with pytest.raises(InvalidInput, match=r"hidden states are those of full depth: set_operating_point\(None\)"):
        model(input_ids=IDS, output_hidden_states=True)
