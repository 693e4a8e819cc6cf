from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, GPT2Config, GPT2Model, PreTrainedModel

from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.model.backbones.bert import FAMILIES as TABLE
from offramp.model.backbones.restack import restack
from offramp.model.modeling import MultiExitModel
from support.models import FAMILIES, LAYERS, SPECIAL, VOCABULARY, encoder_config

ROWS = [family for family in FAMILIES if encoder_config(family).model_type in TABLE]
UNSHARED = [family for family in ROWS if family != "albert"]


def encoder(family: str, **changes: int) -> PreTrainedModel:
    torch.manual_seed(1)
    return AutoModel.from_config(encoder_config(family, **changes)).eval()


@torch.no_grad()
def states(model: PreTrainedModel) -> list[Tensor]:
    """What goes into the first layer, and what comes out of each."""
    ids = torch.randint(len(SPECIAL), VOCABULARY - 1, (4, 7), generator=torch.Generator().manual_seed(2))
    return list(model(input_ids=ids, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("family", UNSHARED)
@pytest.mark.parametrize("kept", range(1, LAYERS + 1))
def test_the_first_layers_do_what_they_did_in_the_whole_encoder(family: str, kept: int) -> None:
    whole = encoder(family)
    cut = restack(whole, range(kept))
    assert cut.config.num_hidden_layers == kept
    assert len(states(cut)) == kept + 1
    for ours, theirs in zip(states(cut), states(whole), strict=False):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", UNSHARED)
def test_layers_run_in_the_order_given(family: str) -> None:
    whole = encoder(family)
    order = [2, 0, 0]
    hidden = states(whole)[0]
    layers = whole.get_submodule("transformer.layer" if family == "distilbert" else "encoder.layer")
    with torch.no_grad():
        for number in order:
            hidden = layers[number](hidden, None)
    assert torch.allclose(states(restack(whole, order))[-1], hidden, atol=1e-6)


@pytest.mark.parametrize("family", UNSHARED)
def test_a_layer_named_twice_becomes_two_that_learn_apart(family: str) -> None:
    whole = encoder(family)
    doubled = restack(whole, [0, 0])
    assert doubled.config.num_hidden_layers == 2
    named = [pair for model in (whole, doubled) for pair in model.named_parameters(remove_duplicate=False)]
    assert len({parameter.data_ptr() for _, parameter in named}) == len(named)
    configs = {id(module.config) for module in doubled.modules() if "config" in vars(module)}
    assert configs == {id(doubled.config)}


@pytest.mark.parametrize("family", UNSHARED)
def test_layers_know_their_new_place(family: str) -> None:
    doubled = restack(encoder(family), [3, 3, 1])
    places = [vars(module)["layer_idx"] for module in doubled.modules() if "layer_idx" in vars(module)]
    assert all(low <= high for low, high in pairwise(places))
    assert set(places) in (set(), {0, 1, 2})


@pytest.mark.parametrize("family", ROWS)
def test_the_new_encoder_survives_saving_and_takes_exits(family: str, tmp_path: object) -> None:
    deeper = restack(encoder(family), [0, 0, 1, 1, 2, 2, 3, 3])
    deeper.save_pretrained(str(tmp_path))
    again = AutoModel.from_pretrained(str(tmp_path)).eval()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(states(again), states(deeper), strict=True))
    assert MultiExitModel.from_backbone(deeper, 2).layers == list(range(1, 9))


def test_of_a_model_with_a_head_the_encoder_counts() -> None:
    torch.manual_seed(0)
    headed = AutoModelForMaskedLM.from_config(encoder_config("bert")).eval()
    cut = restack(headed, range(2))
    assert torch.equal(states(cut)[-1], states(headed.base_model)[2])


def test_alberts_groups_run_as_often_as_they_are_named() -> None:
    whole = encoder("albert", inner_group_num=1)  # two groups: layers 0 and 1, layers 2 and 3
    assert torch.equal(states(restack(whole, [0, 2]))[1], states(whole)[1])
    one = encoder("albert", inner_group_num=1, num_hidden_groups=1)
    for depth in (1, 3, 4):
        assert torch.equal(states(restack(one, range(depth)))[-1], states(one)[depth])
    with pytest.raises(InvalidInput, match=r"2 groups of layers \[0, 1\] at depth 2, not \[0, 0\]"):
        restack(whole, range(2))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "at least one layer; this one has 0 to 3"),
        ([0, 4], "there is no layer 4: the encoder's layers are 0 to 3"),
        ([-1], "there is no layer -1"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers: list[int], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        restack(encoder("bert"), layers)


def test_an_encoder_of_another_build_is_refused() -> None:
    with pytest.raises(UnsupportedBackbone, match="the layers of a gpt2 encoder cannot be chosen"):
        restack(GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)), [0])


def test_an_encoder_that_is_no_row_of_the_table_is_refused() -> None:
    with pytest.raises(
        UnsupportedBackbone, match="layers of a modernbert encoder cannot be chosen; those of albert, bert"
    ):
        restack(encoder("modernbert"), [0])
