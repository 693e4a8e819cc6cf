"""What `export` writes, when it does not, and what it tells of the file."""

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import FunctionProto, TensorProto, numpy_helper

from offramp.errors import InvalidInput, NotApplicable
from offramp.inference.check_graph import ExportMismatch, check
from offramp.inference.export import export, with_steps
from offramp.inference.export_plan import ExportPlan
from offramp.inference.load_engine import load_engine
from offramp.inference.onnx.pieces import ModelParts
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.record import record
from offramp.model.activation_ranges import ActivationRanges
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.graph_file import RANGES_FILE
from offramp.types.operating_point import OperatingPoint, write_points
from support.graphs import DEFAULT, NAMES, copied, gated, graphs_in, parts_of, weights_in
from support.models import encoder_config, rows_for, save_folder, text_rows, texts, tiny_model
from support.traces import threshold_between

EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)
QUANTIZING = ("DynamicQuantizeLinear", "MatMulInteger", "DequantizeLinear", "QuantizeLinear", "QLinearMatMul")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """The model and its point, without graphs."""
    path = copied(exported, tmp_path / "model")
    for file in path.glob("*.onnx*"):
        file.unlink()
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"text": text, "label": NAMES[number % 3]} for number, text in enumerate(texts(40, seed=4))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# A file bears its name once it was checked.


def with_a_wrong_weight(parts: ModelParts, wrong_by: Sequence[float] = (0.01, 0.01, 0.01)) -> ModelParts:
    """The last exit's classifier adds something to what it should say."""
    *others, last = parts.levels
    bias = next(weight for weight in last.weights if list(weight.dims) == [3])
    wrong = numpy_helper.from_array(numpy_helper.to_array(bias) + np.array(wrong_by, np.float32), bias.name)
    weights = tuple(wrong if weight is bias else weight for weight in last.weights)
    return replace(parts, levels=(*others, replace(last, weights=weights)))


def with_a_wrong_comparison(parts: ModelParts) -> ModelParts:
    """Who should stay leaves."""
    functions = {}
    for name, function in parts.functions.items():
        wrong = FunctionProto()
        wrong.CopyFrom(function)
        for node in wrong.node:
            if node.op_type == "Less" and node.output[0] == "new.stays":
                node.op_type = "Greater"
        functions[name] = wrong
    return replace(parts, functions=functions)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("old", [None, b"what was there before"])
