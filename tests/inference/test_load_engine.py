"""What runs a model: torch and its graphs give the same answers, and each says its name."""

import json
import logging
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from offramp.calibration.calibrate import calibrate
from offramp.errors import InvalidInput, UnknownName
from offramp.inference.export import export
from offramp.inference.load_engine import load_engine
from offramp.inference.onnx.metadata import policy_key
from offramp.inference.onnx.session import session_options
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.policies.registry import load_policy, policy_to_dict
from offramp.policies.replay import scores
from offramp.types.operating_point import OperatingPoint, Target, write_points
from support.graphs import DEFAULT, arrays, copied, gated, graph_of
from support.models import LAYERS, padded, rows_for, text_rows, texts, tiny_model
from support.traces import threshold_between

COUNT = 60
POINTS = "operating_points.json"


@pytest.fixture(scope="module")
def point() -> OperatingPoint:
    """At which some leave early, in the widest gap between scores."""
    seen = scores(load_policy("entropy"), record(gated(), text_rows(COUNT)))
    return replace(DEFAULT, thresholds=(threshold_between(seen[:-1], 0.6),) * (LAYERS - 1))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings of this test."""
    messages: list[str] = []
    monkeypatch.setattr(
        "offramp.inference.load_engine.logger.warning", lambda text, *values: messages.append(text % values)
    )
    monkeypatch.setattr(
        "offramp.inference.point_check.log.log",
        lambda level, text, *values: messages.append(text % values) if level == logging.WARNING else None,
    )
    return messages


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return copied(exported, tmp_path / "model")


# The same answers.


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_torch_and_the_graph_give_the_same_answers(batch_size: int, exported: Path, point: OperatingPoint) -> None:
    ours, theirs = (
        Predictor.load(exported, engine, point)(texts(COUNT), batch_size=batch_size) for engine in ("onnx", "torch")
    )
    assert len({answer["exit_layer"] for answer in theirs}) > 1
    assert len({answer["label"] for answer in theirs}) > 1
    for one, other in zip(ours, theirs, strict=True):
        assert (one["label"], one["exit_layer"]) == (other["label"], other["exit_layer"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_without_a_point_both_run_at_full_depth(exported: Path) -> None:
    ours, theirs = (Predictor.load(exported, engine, None)(texts(9)) for engine in ("onnx", "torch"))
    assert {answer["exit_layer"] for answer in ours} == {LAYERS}
    assert [answer["label"] for answer in ours] == [answer["label"] for answer in theirs]


def test_full_depth_is_the_last_exits_own_answer_whatever_the_policy() -> None:
    model = gated()
    graph = graph_of(model, load_policy("entropy", ensemble="all"))
    inputs = padded(model, text_rows(9))
    answers = OnnxEngine(graph, model.config).answer(inputs, None)
    with torch.no_grad():
        assert torch.allclose(answers.logits, model(**inputs).logits, atol=1e-4, rtol=0)
    ensemble = torch.from_numpy(graph.run(arrays(inputs), math.inf).logits)
    assert not torch.allclose(answers.logits, ensemble, atol=1e-2)


def test_8_bits_answer_mostly_as_32_do(exported: Path, point: OperatingPoint) -> None:
    ours, theirs = (Predictor.load(exported, engine, point)(texts(COUNT)) for engine in ("onnx-int8", "torch"))
    same = [one["label"] == other["label"] for one, other in zip(ours, theirs, strict=True)]
    assert sum(same) > 0.9 * COUNT


def test_pairs_are_read_as_pairs(exported: Path, point: OperatingPoint) -> None:
    pairs = [("a good cat", "the dog"), ("the dog", "a good cat"), "a good cat the dog"]
    ours, theirs = (Predictor.load(exported, engine, point)(pairs) for engine in ("onnx", "torch"))
    assert [answer["score"] for answer in ours] == pytest.approx([answer["score"] for answer in theirs], abs=1e-4)


def test_no_texts_no_answers(exported: Path) -> None:
    assert Predictor.load(exported, "onnx")([]) == []


def test_a_text_whose_logits_are_not_finite_is_an_error(exported: Path) -> None:
    engine = load_engine(exported, "onnx")
    assert isinstance(engine, OnnxEngine)
    told = engine.graph.run({"input_ids": padded(gated(), text_rows(3))["input_ids"].numpy()}, 1.0)

    class Broken:
        metadata = engine.graph.metadata

        def run(self, *_: object) -> object:
            logits = told.logits.copy()
            logits[1] = float("nan")
            return replace(told, logits=logits)

    answers = OnnxEngine(Broken(), engine.config).answer({}, DEFAULT)  # type: ignore[arg-type]
    assert answers.failed.tolist() == [False, True, False]


def test_a_score_that_is_nan_leaves_alike_and_only_torch_marks_it_as_failed() -> None:
    """Scores below 1/2 have log-odds below 0; times 1e39 that is -inf in float32, and with the constant NaN."""
    model, policy = gated(), load_policy("entropy", lines=((1e39, 1e39),) * LAYERS)
    inputs, point = padded(model, text_rows(5)), replace(DEFAULT, policy=policy_to_dict(policy))
    in_torch = TorchEngine(model).answer(inputs, point)
    in_graph = OnnxEngine(graph_of(model, policy), model.config).answer(inputs, point)
    assert in_graph.exit_layers.tolist() == in_torch.exit_layers.tolist() == [1] * 5
    assert torch.allclose(in_graph.logits, in_torch.logits, atol=1e-4, rtol=0)
    assert in_torch.failed.all()
    assert not in_graph.failed.any()


# Which one runs.


def test_auto_takes_the_graph_that_is_there(exported: Path) -> None:
    assert Predictor.load(exported).engine.name == "onnx-float32"
    assert Predictor.load(exported, operating_point=None).engine.name == "onnx-float32"


def test_auto_takes_the_graph_with_which_the_point_was_measured(folder: Path) -> None:
    for engine, name in (("onnx-int8", "onnx-int8"), ("onnx", "onnx-float32"), ("torch", "onnx-float32")):
        trace = record(folder, text_rows(COUNT), engine)
        point = calibrate(trace, load_policy("entropy"), Target(agreement=0.9))
        write_points({"default": point}, folder / POINTS)
        assert Predictor.load(folder).engine.name == name


def test_auto_is_torch_where_there_is_no_graph(folder: Path, told: list[str]) -> None:
    for file in folder.glob("*.onnx"):
        file.unlink()
    assert Predictor.load(folder).engine.name == "torch-float32"
    assert told == []


def test_auto_is_torch_without_onnx_runtime(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.inference.choose_engine.find_spec", lambda name: None)
    assert Predictor.load(exported).engine.name == "torch-float32"


def test_auto_falls_back_to_torch_and_says_why_if_the_point_is_for_another_policy(
    folder: Path, told: list[str]
) -> None:
    write_points({"default": OperatingPoint({"name": "patience"}, (1.5,) * 3)}, folder / POINTS)
    predictor = Predictor.load(folder)
    assert isinstance(predictor.engine, TorchEngine)
    (warning,) = told
    assert warning.startswith("torch runs this model: the graph runs the policy entropy, ")
    assert "the operating point is for patience; the file does not hold its steps: " in warning
    assert warning.endswith("save the point, and `offramp export FOLDER` writes them")
    assert len(predictor(texts(3))) == 3


def test_a_graph_that_was_asked_for_refuses_a_point_of_another_policy_or_depth(exported: Path) -> None:
    with pytest.raises(InvalidInput, match=r"the graph runs the policy .*`offramp export FOLDER` writes them"):
        Predictor.load(exported, "onnx", OperatingPoint({"name": "patience"}, (1.5,) * 3))
    held = OperatingPoint({"name": "margin"}, (0.5,) * 3)
    with pytest.raises(InvalidInput, match=r"`offramp export FOLDER --int8 --policy margin` lets the graph run it"):
        Predictor.load(exported, "onnx-int8", held)
    with pytest.raises(InvalidInput, match="4 exits take 1 or 3 thresholds"):
        Predictor.load(exported, "onnx", OperatingPoint({"name": "entropy"}, (0.5,) * 2))


def test_a_policy_that_the_command_line_cannot_name_runs_as_the_default(exported: Path) -> None:
    engine = load_engine(exported, "onnx")
    ensemble = {"name": "margin", "ensemble": "all"}
    calls = {**engine.graph.metadata.policies, policy_key(ensemble): ()}
    graph = replace(engine.graph, metadata=replace(engine.graph.metadata, policies=calls))
    with pytest.raises(InvalidInput, match='save the point as "default", and `offramp export FOLDER` makes a graph'):
        replace(engine, graph=graph).check(OperatingPoint(ensemble, (0.5,) * 3))


def test_a_file_that_is_missing_is_told_with_the_command_that_makes_it(folder: Path) -> None:
    for file in folder.glob("*.onnx"):
        file.unlink()
    with pytest.raises(InvalidInput, match=rf"model: no model\.onnx; `offramp export {folder}` makes it"):
        load_engine(folder, "onnx")
    with pytest.raises(InvalidInput, match=rf"model: no model\.int8\.onnx; `offramp export {folder} --int8` makes it"):
        Predictor.load(folder, "onnx-int8")


def test_an_unknown_engine_is_refused_with_those_there_are(exported: Path) -> None:
    with pytest.raises(UnknownName, match="unknown engine 'onxx'; known: auto, torch, onnx, onnx-int8"):
        load_engine(exported, "onxx")


# Traces, and points measured on them.


@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_trace_by_the_graph_is_torchs(batch_size: int, exported: Path) -> None:
    ours, theirs = (record(exported, text_rows(40), engine, batch_size=batch_size) for engine in ("onnx", "torch"))
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-4, rtol=0)
    assert torch.allclose(ours.certainty, theirs.certainty, atol=1e-4, rtol=0)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert ours.layer_numbers == theirs.layer_numbers
    assert ours.problem_type == theirs.problem_type
    assert (ours.provenance["engine"], theirs.provenance["engine"]) == ("onnx-float32", "torch-float32")


def test_a_trace_in_8_bits_says_so_and_is_another(exported: Path) -> None:
    ours, theirs = (record(exported, text_rows(40), engine) for engine in ("onnx-int8", "torch"))
    assert ours.provenance["engine"] == "onnx-int8"
    apart = (ours.logits - theirs.logits).abs().max()
    assert 1e-3 < apart < 0.2 * theirs.logits.abs().max()


def test_a_model_in_memory_has_no_graph() -> None:
    with pytest.raises(InvalidInput, match="engine 'onnx' runs what was exported to a folder"):
        record(gated(), text_rows(2), "onnx")


@pytest.mark.parametrize(
    ("measured", "engine", "warns"),
    [
        ("torch-float32", "onnx", False),
        ("onnx-float32", "onnx", False),
        ("onnx-int8", "onnx", True),
        ("torch-float32", "onnx-int8", True),
        ("onnx-int8", "onnx-int8", False),
        (None, "onnx-int8", False),
    ],
)
def test_a_point_that_was_measured_with_another_precision_is_told_of(
    measured: str | None, engine: str, warns: bool, exported: Path, told: list[str]
) -> None:
    trace = record(gated(), text_rows(20))
    about = {} if measured is None else {"engine": measured}
    point = calibrate(replace(trace, provenance=about), load_policy("entropy"), Target(agreement=0.9))
    name = Predictor.load(exported, engine, point).engine.name
    wanted = [f"this operating point was measured with {measured} and runs with {name}"] if warns else []
    assert told == wanted


def test_the_warning_reaches_the_user(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace = replace(record(gated(), text_rows(20)), provenance={"engine": "onnx-int8"})
    point = calibrate(trace, load_policy("entropy"), Target(agreement=0.9))
    logger = logging.getLogger("offramp")
    transformers_logging.enable_propagation()
    logger.addHandler(caplog.handler)
    try:
        Predictor.load(exported, "onnx", point)
    finally:
        logger.removeHandler(caplog.handler)
        transformers_logging.disable_propagation()
    assert "was measured with onnx-int8" in caplog.text


# Images.


@pytest.mark.slow
def test_images_are_recorded_through_the_graph(tmp_path: Path) -> None:
    model = tiny_model("vit", exit_layers=[2, 4])
    model.save_pretrained(tmp_path)
    rows = [{**row, "labels": number % 3} for number, row in enumerate(rows_for(model, 12))]
    checked = export(tmp_path, "entropy", dataset=rows)
    ours, theirs = (record(tmp_path, rows, engine, batch_size=5) for engine in ("onnx", "torch"))
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-4, rtol=0)
    assert ours.labels.tolist() == [number % 3 for number in range(12)]
    assert ours.tokens is None
    assert (checked.metric, checked.agreement) == ("accuracy", 1.0)


# Other processes, threads.


def test_a_pickled_predictor_loads_its_graph_again_in_a_new_process(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.parent)
    predictor = Predictor.load(exported.name, "onnx", threads=1)  # a relative path, which the other process cannot read
    (tmp_path / "predictor.pickle").write_bytes(pickle.dumps(predictor))
    script = "import json, pickle, sys; print(json.dumps(pickle.load(open('predictor.pickle', 'rb'))(['the cat'])))"
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == predictor(["the cat"])


def test_a_pickled_graph_of_bytes_carries_them() -> None:
    graph = graph_of(gated(), load_policy("entropy"))
    copy = pickle.loads(pickle.dumps(graph))
    inputs = arrays(padded(gated(), text_rows(5)))
    assert (copy.run(inputs, 0.1).logits == graph.run(inputs, 0.1).logits).all()


def test_a_pickled_predictor_says_that_its_graph_is_gone_or_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    predictor = Predictor.load(folder.name, "onnx")
    content = pickle.dumps(predictor)
    monkeypatch.chdir(folder)
    assert predictor(["the cat"]) == pickle.loads(content)(["the cat"])
    graph = folder / "model.onnx"
    graph.write_bytes((folder / "model.int8.onnx").read_bytes())
    with pytest.raises(InvalidInput, match=r"model\.onnx: another graph than the predictor's"):
        pickle.loads(content)
    graph.unlink()
    with pytest.raises(InvalidInput, match=r"model\.onnx: no such file; a predictor loads its graph from there again"):
        pickle.loads(content)


@pytest.mark.parametrize(
    ("variable", "threads", "expected"),
    [("3", None, 3), ("4,2", None, 4), ("", None, 0), ("many", None, 0), ("3", 2, 2), ("0", None, 0)],
)
def test_threads_are_those_asked_for_or_the_environments(
    variable: str, threads: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert session_options(threads).intra_op_num_threads == expected


def test_a_graph_runs_in_its_threads(exported: Path) -> None:
    graph = Predictor.load(exported, "onnx", threads=2).engine.graph  # type: ignore[attr-defined]
    assert graph.session.get_session_options().intra_op_num_threads == 2
