from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForPreTraining,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
)

from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.model.backbones.bert import FAMILIES as TABLE
from offramp.model.backbones.registry import BACKBONES, load_backbone
from offramp.model.modeling import MultiExitModel
from support.models import (
    CLASSIFIED,
    FAMILIES,
    LAYERS,
    WIDTH,
    encoder_config,
    padded,
    rows_for,
    tiny_classifier,
)

WEIGHTS = "model.safetensors"
WITH_POOLER = {"albert": "pooler", "bert": "pooler.dense", "vit": "pooler.dense"}


def encoder(family: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    return AutoModel.from_config(encoder_config(family, **changes)).eval()


def batch_of(model: MultiExitModel) -> dict[str, Tensor]:
    return padded(model, rows_for(model, 6), extra=2)


@torch.no_grad()
def by_transformers(reference: PreTrainedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """The states after each layer, and behind them the last that an exit reads.

    ALBERT tells them after each layer inside a layer; ModernBERT tells the last only as its final norm leaves it.
    """
    out = reference(**batch, output_hidden_states=True)
    states = out.hidden_states
    inner = (len(states) - 1) // reference.config.num_hidden_layers
    last = out.last_hidden_state
    if last.dim() == 4:
        last = last.flatten(2).mean(dim=-1).unsqueeze(1)  # the mean over the map
    return [*states[inner:-1:inner], last]


@torch.no_grad()
def by_offramp(model: MultiExitModel, batch: dict[str, Tensor]) -> list[Tensor]:
    carry, states = model.embed(batch), []
    for exit in range(len(model.layers)):
        carry = model.block(exit, carry)
        states.append(carry.hidden)
    return [*states[:-1], model._encoder_view.exit_states(carry.hidden)]


def assert_same_states(model: MultiExitModel, reference: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    real = batch["attention_mask"].bool() if "attention_mask" in batch else ...  # padding is nobody's business
    expected, found = by_transformers(reference, batch), by_offramp(model.eval(), batch)
    assert len(found) == len(expected) == LAYERS
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours[real], theirs[real], atol=1e-5)


def test_every_family_of_the_registry_is_tested_here() -> None:
    assert {encoder_config(family).model_type for family in FAMILIES} == set(BACKBONES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_live_model_gives_transformers_states_after_every_layer(family: str) -> None:
    reference = encoder(family)
    model = MultiExitModel.from_backbone(reference, 3)
    assert_same_states(model, reference, batch_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_local_folder_gives_transformers_states_after_every_layer(family: str, tmp_path: Path) -> None:
    reference = encoder(family)
    reference.save_pretrained(tmp_path)
    model = MultiExitModel.from_backbone(tmp_path, 3)
    assert_same_states(model, reference, batch_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_gives_transformers_states_after_every_layer(family: str) -> None:
    model = MultiExitModel.from_backbone(encoder_config(family), 3)
    reference = encoder(family)
    left_over = reference.load_state_dict(model.backbone.state_dict(), strict=False)
    assert not left_over.unexpected_keys
    assert all(key.startswith("pooler.") for key in left_over.missing_keys)
    assert_same_states(model, reference, batch_of(model))


@pytest.mark.parametrize("shape", [{}, {"num_hidden_groups": 1}, {"num_hidden_groups": 3}, {"inner_group_num": 1}])
def test_albert_runs_its_groups_in_transformers_order(shape: dict[str, int]) -> None:
    reference = encoder("albert", **shape)
    model = MultiExitModel.from_backbone(reference, 3)
    assert_same_states(model, reference, batch_of(model))


def test_token_types_and_positions_reach_the_embedding() -> None:
    reference = encoder("bert")
    model = MultiExitModel.from_backbone(reference, 3)
    batch = batch_of(model)
    batch["token_type_ids"] = batch["input_ids"] % 2
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).flip(0).expand_as(batch["input_ids"])
    assert_same_states(model, reference, batch)


def test_token_types_are_dropped_where_the_encoder_has_none() -> None:
    model = MultiExitModel.from_backbone(encoder("distilbert"), 3).eval()
    batch = batch_of(model)
    typed = batch | {"token_type_ids": torch.ones_like(batch["input_ids"])}
    assert torch.equal(by_offramp(model, typed)[-1], by_offramp(model, batch)[-1])


def test_without_a_mask_every_token_is_real() -> None:
    model = MultiExitModel.from_backbone(encoder("bert"), 3, pooling="mean").eval()
    ids = batch_of(model)["input_ids"]
    with_mask = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits_by_exit
    assert torch.allclose(model(input_ids=ids).logits_by_exit, with_mask, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_live_model_is_left_as_it_was(family: str) -> None:
    given = encoder(family)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    told = given.config.to_dict()

    model = MultiExitModel.from_backbone(given, 3, head="pooler")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()

    after = given.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert given.config.to_dict() == told


@pytest.mark.parametrize("family", CLASSIFIED)
def test_a_classifier_lends_its_encoder(family: str) -> None:
    classifier = tiny_classifier(family)
    model = MultiExitModel.from_backbone(classifier, 3)
    assert_same_states(model, classifier.base_model, batch_of(model))


def test_a_model_with_exits_lends_its_encoder() -> None:
    first = MultiExitModel.from_backbone(encoder("bert"), 2)
    second = MultiExitModel.from_backbone(first, 3, exit_layers=[2, 4])
    assert second.config.num_labels == 3
    assert all(
        torch.equal(a, b) for a, b in zip(first.backbone.parameters(), second.backbone.parameters(), strict=True)
    )


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
def test_the_folder_of_a_model_with_a_head_lends_its_encoder(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    headed = kind.from_config(encoder_config("roberta")).eval()
    headed.save_pretrained(tmp_path)
    model = MultiExitModel.from_backbone(tmp_path, 3)
    assert_same_states(model, headed.base_model, batch_of(model))


@pytest.mark.parametrize("head", ["pooler", "shared_pooler"])
@pytest.mark.parametrize("family", WITH_POOLER)
def test_the_pre_trained_pooler_is_copied(family: str, head: str) -> None:
    reference = encoder(family)
    model = MultiExitModel.from_backbone(reference, 3, head=head).eval()
    batch = batch_of(model)
    pooler = reference.get_submodule(WITH_POOLER[family])
    weight, bias = pooler.weight.detach().numpy(), pooler.bias.detach().numpy()

    states = [model._encoder_view.exit_states(state) for state in by_transformers(reference, batch)[:-1]]
    states.append(reference(**batch).last_hidden_state)
    logits = model(**batch).exit_logits.detach().numpy()

    for exit, classifier in enumerate(model.heads.classifiers):
        pooled = np.tanh(states[exit][:, 0].detach().numpy() @ weight.T + bias)
        expected = pooled @ classifier.weight.detach().numpy().T + classifier.bias.detach().numpy()
        assert np.allclose(logits[exit], expected, atol=1e-5)


def test_where_there_is_no_pre_trained_pooler_the_heads_start_their_own() -> None:
    model = MultiExitModel.from_backbone(encoder("electra"), 3, head="shared_pooler")
    assert model.heads.poolers[0].weight.std() > 0


@pytest.mark.parametrize("backbone", [GPT2Config(n_embd=16, n_layer=2, n_head=2), GPT2Model])
def test_an_unknown_family_is_refused_with_the_known_ones_and_the_place_to_add_it(backbone: Any) -> None:
    if backbone is GPT2Model:
        backbone = GPT2Model(GPT2Config(n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(UnsupportedBackbone, match=r"'gpt2' .*albert, bert, .*backbones/bert\.py .*registry\.py"):
        MultiExitModel.from_backbone(backbone, 3)


def test_an_unknown_family_is_refused_before_its_weights_are_loaded(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)  # a configuration, no weights
    with pytest.raises(UnsupportedBackbone, match="gpt2"):
        MultiExitModel.from_backbone(tmp_path, 3)


def test_a_pre_trained_pooler_is_known_by_its_path() -> None:
    for family in FAMILIES:
        config = encoder_config(family)
        assert load_backbone(config.model_type).pooler_path(config) == WITH_POOLER.get(config.model_type)


def test_an_encoder_saved_as_a_bert_with_settings_of_its_own_is_a_bert(tmp_path: Path) -> None:
    """As TinyBERT and ElasticBERT are: BERT's type, the pre-training model's weights, a few more settings."""
    torch.manual_seed(2)
    tiny = {"emb_size": WIDTH, "cell": {}, "structure": [], "pre_trained": ""}
    elastic = {"num_output_layers": 1, "max_output_layers": LAYERS}
    headed = BertForPreTraining(encoder_config("bert", **tiny, **elastic)).eval()
    headed.save_pretrained(tmp_path)
    model = MultiExitModel.from_backbone(tmp_path, 3)
    assert model.config.backbone.emb_size == WIDTH
    assert_same_states(model, headed.bert, batch_of(model))


def test_a_folder_whose_weights_have_other_names_is_refused(tmp_path: Path) -> None:
    save_file({f"mine.{name}": value for name, value in encoder("bert").state_dict().items()}, tmp_path / WEIGHTS)
    encoder_config("bert").save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=r"its weights have no embeddings.LayerNorm.bias and \d+ more of BertModel"):
        MultiExitModel.from_backbone(tmp_path, 3)


def test_the_head_of_a_modernbert_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        model = MultiExitModel.from_backbone(tiny_classifier("modernbert"), 2)
    assert "the head of ModernBertForSequenceClassification is left out: every exit starts anew" in caplog.text
    assert model.config.own_head is None


@pytest.mark.parametrize("kept", ["full_attention", "sliding_attention"])
def test_a_modernbert_may_have_one_kind_of_layers_alone(kept: str) -> None:
    reference = encoder("modernbert", layer_types=[kept] * LAYERS)
    model = MultiExitModel.from_backbone(reference, 3)
    assert_same_states(model, reference, batch_of(model))


def test_positions_reach_the_rotary_embedding() -> None:
    reference = encoder("modernbert")
    model = MultiExitModel.from_backbone(reference, 3)
    batch = batch_of(model)
    batch["position_ids"] = 3 * torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    plain = by_offramp(model.eval(), {name: batch[name] for name in ("input_ids", "attention_mask")})
    assert_same_states(model, reference, batch)
    assert not torch.allclose(by_offramp(model, batch)[0], plain[0], atol=1e-3)


def test_tokens_stand_where_the_embedding_says_in_the_table_alone() -> None:
    absolute = {name for name in BACKBONES if load_backbone(name).absolute_positions}
    assert absolute == set(TABLE)