def test_a_file_whose_policy_is_wrong_is_not_written(
    old: bytes | None, int8: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / ("model.int8.onnx" if int8 else "model.onnx")
    if old:
        path.write_bytes(old)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(
        "offramp.inference.export.with_steps", lambda *given: with_a_wrong_comparison(with_steps(*given))
    )
    with pytest.raises(ExportMismatch, match="rows leave elsewhere than they should, at the threshold"):
        export(folder, int8=int8)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_file_whose_weights_are_wrong_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.inference.export.export_parts", lambda *given: with_a_wrong_weight(parts_of(*given)))
    with pytest.raises(ExportMismatch, match=r"the graph \(float32, policy .*\): logits are off by 0\.01; .* in order"):
        export(folder)
    assert not list(folder.glob("*onnx*"))


@pytest.mark.parametrize("asked", [{"policy": "stability"}, {"policies": ["stability"]}])
def test_a_policy_that_has_no_meaning_for_the_model_is_refused_before_anything_is_exported(
    asked: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.inference.export.export_parts", None)
    with pytest.raises(NotApplicable):
        export(folder, **asked)
    assert not list(folder.glob("*onnx*"))


def test_a_graph_is_checked_where_some_rows_leave_and_some_stay(exported: Path) -> None:
    engine = load_engine(exported, "onnx")
    rows = text_rows(20)
    reference = record(gated(), rows)
    check(engine, rows, reference)
    wrong = reference.logits.clone()
    wrong[1, 3] += 0.02  # of one exit and one row
    with pytest.raises(ExportMismatch):
        check(engine, rows, replace(reference, logits=wrong))


# Which policies are in it.


def test_the_policy_is_that_of_the_default_point(exported: Path) -> None:
    assert DEFAULT.policy == {"name": "entropy"}
    for file in ("model.onnx", "model.int8.onnx"):
        assert OnnxSession.load(exported / file).metadata.policy == {"name": "entropy"}


def test_without_a_default_point_it_is_the_usual_one(folder: Path) -> None:
    points = {"deep": OperatingPoint({"name": "pcee", "measure": "max-prob", "patience": 3}, (0.9, 0.9, 0.9))}
    write_points(points, folder / "operating_points.json")
    checked = export(folder, dataset=text_rows(12))
    assert checked.policy == OnnxSession.load(checked.path).metadata.policy == {"name": "margin"}
    assert checked.policies == [{"name": "margin"}, {"name": "pcee", "measure": "max-prob", "patience": 3}]


def test_a_file_holds_each_policy_once_and_each_has_been_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    monkeypatch.setattr("offramp.inference.export.check", lambda engine, *_: held.append(engine.graph.metadata.policy))
    others = ["margin", load_policy("patience"), {"name": "entropy"}, {"name": "patience"}]
    checked = export(folder, policies=others, dataset=text_rows(8))
    assert checked.policies == [{"name": "entropy"}, {"name": "margin"}, {"name": "patience"}]
    assert sorted(policy["name"] for policy in held) == ["entropy", "margin", "patience"]
    assert OnnxSession.load(checked.path).metadata.policy == {"name": "entropy"}


@pytest.mark.parametrize("asked", ["patience", {"name": "patience"}, load_policy("patience")])
def test_another_policy_may_be_asked_for(asked: Any, folder: Path) -> None:
    checked = export(folder, asked, dataset=text_rows(8))
    assert checked.policy == OnnxSession.load(folder / "model.onnx").metadata.policy == {"name": "patience"}


# What is told of it.


def by_hand(logits: torch.Tensor, other: torch.Tensor) -> float:
    return (logits.argmax(dim=-1) == other.argmax(dim=-1)).float().mean().item()


@pytest.mark.parametrize("int8", [False, True])
def test_with_labels_the_scores_of_file_and_torch_are_told(int8: bool, folder: Path, data: Path) -> None:
    checked = export(folder, int8=int8, dataset=data)
    engine = f"onnx{'-int8' if int8 else ''}"
    labels = torch.tensor([number % 3 for number in range(40)])
    ours, theirs = (record(folder, text_rows(40, seed=4), each).logits for each in (engine, "torch"))

    assert checked.path == folder / ("model.int8.onnx" if int8 else "model.onnx")
    assert checked.engine == ("onnx-int8" if int8 else "onnx-float32")
    size = sum(file.stat().st_size for file in folder.glob(f"{checked.path.name}*"))
    assert (checked.rows, checked.bytes) == (40, size)
    assert checked.metric == "accuracy"
    assert checked.score == pytest.approx((ours[-1].argmax(dim=-1) == labels).float().mean().item())
    assert checked.torch_score == pytest.approx((theirs[-1].argmax(dim=-1) == labels).float().mean().item())
    assert checked.agreement == pytest.approx(by_hand(ours[-1], theirs[-1]))
    assert checked.difference == pytest.approx((ours - theirs).abs().max().item(), abs=1e-6)
    assert (checked.difference > 1e-3) == int8


def test_what_8_bits_cost_is_told_and_not_refused(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "offramp.inference.export.export_parts", lambda *given: with_a_wrong_weight(parts_of(*given), (2.0, 0.0, 0.0))
    )
    checked = export(folder, int8=True, dataset=data)
    labels = torch.tensor([number % 3 for number in range(40)])
    ours, theirs = (record(folder, text_rows(40, seed=4), each).logits[-1] for each in ("onnx-int8", "torch"))
    assert checked.agreement == pytest.approx(by_hand(ours, theirs))
    assert checked.agreement < 0.9
    assert checked.score == pytest.approx((ours.argmax(dim=-1) == labels).float().mean().item())
    assert checked.torch_score == pytest.approx((theirs.argmax(dim=-1) == labels).float().mean().item())
    assert checked.score != checked.torch_score


def test_without_labels_there_are_no_scores(folder: Path) -> None:
    checked = export(folder, dataset=text_rows(8))
    assert (checked.metric, checked.score, checked.torch_score) == (None, None, None)
    assert (checked.rows, checked.agreement) == (8, 1.0)
    assert checked.seconds > 0


@pytest.mark.slow
def test_a_regression_has_no_agreement_but_a_correlation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("cifar_resnet", 1)
    rows = [{**row, "labels": float(number)} for number, row in enumerate(rows_for(model, 12))]
    model.save_pretrained(tmp_path)
    checked = export(tmp_path, dataset=rows)
    assert checked.policy["name"] == "stability"
    assert checked.agreement is None
    assert checked.metric == "pearson"
    assert checked.score == pytest.approx(checked.torch_score, abs=1e-4)
    monkeypatch.undo()


def test_a_model_of_images_needs_rows_to_be_checked_on(tmp_path: Path) -> None:
    tiny_model("cifar_resnet", 1).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="a model of images"):
        export(tmp_path)


def test_a_model_whose_lexical_exit_is_not_fitted_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    save_folder(tmp_path, MultiExitModel.from_backbone(encoder_config(), 3, lexical=LexicalExit(buckets=61)))
    with pytest.raises(InvalidInput, match="the exit before the first layer is not fitted; "):
        export(tmp_path)


# Eight bits.


def floats(weights: list[TensorProto]) -> list[np.ndarray[Any, Any]]:
    return [numpy_helper.to_array(weight) for weight in weights if weight.data_type == TensorProto.FLOAT]


def test_in_8_bits_are_the_matrices_of_the_encoders_layers_and_nothing_else(exported: Path) -> None:
    file = onnx.load(exported / "model.int8.onnx")
    found = [list(weight.dims) for weight in weights_in(file) if weight.data_type in EIGHT_BITS]
    matrices = [list(weight.shape) for weight in gated().backbone.encoder.parameters() if weight.dim() == 2]
    assert sorted(map(sorted, (dims for dims in found if len(dims) == 2))) == sorted(map(sorted, matrices))


def test_what_belongs_to_an_exit_stays_in_float32(exported: Path) -> None:
    file = onnx.load(exported / "model.int8.onnx")
    kept = floats(weights_in(file))
    exits = [*gated().heads.classifiers, *gated().gate.modules()]
    matrices = [layer.weight.detach().numpy() for layer in exits if isinstance(layer, torch.nn.Linear)]
    assert len(matrices) > 4
    for matrix in matrices:
        assert any(np.array_equal(each, matrix) or np.array_equal(each, matrix.T) for each in kept)
    assert not any(node.op_type in QUANTIZING for function in file.functions for node in function.node)


def test_in_8_bits_no_piece_but_the_blocks_quantizes(exported: Path) -> None:
    file = onnx.load(exported / "model.int8.onnx")
    where = {
        node.name.split("/")[0] for graph in graphs_in(file.graph) for node in graph.node if node.op_type in QUANTIZING
    }
    assert where == {f"level{number}" for number in range(4)}


def test_without_ranges_and_without_data_int8_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / RANGES_FILE).unlink()
    command = f"`offramp export {folder} --int8 --data FILE`"
    with pytest.raises(InvalidInput, match=re.escape(f"{folder}: no {RANGES_FILE} of these weights")) as refused:
        export(folder, int8=True)
    assert str(refused.value).endswith(command)
    assert not list(folder.glob("*onnx*"))


