"""OpenVINO: the same exits and answers as torch in float32; exits and decisions in float32 in every precision."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.errors import InvalidInput
from offramp.inference.choose_engine import fault
from offramp.inference.load_engine import load_engine
from offramp.inference.record import record
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.policies.registry import load_policy, policy_to_dict
from offramp.policies.replay import replay
from offramp.types.operating_point import OperatingPoint
from support.graphs import DEFAULT, arrays, copied, gated, one_registry, parts_of, with_policies
from support.models import padded, tiny_model, token_rows
from support.plans import assert_each_row_has_its_own_plan, mixed, points_for

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")

from offramp.inference.export_openvino import OpenVinoReport, export_openvino  # noqa: E402
from offramp.inference.onnx.assemble import assemble  # noqa: E402
from offramp.inference.openvino.convert import of_the_encoder, operations, to_openvino  # noqa: E402
from offramp.inference.openvino.session import BFLOAT16, FLOAT32, OpenVinoSession, padded_length  # noqa: E402
from offramp.inference.openvino_engine import OpenVinoEngine, load_openvino  # noqa: E402
from offramp.types.openvino_file import finish_xml  # noqa: E402

ROWS = token_rows(40, seed=3)
TOLERANCE = 1e-5


def exported_for_openvino(folder: Path, int8: bool) -> OpenVinoReport:
    with pytest.MonkeyPatch.context() as patch, one_registry():
        patch.setattr("offramp.inference.export_openvino.export_parts", parts_of)
        return export_openvino(folder, int8=int8, dataset=ROWS)


@pytest.fixture(scope="module")
def folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder, with OpenVINO's graph beside the others. Nothing is to be changed there."""
    folder = copied(exported, tmp_path_factory.mktemp("openvino") / "model")
    exported_for_openvino(folder, int8=False)
    return folder


@contextmanager
def session_of(model: MultiExitModel, policy: str, path: Path, precision: str) -> Iterator[OpenVinoSession]:
    rule = load_policy(policy)
    graph = assemble(with_policies(parts_of(model, "of a test"), [rule]), policy_to_dict(rule))
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    openvino.save_model(to_openvino(graph, path / "model.onnx"), path / "model.xml", compress_to_fp16=False)
    finish_xml(path / "model.xml", metadata, lambda name: not of_the_encoder(name))
    yield OpenVinoSession.load(path / "model.xml", positions=64, precision=precision)


def in_float32(folder: Path) -> OpenVinoEngine:
    engine = load_engine(folder, "openvino")
    return load_openvino(engine.graph.path, engine.config, precision=FLOAT32)


def test_a_point_or_a_table_of_int8_takes_no_file_of_float32(folder: Path) -> None:
    assert fault(folder, "openvino", None, "openvino-bf16") is fault(folder, "openvino", DEFAULT) is None
    reason = fault(folder, "openvino", None, "openvino-int8")
    assert reason is not None
    assert "model.xml: in float32; `offramp export " in reason
    assert reason.endswith(" --openvino --int8 --data FILE` makes it for openvino-int8")


def test_rows_leave_where_they_leave_in_torch(folder: Path) -> None:
    engine, trace = in_float32(folder), record(gated(), ROWS)
    assert engine.name == "openvino-float32"
    expected = replay(trace, DEFAULT.policy, DEFAULT.thresholds)
    for size in (1, 7, len(ROWS)):  # a larger batch than all before, and smaller ones
        for start in range(0, len(ROWS), size):
            part = slice(start, start + size)
            answers = engine.answer(padded(gated(), ROWS[part]), DEFAULT)
            assert torch.equal(answers.exit_layers, expected.exit_layers[part])
            assert torch.allclose(answers.logits, expected.logits[part], atol=TOLERANCE)
    assert torch.allclose(record(engine, ROWS).logits, trace.logits, atol=TOLERANCE)
    assert 0 < (expected.exit_layers < 4).float().mean() < 1


def test_each_row_has_its_own_plan(folder: Path) -> None:
    engine, every = in_float32(folder), (1, 2, 3, 4)
    trace = record(engine, ROWS)
    plans = mixed(len(ROWS), [*points_for({"name": "entropy"}, trace, every), None], (None, 1, 2, 3))
    assert assert_each_row_has_its_own_plan(engine, ROWS, trace, plans, (every, every), 1e-4) == set(every)


def test_threads_answer_at_the_same_time_and_a_pickled_engine_as_before(folder: Path) -> None:
    engine = load_engine(folder, "openvino", DEFAULT)
    batches = [padded(gated(), ROWS[start : start + 5]) for start in range(0, len(ROWS), 5)] * 4
    expected = [engine.answer(batch, DEFAULT) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda batch: engine.answer(batch, DEFAULT), batches))
    again = pickle.loads(pickle.dumps(engine))
    for batch, one, other in zip(batches, expected, answers, strict=True):
        assert torch.equal(one.exit_layers, other.exit_layers)
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.logits, again.answer(batch, DEFAULT).logits)


def test_the_encoder_alone_runs_in_int8(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "model")
    report = exported_for_openvino(folder, int8=True)
    assert report.engine == load_engine(folder, "openvino").name == "openvino-int8"
    assert report.between_batches.exit_layers > 0.9
    model = openvino.Core().read_model(folder / "openvino" / "model.xml")
    reads = [
        (operation.get_friendly_name(), {source.get_node().get_type_name() for source in operation.input_values()})
        for operation in operations(model)
        if operation.get_type_name() == "MatMul"
    ]
    quantized = [name for name, sources in reads if "FakeQuantize" in sources]
    assert len(quantized) == 4 * 6  # of each layer: query, key, value, output, and both of the feed-forward part
    assert all(of_the_encoder(name) for name in quantized)
    with pytest.raises(
        InvalidInput, match=r"export FOLDER --openvino --int8 --data FILE --policy margin` lets the graph run it"
    ):
        load_engine(folder, "openvino", OperatingPoint({"name": "margin"}, (0.5, 0.5, 0.5)))


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
def test_the_lexical_exit_is_computed_in_float32(precision: str, tmp_path: Path) -> None:
    model = tiny_model(lexical=LexicalExit(buckets=49_019))  # times the multiplier beyond 2^24
    expected = record(model, ROWS).logits[0].numpy()
    with session_of(model, "fixed", tmp_path, precision) as session:
        output = session.run(arrays(padded(model, ROWS)), -np.inf)
    assert (output.exit_layers == 0).all()
    assert np.allclose(output.logits, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("tokens", "positions", "padded_to"),
    [(1, 64, 8), (8, 64, 8), (9, 64, 16), (63, 64, 64), (61, 62, 62), (65, 512, 80), (129, 512, 160), (500, 512, 512)],
)
def test_lengths_are_few(tokens: int, positions: int, padded_to: int) -> None:
    assert padded_length(tokens, positions) == padded_to


def test_what_does_not_fit_is_refused_with_the_command(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"export .* --openvino --int8 --data FILE"):
        export_openvino(folder, int8=True)
    other = copied(folder, tmp_path / "model")
    tiny_model(id2label=gated().config.id2label, pooling="mean", certainty=True, seed=5).save_pretrained(other)
    assert not (other / "openvino" / "model.xml").exists()  # of other weights
    with pytest.raises(InvalidInput, match=r"no openvino/model.xml; `offramp export .* --openvino` makes it"):
        load_engine(other, "openvino")
