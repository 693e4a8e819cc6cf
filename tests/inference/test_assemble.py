"""Pieces -> a file -> pieces: nothing is lost or there twice, and another policy is a matter of other calls."""

import math
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

import offramp
from offramp.errors import InvalidInput
from offramp.inference.export import export
from offramp.inference.onnx.assemble import DEEPEST, assemble, switch_policy
from offramp.inference.onnx.export_blocks import export_parts
from offramp.inference.onnx.metadata import policy_key, weights_digest
from offramp.inference.onnx.pieces import SHARED_BYTES, ModelParts, disassemble
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.record import record
from offramp.model.modeling import MultiExitModel
from offramp.policies.registry import load_policy, policy_to_dict
from offramp.types.graph_file import ABOUT, SOURCE
from support.graphs import arrays, copied, gated, graph_of, parts_of, weights_in, with_policies
from support.models import encoder_config, padded, rows_for, save_folder, tiny_model, token_rows

ENTROPY = {"name": "entropy"}
FILES = ("model.onnx", "model.int8.onnx")


@cache
def albert() -> MultiExitModel:
    return tiny_model("albert", pooling="mean", certainty=True)


def file_of(parts: ModelParts, *names: str) -> bytes:
    """A file with these policies that runs the first one."""
    policies = [load_policy(name) for name in names]
    return assemble(with_policies(parts, policies), policy_to_dict(policies[0])).SerializeToString()


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return copied(exported, tmp_path / "model")


# Apart and together.


@pytest.mark.parametrize("file", FILES)
def test_a_file_taken_apart_and_assembled_again_is_the_same_bytes(file: str, exported: Path) -> None:
    content = (exported / file).read_bytes()
    parts = disassemble(ModelProto.FromString(content))
    assert assemble(parts, parts.metadata.policy).SerializeToString() == content


def test_so_it_is_where_blocks_share_weights() -> None:
    content = file_of(parts_of(albert(), "of a test"), "entropy", "patience")
    parts = disassemble(ModelProto.FromString(content))
    assert parts.shared
    assert assemble(parts, ENTROPY).SerializeToString() == content


def test_a_file_that_is_none_of_ours_is_not_taken_apart() -> None:
    with pytest.raises(InvalidInput, match="not a graph that `offramp export` wrote"):
        disassemble(ModelProto())


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_valid_onnx(file: str, exported: Path) -> None:
    onnx.checker.check_model(onnx.load(exported / file), full_check=file == "model.onnx")


def test_what_a_file_says_of_itself(exported: Path) -> None:
    about = OnnxSession.load(exported / "model.onnx").metadata
    assert about.model == weights_digest(exported)
    assert (about.precision, about.policy, about.layers) == ("float32", ENTROPY, (1, 2, 3, 4))
    assert (about.outputs, about.certainty, about.problem_type) == (3, True, "single_label_classification")
    assert OnnxSession.load(exported / "model.int8.onnx").metadata.precision == "int8"


# Another policy.


@pytest.mark.parametrize("name", ["patience", "fixed", "pcee"])
def test_a_file_that_was_switched_is_the_one_that_was_exported_with_the_policy(name: str) -> None:
    parts = with_policies(parts_of(gated(), "of a test"), [load_policy(each) for each in ("entropy", name)])
    data = policy_to_dict(load_policy(name))
    switched = assemble(disassemble(assemble(parts, ENTROPY)), data)
    assert switched.SerializeToString() == assemble(parts, data).SerializeToString()


def test_switching_changes_the_policy_and_leaves_the_weights(folder: Path) -> None:
    path = folder / "model.onnx"
    before, rows = onnx.load(path, load_external_data=False), token_rows(9)
    weights = (folder / "model.onnx.data").read_bytes()
    runs = switch_policy(path, weights_digest(folder), {"name": "pcee"})

    assert runs == {"name": "pcee", "measure": "entropy", "patience": 2}
    assert {file.name for file in folder.glob("*onnx*")} == {*FILES, *(f"{file}.data" for file in FILES)}
    graph = OnnxSession.load(path)
    assert graph.metadata.policy == runs
    told = graph.run(arrays(padded(gated(), rows)), 0.05)
    expected = graph_of(gated(), load_policy("pcee")).run(arrays(padded(gated(), rows)), 0.05)
    assert len(set(expected.exit_layers.tolist())) > 1
    assert np.array_equal(told.exit_layers, expected.exit_layers)
    assert np.array_equal(told.logits, expected.logits)

    def large(model: ModelProto) -> list[bytes]:
        return [weight.SerializeToString() for weight in weights_in(model) if weight.ByteSize() > SHARED_BYTES]

    assert large(onnx.load(path, load_external_data=False)) == large(before)
    assert (folder / "model.onnx.data").read_bytes() == weights
    switch_policy(path, weights_digest(folder), ENTROPY)
    assert path.read_bytes() == before.SerializeToString()


@pytest.mark.parametrize(
    "asked",
    [
        {"name": "nobody"},
        {"name": "stability"},  # has no meaning for classes
        {"name": "pcee", "patience": 3},
        {"name": "entropy", "ensemble": "all"},
        {"name": "entropy", "patience": 2},
    ],
)
def test_steps_that_a_file_does_not_hold_leave_it_as_it_was(asked: dict[str, object], folder: Path) -> None:
    path = folder / "model.onnx"
    before = path.read_bytes()
    assert switch_policy(path, weights_digest(folder), asked) is None
    assert path.read_bytes() == before