def test_data_gives_ranges_that_stay_beside_the_weights(folder: Path, data: Path) -> None:
    (folder / RANGES_FILE).unlink()
    checked = export(folder, int8=True, dataset=data)
    kept = ActivationRanges.load(folder)
    assert kept is not None
    assert checked.activations == {"rows": 40, "data": "data.jsonl"} == {"rows": kept.rows, "data": kept.data}
    assert OnnxSession.load(checked.path).metadata.activations == checked.activations


def test_without_data_an_int8_file_is_compared_with_nothing(folder: Path) -> None:
    """The built-in sample is of another kind than the model's texts."""
    checked = export(folder, int8=True)
    assert (checked.difference, checked.agreement, checked.score) == (None, None, None)
    assert checked.activations == {"rows": 40, "data": "rows in memory"}


def test_one_by_one_an_8_bit_graph_leaves_where_its_own_trace_says(exported: Path) -> None:
    engine, rows = load_engine(exported, "onnx-int8"), text_rows(30)
    trace = record(engine, rows, batch_size=1)
    assert torch.equal(trace.logits, record(engine, rows, batch_size=1).logits)
    entropy = load_policy("entropy")
    threshold = (threshold_between(scores(entropy, trace)[:-1], 0.5),) * 3
    expected = replay(trace, entropy, threshold)
    assert len(set(expected.exit_layers.tolist())) > 1
    from offramp.data.batching import collate

    for number, row in enumerate(rows):
        found = engine.answer(collate([row], 0), OperatingPoint({"name": "entropy"}, threshold))
        assert found.exit_layers.tolist() == [expected.exit_layers[number].item()]
        assert torch.equal(found.logits[0], expected.logits[number])


# A model that went on.


def test_a_graph_of_other_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "model")
    tiny_model(id2label=NAMES, pooling="mean", certainty=True, seed=3).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    for engine in ("onnx", "onnx-int8"):
        with pytest.raises(
            InvalidInput, match=r"made of other weights than those beside it; `offramp export .*` makes"
        ):
            load_engine(folder, engine)


def test_the_same_weights_written_later_are_no_other_weights(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "model")
    after = (folder / "model.onnx").stat().st_mtime + 10
    os.utime(folder / "model.safetensors", (after, after))
    assert isinstance(load_engine(folder, "onnx"), OnnxEngine)


def test_without_a_default_point_the_file_runs_the_policy_of_the_ladder(folder: Path) -> None:
    point = OperatingPoint({"name": "max-prob"}, (0.5, 0.5), exit_layers=(1, 3, 4))
    write_points(
        {"2x": point, "full": replace(point, thresholds=(math.inf, math.inf))}, folder / "operating_points.json"
    )
    plan = ExportPlan.of(folder, None)
    assert plan.default == (load_policy("max-prob"), (1, 3, 4))
    assert plan.layers == (1, 3, 4)
