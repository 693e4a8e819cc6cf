from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.model.bypass import Bypass
from offramp.model.modeling import MultiExitModel
from support.models import FAMILIES, LAYERS, WHOLE, WIDTH, encoder_config, padded, tiny_model, token_rows


def batch_of(model: MultiExitModel) -> dict[str, Tensor]:
    return padded(model, token_rows(7), extra=2)


@torch.no_grad()
def opened(model: MultiExitModel) -> MultiExitModel:
    """Bypasses start shut; random weights open them."""
    torch.manual_seed(3)
    for branch in model.bypasses:
        branch.up.weight.normal_()
        branch.norm.weight.normal_()
        branch.norm.bias.normal_()
    return model


@pytest.mark.parametrize("placement", ["block", "ffn"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WHOLE])
def test_at_the_start_exits_say_what_they_say_without_a_bypass(family: str, pooling: str, placement: str) -> None:
    plain = tiny_model(family, pooling=pooling)
    model = tiny_model(family, pooling=pooling, bypass=Bypass(rank=4, placement=placement))
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all(name.startswith("bypasses.") for name in missing)
    assert torch.equal(model(**batch_of(model)).logits_by_exit, plain(**batch_of(plain)).logits_by_exit)


@pytest.mark.parametrize("family", WHOLE)
def test_layers_that_do_not_run_in_halves_take_no_bypass(family: str) -> None:
    named = encoder_config(family).model_type
    with pytest.raises(
        UnsupportedBackbone, match=f"a bypass needs layers that run in halves; those of this {named} do not"
    ):
        tiny_model(family, bypass=Bypass(rank=4))


def test_the_layer_norm_starts_as_a_copy_of_the_blocks() -> None:
    encoder = tiny_model().backbone
    for number, layer in enumerate(encoder.encoder.layer):
        torch.nn.init.constant_(layer.output.LayerNorm.weight, number + 2.0)
    model = MultiExitModel.from_backbone(encoder, 3, bypass=Bypass(rank=4), exit_layers=[2, 4])
    assert [branch.norm.weight[0].item() for branch in model.bypasses] == [3.0, 5.0]
    assert model.bypasses[0].norm.weight is not encoder.encoder.layer[1].output.LayerNorm.weight


@pytest.mark.parametrize("placement", ["block", "ffn"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_an_exit_reads_the_norm_of_the_blocks_sum_and_the_narrow_way(pooling: str, placement: str) -> None:
    bypass = Bypass(rank=4, activation="tanh", placement=placement)
    model = opened(tiny_model("bert", pooling=pooling, bypass=bypass))
    batch = batch_of(model)
    sums: list[Tensor] = []
    attended: list[Tensor] = []
    for layer in model.backbone.encoder.layer:
        layer.output.LayerNorm.register_forward_pre_hook(lambda _, given: sums.append(given[0]))
        layer.attention.register_forward_hook(lambda *given: attended.append(given[2][0]))
    out = model(**batch)

    hidden = model.embed(batch).hidden
    for exit, branch in enumerate(model.bypasses):
        given = hidden if placement == "block" else attended[exit]
        narrow = torch.tanh(given @ branch.down.weight.T) @ branch.up.weight.T  # (B, T, D)
        total = sums[exit] + narrow
        centred = total - total.mean(dim=-1, keepdim=True)
        read = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-12).sqrt()
        read = read * branch.norm.weight + branch.norm.bias
        mask = batch["attention_mask"].unsqueeze(-1)
        vector = read[:, 0] if pooling == "first" else (read * mask).sum(dim=1) / mask.sum(dim=1)
        classifier = model.heads.classifiers[exit]
        by_hand = vector @ classifier.weight.T + classifier.bias
        assert torch.allclose(out.exit_logits[exit], by_hand, atol=1e-4)
        layer_norm = model.backbone.encoder.layer[exit].output.LayerNorm
        hidden = torch.nn.functional.layer_norm(sums[exit], (WIDTH,), layer_norm.weight, layer_norm.bias, 1e-12)


def test_the_next_block_does_not_see_the_bypass() -> None:
    plain, model = tiny_model(), opened(tiny_model(bypass=Bypass(rank=4)))
    model.load_state_dict(plain.state_dict(), strict=False)
    ours, theirs = model.embed(batch_of(model)), plain.embed(batch_of(plain))
    for exit in range(LAYERS):
        ours, theirs = model.block(exit, ours), plain.block(exit, theirs)
        assert torch.allclose(ours.hidden, theirs.hidden, atol=1e-6)
        assert ours.exit_input is not None
        assert not torch.allclose(ours.exit_input, theirs.hidden[:, :1], atol=0.1)


@pytest.mark.parametrize(("pooling", "rows"), [("first", 1), ("mean", 14)])
def test_only_the_rows_that_the_exit_reads_go_the_narrow_way(pooling: str, rows: int) -> None:
    model = tiny_model(pooling=pooling, bypass=Bypass(rank=4))
    seen: list[int] = []
    model.bypasses[0].down.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    model(**batch_of(model))
    assert seen == [rows if pooling == "first" else batch_of(model)["input_ids"].shape[1]]


def test_it_costs_two_narrow_maps_and_a_layer_norm_an_exit() -> None:
    plain, model = tiny_model(), tiny_model(bypass=Bypass(rank=4))
    assert model.num_parameters() - plain.num_parameters() == LAYERS * (2 * 4 * WIDTH + 2 * WIDTH)


def test_gradient_checkpointing_changes_no_gradient_and_runs_the_layer_again() -> None:
    models = [opened(tiny_model(bypass=Bypass(rank=4))).train() for _ in range(2)]
    models[1].activation_checkpointing_enable()
    calls: list[int] = []
    models[1].backbone.encoder.layer[1].intermediate.register_forward_hook(lambda *_: calls.append(1))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    for model in models:
        torch.manual_seed(4)  # the same dropout
        model(**batch_of(model), labels=labels).loss.backward()
    assert len(calls) == 2
    for (name, expected), found in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if ".layer.3.output.LayerNorm." in name:  # of the last block only the bypass's norm is read
            assert found.grad is None
        else:
            assert torch.allclose(found.grad, expected.grad, atol=1e-6), name


def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    model = opened(tiny_model(pooling="mean", bypass=Bypass(rank=4, activation="relu", placement="ffn")))
    model.save_pretrained(tmp_path)
    back = MultiExitModel.from_pretrained(tmp_path)
    assert Bypass(**back.config.bypass) == Bypass(rank=4, activation="relu", placement="ffn")
    assert torch.equal(back(**batch_of(model)).logits_by_exit, model(**batch_of(model)).logits_by_exit)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 1.5}, "got 1.5"),
        ({"activation": "gleu"}, "activation must be one of .*gelu.*; got 'gleu'"),
        ({"placement": "mhsa"}, "placement must be one of block, ffn; got 'mhsa'"),
    ],
)
def test_a_value_out_of_its_range_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Bypass(**wrong)


def test_default_is_the_papers_rank() -> None:
    assert MultiExitModel.from_backbone(encoder_config(), bypass=Bypass()).config.bypass == {
        "rank": 16,
        "activation": "gelu",
        "placement": "block",
    }