def test_a_file_of_other_weights_is_not_switched(folder: Path) -> None:
    path = folder / "model.onnx"
    before = path.read_bytes()
    assert switch_policy(path, "0" * 64, {"name": "margin"}) is None
    assert path.read_bytes() == before


def test_an_ensemble_is_not_taken_for_the_policy_itself(tmp_path: Path) -> None:
    ensemble = {"name": "patience", "ensemble": "run"}
    parts = with_policies(parts_of(gated(), "of a test"), [load_policy("margin"), load_policy(ensemble)])
    onnx.save(assemble(parts, {"name": "margin"}), tmp_path / "model.onnx")
    assert switch_policy(tmp_path / "model.onnx", "of a test", {"name": "patience"}) is None
    assert switch_policy(tmp_path / "model.onnx", "of a test", ensemble) == ensemble


def test_steps_that_are_not_there_are_refused_with_those_that_are() -> None:
    parts = with_policies(parts_of(gated(), "of a test"), [load_policy("margin")])
    with pytest.raises(InvalidInput, match=r'"entropy"} are not in the file, which has: {"name": "margin"}'):
        assemble(parts, ENTROPY)


# What is in a file.


@pytest.mark.parametrize("model", [albert, gated])
def test_every_weight_is_in_a_file_once(model: object) -> None:
    assert callable(model)
    file = ModelProto.FromString(file_of(parts_of(model(), "of a test"), "entropy"))
    found = [weight for weight in weights_in(file) if weight.ByteSize() > SHARED_BYTES]
    wanted = [weight for weight in model().parameters() if 4 * weight.numel() >= SHARED_BYTES]
    sums = sorted(float(np.float64(numpy_helper.to_array(weight)).sum()) for weight in found)
    assert sums == pytest.approx(sorted(weight.double().sum().item() for weight in wanted), abs=1e-9)


def test_shared_weights_are_in_the_outer_graph_and_others_in_the_branch_that_reads_them() -> None:
    outer = {
        weight.name for weight in ModelProto.FromString(file_of(parts_of(gated(), ""), "entropy")).graph.initializer
    }
    assert {name.split("/")[0] for name in outer if "/" in name} == {"embed", "level0"}
    shared = ModelProto.FromString(file_of(parts_of(albert(), ""), "entropy")).graph.initializer
    large = {weight.name.split("/")[0] for weight in shared if weight.ByteSize() > SHARED_BYTES}
    assert large == {"embed", "shared"}


@pytest.mark.slow
def test_a_file_is_hardly_larger_than_encoder_and_last_exit() -> None:
    torch.manual_seed(0)
    config = encoder_config(num_hidden_layers=2, hidden_size=256, intermediate_size=1024)
    model = MultiExitModel.from_backbone(config, 3).eval()
    weights = [*model.backbone.parameters(), *model.heads.classifiers[-1].parameters()]
    plain = sum(4 * weight.numel() for weight in weights)  # what a file of the model at full depth holds at least
    assert len(file_of(export_parts(model, ""), "entropy")) <= 1.05 * plain


@pytest.mark.parametrize("file", FILES)
def test_a_file_tells_nothing_of_the_machine(file: str, exported: Path) -> None:
    content = (exported / file).read_bytes()
    places = [Path(offramp.__file__).parents[2], Path(torch.__file__).parents[1], Path.home(), Path.cwd(), sys.prefix]
    for told in [*map(str, places), str(exported), "site-packages", 'File "', ".py", "forward(", "/tmp"]:
        assert told.encode() not in content, told
    metadata = {each.key for each in ModelProto.FromString(content).metadata_props}
    assert metadata == {ABOUT, SOURCE}


# Depth.


def test_a_model_that_is_too_deep_is_refused_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = MultiExitModel.from_backbone(encoder_config(num_hidden_layers=DEEPEST + 2), 3)
    monkeypatch.setattr("offramp.inference.export.export_parts", None)
    with pytest.raises(InvalidInput, match="34 exits: a graph holds at most 33; train with exit_layers="):
        export(save_folder(tmp_path, model))
    assert not list(tmp_path.glob("*onnx*"))


def test_pieces_of_too_many_exits_are_not_assembled() -> None:
    parts = parts_of(gated(), "of a test")
    key = policy_key(ENTROPY)
    deep = replace(parts, metadata=replace(parts.metadata, layers=tuple(range(1, 35)), policies={key: ()}))
    with pytest.raises(InvalidInput, match="34 exits: a graph holds at most 33"):
        assemble(deep, ENTROPY)


@pytest.mark.slow
def test_the_deepest_model_that_is_taken_can_be_read_again_and_runs() -> None:
    torch.manual_seed(0)
    config = encoder_config("cifar_resnet", depths=[31, 1, 1])
    model = MultiExitModel.from_backbone(config, 3).eval()
    assert len(model.layers) == DEEPEST + 1
    content = file_of(export_parts(model, ""), "entropy")
    parts = disassemble(ModelProto.FromString(content))
    assert assemble(parts, ENTROPY).SerializeToString() == content
    rows = rows_for(model, 5)
    told = OnnxSession.load(content).run(arrays(padded(model, rows)), math.inf)
    assert told.exit_layers.tolist() == [DEEPEST + 1] * 5
    assert np.allclose(told.logits, record(model, rows).logits[-1], atol=1e-3)
