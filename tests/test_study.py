"""Studies from end to end: the figures, the page, the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import BertModel

from offramp.cli import main
from offramp.registry import load_study
from offramp.studies.base import AS_IT_IS
from offramp.study import Reading, Told
from offramp.study_page import data_set_of, page
from tiny import LAYERS, encoder_config, texts, tiny_tokenizer


def test_a_row_tells_median_and_range_of_the_seeds_that_have_one() -> None:
    readings = [Reading(None, {"score": score}) for score in (0.1, 0.5, 0.2)]
    told = Told("a", "b", (*readings, None))
    assert (told.low, told.middle, told.high) == ({"score": 0.1}, {"score": 0.2}, {"score": 0.5})
    assert Told("a", "b", (None,)).middle == {}


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("glue/mrpc", "mrpc"),
        ("data/SST-2/train.tsv", "sst2"),
        ("glue/cola:train", "cola"),
        ("my_rows.csv", None),
        ("folder/rte.jsonl.gz", "rte"),
    ],
)
def test_the_papers_data_set_is_known_by_its_name(source: str, data: str | None) -> None:
    assert data_set_of(load_study("pcee"), source) == data


def offramp(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "encoder"
    torch.manual_seed(0)
    BertModel(encoder_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is called like a data set of the papers."""
    folder = tmp_path_factory.mktemp("data") / "mrpc"
    folder.mkdir()
    for split, count, seed in (("train", 48, 1), ("validation", 40, 2), ("test", 24, 3)):
        first, second = texts(count, seed=seed), texts(count, seed=seed + 10)
        rows = [
            {"sentence1": one, "sentence2": two, "label": int("the" in one), "near": float(len(one) - len(two))}
            for one, two in zip(first, second, strict=True)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def study(name: str, mrpc: Path, encoder: Path, output: Path, *more: Any) -> dict[str, Any]:
    files = ("--train", mrpc / "train.jsonl", "--validation", mrpc / "validation.jsonl", "--backbone", encoder)
    result = offramp("study", name, *files, "-o", output, "--epochs", 1, "--seeds", 2, "--json", *more)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_study_of_classes(mrpc: Path, encoder: Path, tmp_path: Path) -> None:
    study("pabee", mrpc, encoder, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("validation.safetensors")}
    assert len(before) == 8  # whole, 9L, 6L and weighted, twice

    found = study("pcee", mrpc, encoder, tmp_path, "--metric", "accuracy", "--metric", "f1")

    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("validation.safetensors")}
    assert {path: after[path] for path in before} == before  # runs are shared
    assert len(after) == 10  # one more training: with a gate
    assert found == json.loads((tmp_path / "pcee.json").read_text())
    assert (found["rows_that_choose"], found["rows_reported"], found["depth"]) == (20, 20, LAYERS)
    rows = {(row["system"], row["ask"]): row for row in found["rows"]}
    assert rows["BERT base", AS_IT_IS]["middle"]["saving"] == 0
    assert rows["Budgeted", "75% saved"]["middle"]["saving"] == pytest.approx(0.75)
    assert all(None not in row["readings"] and len(row["readings"]) == 2 for row in found["rows"])
    text = (tmp_path / "pcee.md").read_text()
    assert "| PCEE-BERT | 50% saved |" in text
    assert "| 84.8 at 53% |" in text  # printed for MRPC
    assert "The paper's own figures" not in text
    assert "BLEU and confidence" in text


def test_a_study_of_values_on_a_test_set(mrpc: Path, encoder: Path, tmp_path: Path) -> None:
    more = ("--test", mrpc / "test.jsonl", "--task", "regression", "--label-column", "near", "--layers", 6)
    found = study("pabee", mrpc, encoder, tmp_path, *more)
    assert (found["rows_that_choose"], found["rows_reported"], found["depth"]) == (40, 24, 6)
    assert [row["system"] for row in found["rows"]] == ["Backbone", "9L", "6L", "PABEE"]
    assert found["promises"] == []


@pytest.mark.parametrize("name", ["badge", "berxit", "mpee"])
def test_the_other_studies(name: str, mrpc: Path, encoder: Path, tmp_path: Path) -> None:
    found = study(name, mrpc, encoder, tmp_path, "--seeds", 1, "--limit", 24)
    assert found["setting"]["rows"] == {"train": 24, "validation": 24}
    wanted = [system.name for system in load_study(name).systems]
    assert list(dict.fromkeys(row["system"] for row in found["rows"])) == wanted
    if name == "mpee":
        rows = {row["system"]: row["middle"] for row in found["rows"]}
        assert rows["BERT-Base"]["macs_ratio"] == pytest.approx(1)
        assert rows["w/o Layer-EE"]["saving"] == 0
        assert rows["w/o Layer-EE"]["macs_ratio"] != 1


def test_a_page_of_data_that_is_in_no_paper_has_all_that_was_printed(mrpc: Path, encoder: Path, tmp_path: Path) -> None:
    found = study("pabee", mrpc, encoder, tmp_path, "--seeds", 1, "--limit", 24)
    text = page(load_study("pabee"), found, None)
    assert "## The paper's own figures" in text
    assert "| PABEE | best of 1.30x to 1.96x | 61.2 at 1.57x |" in text
