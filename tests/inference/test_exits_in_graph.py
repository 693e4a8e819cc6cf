"""A folder's graph has the exits that its operating points read, and each point runs at its own."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

from offramp.bench.exit_prices import reading
from offramp.data.batching import collate
from offramp.errors import InvalidInput
from offramp.inference.export import ExportReport, export
from offramp.inference.load_engine import load_engine
from offramp.inference.onnx.assemble import assemble, switch_policy
from offramp.inference.onnx.metadata import weights_digest
from offramp.inference.onnx.pieces import disassemble
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.operating_point import OperatingPoint, write_points
from offramp.types.trace import Trace
from support.graphs import NAMES, copied, one_registry, weights_in
from support.models import balanced, save_folder, text_rows, texts, tiny_model
from support.traces import threshold_between

READ = {"default": ("entropy", (0, 2, 4)), "patient": ("patience", (2, 3, 4))}
HELD, LEFT_OUT = (0, 2, 3, 4), [1]
FILES = {"onnx": "model.onnx", "onnx-int8": "model.int8.onnx"}


def model() -> MultiExitModel:
    return balanced(tiny_model(id2label=NAMES, pooling="mean", lexical=LexicalExit(buckets=61)))


def point_for(name: str, trace: Trace) -> OperatingPoint:
    """A point at which some rows leave at every exit; with patience at every one but the first."""
    policy, layers = READ[name]
    if policy == "patience":
        return OperatingPoint({"name": policy}, (0.5, 0.5), exit_layers=layers)
    limits = [threshold_between(score, 0.6) for score in scores(load_policy(policy), trace.select(layers))[:-1]]
    return OperatingPoint({"name": policy}, tuple(limits), exit_layers=layers)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportReport]:
    folder = save_folder(tmp_path_factory.mktemp("model"), model())
    trace = record(folder, text_rows(40, seed=4))
    write_points({name: point_for(name, trace) for name in READ}, folder / "operating_points.json")
    with one_registry():
        return {engine: export(folder, int8=engine == "onnx-int8", dataset=text_rows(40, seed=4)) for engine in FILES}


@pytest.fixture
def folder(reports: dict[str, ExportReport], tmp_path: Path) -> Path:
    return copied(reports["onnx"].path.parent, tmp_path / "model")


def loaded(folder: Path, engine: str) -> OnnxEngine:
    one = load_engine(folder, engine)
    assert isinstance(one, OnnxEngine)
    return one


@pytest.mark.parametrize("engine", FILES)
def test_a_file_has_the_exits_that_some_point_reads(engine: str, reports: dict[str, ExportReport]) -> None:
    report = reports[engine]
    assert (report.layers, report.left_out) == (HELD, LEFT_OUT)
    assert report.policies == [
        {"name": "entropy", "exit_layers": [0, 2, 4]},
        {"name": "patience", "exit_layers": [2, 3, 4]},
        {"name": "margin"},
    ]
    assert tuple(loaded(report.path.parent, engine).layers) == HELD


@pytest.mark.parametrize("name", READ)
def test_each_point_runs_at_its_own_exits_as_in_torch(name: str, folder: Path) -> None:
    if name != "default":
        policy, layers = READ[name]
        assert switch_policy(folder / "model.onnx", weights_digest(folder), {"name": policy}, layers)
    answers = {engine: Predictor.load(folder, engine, name)(texts(40, seed=4)) for engine in ("onnx", "torch")}
    layers = [answer["exit_layer"] for answer in answers["torch"]]
    assert [answer["exit_layer"] for answer in answers["onnx"]] == layers
    assert [answer["label"] for answer in answers["onnx"]] == [answer["label"] for answer in answers["torch"]]
    assert set(layers) == set(READ[name][1]) - ({2} if name == "patient" else set())  # patience needs a second exit


def test_an_int8_graph_leaves_at_the_exits_that_its_own_trace_says(folder: Path) -> None:
    engine, rows = loaded(folder, "onnx-int8"), text_rows(40, seed=4)
    trace = record(engine, rows, batch_size=1)
    assert torch.equal(trace.logits[0], record(folder, rows).logits[0])  # 8 bits change no exit before the first layer
    point = point_for("default", trace)
    expected = replay(trace.select((0, 2, 4)), point.policy, point.thresholds)
    assert expected.exit_layers.unique().tolist() == [0, 2, 4]
    found = Predictor(engine, Predictor.load(folder, "torch").tokenizer, point)(texts(40, seed=4), batch_size=1)
    assert [answer["exit_layer"] for answer in found] == expected.exit_layers.tolist()


@pytest.mark.parametrize("engine", FILES)
def test_a_trace_by_a_graph_has_its_exits_and_full_depth_is_the_last(engine: str, folder: Path) -> None:
    rows = text_rows(20)
    trace, full = record(folder, rows, engine), record(folder, rows)
    assert trace.layer_numbers == list(HELD)
    assert torch.equal(trace.logits[0], full.logits[0])
    assert torch.allclose(trace.logits, full.select(HELD).logits, atol=1e-4 if engine == "onnx" else 2.0)
    answers = Predictor.load(folder, engine, None)(texts(20))
    assert {answer["exit_layer"] for answer in answers} == {4}


@pytest.mark.parametrize("layers", [HELD, (2, 3, 4), (0, 3, 4), (0, 4), (4,)])
@pytest.mark.parametrize("engine", FILES)
def test_a_graph_made_with_fewer_exits_answers_as_the_whole_one(
    engine: str, layers: tuple[int, ...], folder: Path
) -> None:
    whole, inputs = loaded(folder, engine), collate(text_rows(20), 0)
    fewer = reading(whole, layers)
    assert isinstance(fewer, OnnxEngine)
    assert (tuple(fewer.layers), fewer.graph.metadata.policy) == (layers, {"name": "margin"})
    expected = Trace(whole.all_exits(inputs).logits, layers=torch.tensor(HELD)).select(layers)
    logits = fewer.all_exits(inputs).logits
    assert torch.equal(logits, expected.logits) if engine == "onnx-int8" else torch.allclose(logits, expected.logits)
    limits = [threshold_between(score, 0.5) for score in scores(load_policy("margin"), expected)[:-1]]
    answers = fewer.answer(inputs, OperatingPoint({"name": "margin"}, tuple(limits), exit_layers=layers))
    assert torch.equal(answers.exit_layers, replay(expected, "margin", limits).exit_layers)
    assert sorted(set(answers.exit_layers.tolist())) == list(layers)


@pytest.mark.parametrize(
    ("policy", "layers", "message"),
    [
        (
            "entropy",
            (1, 2, 4),
            "for entropy at layers 1, 2, 4; the file left out the exits at layers 1: save the point, and `offramp",
        ),
        ("entropy", (0, 3, 4), "the file does not hold its steps: save the point, and `offramp export FOLDER` writes"),
        ("patience", (2, 3, 4), 'save the point as "default", and `offramp export FOLDER` makes a graph that runs it'),
        ("margin", HELD, "`offramp export FOLDER --policy margin` lets the graph run it"),
        ("entropy", (2, 3, 5), r"the point reads the exits at layers \[2, 3, 5\]; there are \[0, 1, 2, 3, 4\]"),
    ],
)
def test_a_point_for_other_exits_is_refused_with_a_remedy(
    policy: str, layers: tuple[int, ...], message: str, folder: Path
) -> None:
    engine, point = (
        loaded(folder, "onnx"),
        OperatingPoint({"name": policy}, (0.5,) * (len(layers) - 1), exit_layers=layers),
    )
    with pytest.raises(InvalidInput, match=message):
        engine.check(point)


def test_a_point_at_other_exits_is_not_answered_by_guess(folder: Path) -> None:
    engine, rows = loaded(folder, "onnx"), text_rows(1)
    inputs = {name: torch.tensor([value]) for name, value in rows[0].items()}
    with pytest.raises(InvalidInput, match="the operating point is for"):
        engine.answer(inputs, OperatingPoint({"name": "entropy"}, (0.5, 0.5), exit_layers=(0, 3, 4)))


@pytest.mark.parametrize("file", FILES.values())
def test_a_file_is_taken_apart_and_assembled_and_switched_without_a_loss(file: str, folder: Path) -> None:
    path = folder / file
    before = path.read_bytes()
    onnx.checker.check_model(onnx.load(path), full_check=file == "model.onnx")
    parts = disassemble(ModelProto.FromString(before))
    assert assemble(parts, parts.metadata.policy, parts.metadata.exit_layers).SerializeToString() == before
    digest = weights_digest(folder)
    assert switch_policy(path, digest, {"name": "entropy"}) is None  # it is held for other exits
    assert switch_policy(path, digest, {"name": "margin"})  # of all exits
    everywhere = loaded(folder, next(name for name in FILES if FILES[name] == file))
    assert everywhere.graph.metadata.layers_read == HELD
    assert switch_policy(path, digest, {"name": "entropy"}, (0, 2, 4))
    assert path.read_bytes() == before


@pytest.mark.parametrize("file", FILES.values())
def test_the_table_of_exit_0_is_in_the_file_as_it_is(file: str, folder: Path) -> None:
    table = MultiExitModel.from_pretrained(folder).lexical_exit.table.numpy()
    weights: list[Any] = [numpy_helper.to_array(weight) for weight in weights_in(onnx.load(folder / file))]
    assert sum(weight.dtype == table.dtype and np.array_equal(weight, table) for weight in weights) == 1


def test_without_points_a_graph_has_all_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(tmp_path, model())
    held = []

    def stop(*given: Any) -> None:
        held.append(given[-1])
        raise InterruptedError

    monkeypatch.setattr("offramp.inference.export.export_parts", stop)
    with pytest.raises(InterruptedError), one_registry():
        export(folder, dataset=text_rows(2))
    assert held == [(0, 1, 2, 3, 4)]
