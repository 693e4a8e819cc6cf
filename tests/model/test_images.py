"""Encoders of images: ViT and the ResNet of CIFAR. What holds for every encoder is tested with the others."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForImageClassification

from offramp.errors import DataError, InvalidInput
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.model.backbones.resnet import BasicBlock, CifarResNet, CifarResNetConfig, CifarResNetCut
from offramp.model.modeling import MultiExitModel
from offramp.training.fit import default_arguments
from offramp.training.objectives.registry import load_objective
from offramp.training.trainer import ExitTrainer
from support.models import IMAGES, image_rows, padded, save_folder, tiny_classifier, tiny_model, token_rows


def test_resnet_56_has_27_blocks_and_the_papers_number_of_weights() -> None:
    config = CifarResNetConfig()
    assert config.num_hidden_layers == 27
    assert CifarResNetCut.widths(config) == [16] * 9 + [32] * 9 + [64] * 9
    weights = sum(parameter.numel() for parameter in CifarResNet(config).parameters())
    assert 0.845e6 < weights < 0.855e6  # table 6 of He et al. says 0.85 million


def test_maps_halve_where_a_stage_begins_and_nowhere_else() -> None:
    model = tiny_model("cifar_resnet")
    carry, shapes = model.embed(padded(model, image_rows(2))), []
    for exit in range(4):
        carry = model.block(exit, carry)
        shapes.append(tuple(carry.hidden.shape[1:]))
    assert shapes == [(4, 8, 8), (4, 8, 8), (8, 4, 4), (16, 2, 2)]


@torch.no_grad()
def test_a_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros() -> None:
    block = BasicBlock(2, 5, stride=2).eval()
    block.second.weight.zero_()  # nothing but the shortcut is left
    images = torch.rand(3, 2, 6, 6)
    found = block(images)
    assert found.shape == (3, 5, 3, 3)
    assert torch.equal(found[:, :2], images[:, :, ::2, ::2])
    assert found[:, 2:].eq(0).all()


@torch.no_grad()
def test_a_block_is_two_convolutions_with_norms_and_a_shortcut() -> None:
    torch.manual_seed(0)
    block = BasicBlock(4, 4, stride=1).train()
    images = torch.randn(8, 4, 5, 5)

    def normed(maps: torch.Tensor) -> torch.Tensor:
        centred = maps - maps.mean(dim=(0, 2, 3), keepdim=True)
        return centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()

    first = normed(F.conv2d(images, block.first.weight, padding=1)).clamp(min=0)
    expected = (normed(F.conv2d(first, block.second.weight, padding=1)) + images).clamp(min=0)
    assert torch.allclose(block(images), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_an_exit_of_the_resnet_reads_the_mean_over_the_map(pooling: str) -> None:
    model = tiny_model("cifar_resnet", pooling=pooling)
    batch = padded(model, image_rows(5))
    states = model.backbone(**batch, output_hidden_states=True).hidden_states[1:]
    logits = model(**batch).exit_logits.detach().numpy()
    for exit, (maps, head) in enumerate(zip(states, model.heads.classifiers, strict=True)):
        read = maps.detach().numpy().mean(axis=(2, 3))
        assert np.allclose(logits[exit], read @ head.weight.detach().numpy().T + head.bias.detach().numpy(), atol=1e-5)


def test_an_exit_of_vit_reads_the_class_token_or_the_mean_behind_the_last_norm() -> None:
    for pooling in ("first", "mean"):
        model = tiny_model("vit", pooling=pooling)
        batch = padded(model, image_rows(5))
        states = model.backbone.layernorm(model.backbone(**batch, output_hidden_states=True).hidden_states[2])
        read = states[:, 0] if pooling == "first" else states.mean(dim=1)
        assert torch.allclose(model(**batch).exit_logits[1], model.heads.classifiers[1](read), atol=1e-5)


def test_exits_of_several_widths_share_neither_pooler_nor_gate() -> None:
    with pytest.raises(InvalidInput, match=r"exits of the widths \[4, 8, 16\] cannot share a pooler"):
        tiny_model("cifar_resnet", head="shared_pooler")
    with pytest.raises(InvalidInput, match=r"a gate shared by all exits needs exits of one width, got \[4, 8, 16\]"):
        tiny_model("cifar_resnet", certainty=True)


@pytest.mark.parametrize("wrong", [{"depths": []}, {"depths": [1, 0, 1]}, {"depths": [2, 2]}])
def test_a_shape_that_is_no_resnet_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="a number for each stage"):
        CifarResNetConfig(**wrong)
    with pytest.raises(InvalidInput, match="must rise"):
        CifarResNetConfig(hidden_sizes=(16, 8, 32))


def test_the_resnet_is_known_after_a_bare_import(tmp_path: Path) -> None:
    model = tiny_model("cifar_resnet")
    model.save_pretrained(tmp_path / "exits")
    model.backbone.save_pretrained(tmp_path / "plain")
    code = (
        "import offramp\nfrom transformers import AutoModel, AutoModelForImageClassification\n"
        f"print(type(AutoModelForImageClassification.from_pretrained({str(tmp_path / 'exits')!r})).__name__)\n"
        f"print(type(AutoModel.from_pretrained({str(tmp_path / 'plain')!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "MultiExitModel\nCifarResNet\n", done.stderr


@pytest.mark.parametrize("family", IMAGES)
def test_rows_may_be_arrays_and_keep_their_labels(family: str) -> None:
    model, rows = tiny_model(family), image_rows(9)
    given = [{"pixel_values": row["pixel_values"].numpy(), "labels": n % 3, "id": n} for n, row in enumerate(rows)]
    trace = record(model, given, batch_size=4)
    assert torch.allclose(trace.logits, record(model, rows).logits, atol=1e-5)
    assert trace.labels.tolist() == [0, 1, 2] * 3


def test_rows_of_the_other_kind_are_refused() -> None:
    with pytest.raises(DataError, match="rows must be mappings with pixel_values"):
        record(tiny_model("vit"), token_rows(2))
    with pytest.raises(DataError, match="rows must be mappings with input_ids"):
        record(tiny_model("bert"), image_rows(2))


@pytest.mark.parametrize("family", IMAGES)
def test_what_takes_texts_refuses_a_model_of_images_in_one_line(family: str, tmp_path: Path) -> None:
    folder = save_folder(tmp_path, tiny_model(family))
    with pytest.raises(InvalidInput, match="a model of images; this takes texts") as told:
        Predictor.load(folder)
    assert "\n" not in str(told.value)


def test_a_folder_of_an_image_classifier_keeps_its_head(tmp_path: Path) -> None:
    classifier = tiny_classifier("vit", num_labels=4)
    classifier.save_pretrained(tmp_path)
    model = MultiExitModel.from_backbone(tmp_path).eval()
    batch = padded(model, image_rows(5))
    assert torch.equal(model(**batch).logits, classifier(**batch).logits)
    assert isinstance(AutoModelForImageClassification.from_pretrained(tmp_path), type(classifier))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_resnet_keeps_its_running_means_and_a_learning_one_does_not(frozen: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = AutoModel.from_config(CifarResNetConfig(depths=(1, 1), hidden_sizes=(4, 8)))
    model = MultiExitModel.from_backbone(plain, 2)
    rows = [{**row, "labels": number % 2} for number, row in enumerate(image_rows(16))]
    settings = default_arguments(
        tmp_path, max_steps=3, eval_strategy="no", save_strategy="no", train_sampling_strategy="random"
    )
    objective = load_objective("two-stage", freeze=True) if frozen else load_objective("joint")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    ExitTrainer(model, settings, objective=objective, train_dataset=rows).train()
    same = {name for name, value in model.backbone.state_dict().items() if torch.equal(value, before[name])}
    assert same == (set(before) if frozen else set())
