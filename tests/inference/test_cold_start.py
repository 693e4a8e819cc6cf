"""A start on an exported graph: without torch and transformers, with the answers that it has with them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offramp.data.batching import position_limit
from offramp.errors import InvalidInput
from offramp.inference.load_engine import load_engine
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.model.config import MultiExitConfig
from offramp.model.graph_config import GraphConfig, load_graph_config, read_graph_config
from offramp.model.hub import load_config, load_tokenizer
from offramp.model.points import load_point
from offramp.policies.registry import load_policy
from offramp.policies.replay import scores
from offramp.types.operating_point import write_points
from support.graphs import DEFAULT, copied, gated
from support.models import LAYERS, TEXTS, encoder_config, text_rows, texts
from support.traces import threshold_between

ALONE = """
import sys
HEAVY = ("torch", "transformers", "huggingface_hub", "datasets", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib")


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise RuntimeError(f"{name} is imported")


sys.meta_path.insert(0, Refusing())
from offramp.cli.main import main

main()
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-W", "error", "-c", ALONE, *map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture(scope="module")
def folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a point at which some rows leave early, in the widest gap between scores."""
    path = copied(exported, tmp_path_factory.mktemp("cold") / "model")
    seen = scores(load_policy("entropy"), record(gated(), text_rows(40, seed=3)))
    thresholds = (threshold_between(seen[:-1], 0.6),) * (LAYERS - 1)
    write_points({"default": replace(DEFAULT, thresholds=thresholds)}, path / "operating_points.json")
    return path


@pytest.mark.parametrize(("name", "engine"), [("x.txt", "auto"), ("x.jsonl", "onnx-int8"), ("x.csv", "onnx")])
def test_predict_on_a_graph_imports_no_torch_and_answers_as_it_does_with_it(
    name: str, engine: str, folder: Path, tmp_path: Path
) -> None:
    rows = texts(40, seed=3)
    lines = {"x.txt": rows, "x.jsonl": [json.dumps({"text": row}) for row in rows], "x.csv": ["text", *rows]}
    (tmp_path / name).write_text("\n".join(lines[name]) + "\n")
    result = without_torch("predict", folder, tmp_path / name, "--engine", engine, "--scores")
    assert result.returncode == 0, result.stderr
    loaded, tokenizer = load_engine(folder, engine), load_tokenizer(folder)
    expected = Predictor(loaded, tokenizer, load_point(folder, "default"))(rows, top_k=None)
    assert [json.loads(line) for line in result.stdout.splitlines()] == expected
    assert len({answer["exit_layer"] for answer in expected}) > 1


def test_what_a_graph_cannot_run_is_refused_without_torch_too(exported: Path, tmp_path: Path) -> None:
    cut = copied(exported, tmp_path / "model")
    (cut / "model.onnx.data").write_bytes(b"")
    result = without_torch("predict", cut, "--engine", "onnx")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "model.onnx.data: cut: 0 of" in result.stderr


def test_a_trace_of_a_graph_has_costs_that_need_the_whole_configuration(exported: Path) -> None:
    engine = load_engine(exported, "onnx")
    assert isinstance(engine.config, GraphConfig)
    rows = text_rows(9)
    graph, torch_ = record(engine, rows), record(exported, rows)
    assert graph.macs is not None
    assert torch_.macs is not None
    assert graph.macs.equal(torch_.macs)


# The configuration.


CHANGES: dict[str, dict[str, Any]] = {
    "classes": {"id2label": {0: "no", 1: "yes", 2: "perhaps"}},
    "labels": {"id2label": {0: "a", 1: "b"}, "problem_type": "multi_label_classification"},
    "a value": {"num_labels": 1, "problem_type": "regression"},
    "exits": {"exit_layers": [2, 4], "certainty": True},
    "lexical": {"lexical": {"ngrams": 1}},
}


def saved(folder: Path, family: str = "bert", **changes: Any) -> Path:
    values = {"problem_type": "single_label_classification", "num_labels": 3} | changes
    if "id2label" in values:
        del values["num_labels"]
    MultiExitConfig(encoder_config(family), **values).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "change"), [*((family, "classes") for family in TEXTS), *(("bert", name) for name in CHANGES)]
)
def test_config_json_alone_gives_what_transformers_reads(family: str, change: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family, **CHANGES[change])
    ours, theirs = read_graph_config(folder), load_config(folder)
    assert ours is not None
    for name in ("layers", "exit_layers", "problem_type", "id2label", "label2id", "num_labels", "certainty"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.vocab_size, ours.pad_token_id) == (theirs.vocab_size, theirs.pad_token_id)
    for name in ("model_type", "vocab_size", "max_position_embeddings", "pad_token_id"):
        assert getattr(ours.backbone, name) == getattr(theirs.backbone, name), name
    assert position_limit(ours.backbone) == position_limit(theirs.backbone)
    assert ours.full().to_dict() == theirs.to_dict()


def changed(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(format=9), "format 9"),
        (changed(id2label={"0": "a", "1": "a", "2": "b"}), "two classes are named"),
        (changed(id2label={"0": "a"}), "num_labels > 1"),
        (changed(backbone=None), "config.json has no backbone"),
        (changed(exit_layers=[2, 1, 4]), "exit_layers must rise"),
        (changed(model_type="bert"), "a bert model without exits"),
        (lambda data: data["backbone"].update(pad_token_id=99), "pad_token_id is 99, but its embedding has 40 rows"),
        (lambda data: data["backbone"].update(vocab_size="many"), "no model can be loaded"),
        (lambda data: data["backbone"].update(model_type="gpt9"), "no model can be loaded"),
        (dict.clear, "no model can be loaded"),
    ],
)
def test_a_configuration_with_a_fault_is_refused_as_ever(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path) / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    assert read_graph_config(tmp_path) is None
    with pytest.raises(InvalidInput, match=message) as refused:
        load_graph_config(tmp_path)
    assert "\n" not in str(refused.value)


def test_images_and_what_older_files_leave_out_are_read_by_transformers(tmp_path: Path) -> None:
    saved(tmp_path / "images", "vit")
    folder = saved(tmp_path / "older")
    data = json.loads((folder / "config.json").read_text())
    del data["backbone"]["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(data))
    for path in tmp_path.iterdir():
        assert isinstance(load_graph_config(path), MultiExitConfig), os.fspath(path)
