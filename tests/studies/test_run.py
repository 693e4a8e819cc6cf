"""Studies from end to end: the figures, the page, the command."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

from offramp.model.config import MultiExitConfig
from offramp.studies.markdown import data_set_of, page
from offramp.studies.registry import STUDIES, load_study
from offramp.studies.result import ReachableExits, SeedSummary
from offramp.studies.run import run_study
from offramp.studies.selection import Selected
from offramp.studies.spec import AS_IT_IS, Study
from offramp.studies.training_runs import ExperimentSummary, Trained
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from support.command_line import offramp
from support.models import LAYERS, encoder_config, texts, tiny_tokenizer
from support.traces import random_trace

SUMMARY = ExperimentSummary(
    backbone="tiny",
    layers=None,
    pooling="mean",
    max_length=None,
    recipe={"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 0.1, "bf16": False},
    data={"train": "made up"},
    rows={"train": 9, "validation": 80},
)
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_summary_has_median_and_range_of_the_seeds_that_have_a_result() -> None:
    selected = [Selected(None, {"score": score}) for score in (0.1, 0.5, 0.2)]
    row = SeedSummary("a", "b", (*selected, None))
    assert (row.low, row.median, row.high) == ({"score": 0.1}, {"score": 0.2}, {"score": 0.5})
    assert SeedSummary("a", "b", (None,)).median == {}


LAYERS_OF = {"half-pooler": [3], "three-quarters-pooler": [4]}


def made_up(study: Study, seeds: Sequence[int], *, regression: bool = False) -> dict[tuple[str, int], Trained]:
    """Runs of random traces, six layers, in place of training."""
    runs = {}
    for number, training in enumerate(study.all_trainings(regression)):
        layers = [6] if training.alone else [1, 2, 3, 4, 5, 6]
        layers = LAYERS_OF.get(training.name, layers)
        config = MultiExitConfig(encoder_config(num_hidden_layers=layers[-1]), exit_layers=layers, num_labels=2)
        for seed in seeds:
            kind, outputs = (REGRESSION, 1) if regression else (SINGLE_LABEL, 2)
            trace = random_trace(
                kind,
                depth=len(layers),
                samples=80,
                outputs=outputs,
                seed=10 * number + seed,
                layers=torch.tensor(layers),
            )
            labels = trace.labels.flatten() if regression else trace.labels
            whole = replace(trace, labels=labels, tokens=torch.full((80,), 7))
            runs[training.name, seed] = Trained({"validation": whole}, config, 1.0, 1.0)
    return runs


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_study_has_a_row_for_every_system_and_budget(name: str, regression: bool) -> None:
    study = load_study(name)
    result = run_study(study, made_up(study, [0, 1], regression=regression), [0, 1])
    possible = {(system.name, budget.label) for system in study.systems_for(regression) for budget in study.budgets}
    possible |= {(system.name, AS_IT_IS) for system in study.systems_for(regression)}
    rows = {(row.system, row.budget): row for row in result.rows}
    assert rows.keys() <= possible
    assert {system for system, _ in rows} == {system.name for system in study.systems_for(regression)}
    assert all(set(study.shows) <= row.median.keys() for row in rows.values() if row.median)
    assert bool(result.certified) is not regression
    json.dumps(result.to_json(), allow_nan=False)
    text = page(result, SUMMARY, None)
    assert all(f"| {system} |" in text for system, _ in rows)


def keys(data: Any, path: str = "") -> set[str]:
    """Paths of the keys in plain data; elements of a list share theirs, and a policy is one value."""
    if isinstance(data, list):
        return {key for element in data for key in keys(element, path)}
    if not isinstance(data, dict) or path.endswith("/policy"):
        return {path}
    return {key for name, value in data.items() for key in keys(value, f"{path}/{name}")}


@pytest.mark.parametrize("name", ["pcee", "pabee"])
def test_the_saved_results_have_the_keys_that_are_written(name: str) -> None:
    study = load_study(name)
    result = run_study(study, made_up(study, [0]), [0])
    written = keys({**result.to_json(), "setting": asdict(SUMMARY)})
    files = [path for path in RESULTS.glob(f"studies/*/{name}.json") if "stsb" not in path.parent.name]
    assert files
    saved = {key for path in files for key in keys(json.loads(path.read_text())) if not key.startswith("/about")}
    some = ("/setting/recipe", "/setting/data", "/analyses/bleu", "/analyses/certainty")  # not of every study
    none = {"/rows/readings", "/rows/readings/option"}  # null where no threshold is selected
    assert {key for key in saved ^ written if not key.startswith(some)} <= none


def test_the_pace_is_that_of_one_system() -> None:
    study = load_study("pcee")
    runs = made_up(study, [0])
    result = run_study(study, runs, [0])
    selected = {(row.system, row.budget): row.selected[0] for row in result.rows}
    labels = [budget.label for budget in study.budgets if selected["PABEE", budget.label] is not None]
    assert labels
    for label in labels:
        pace, other = selected["PABEE", label], selected["PCEE-BERT", label]
        assert pace is not None
        assert pace.candidate is not None
        assert other is not None
        assert other.candidate is not None
        assert other.candidate.figures["saving"] == pytest.approx(pace.candidate.figures["saving"], abs=0.02)
        (lead,) = (row for row in result.leads if (row.system, row.budget) == ("PCEE-BERT", label))
        assert lead.seeds == [pytest.approx(other.figures["score"] - pace.figures["score"])]
        assert lead.to_json()["middle"] == lead.seeds[0]
    unpaced = run_study(replace(study, pace=None), runs, [0])
    (row,) = (row for row in unpaced.rows if (row.system, row.budget) == ("PCEE-BERT", "25% saved"))
    selected_freely = row.selected[0]
    assert selected_freely is not None
    assert selected_freely.candidate is not None
    assert selected_freely.candidate.figures["saving"] == pytest.approx(0.25, abs=0.02)


def test_all_rows_at_one_layer_score_what_that_exit_scores() -> None:
    study = load_study("pcee")
    result = run_study(study, made_up(study, [0]), [0])
    exits = next(row for row in result.exits if row.training == "weighted-shared-pooler")
    rows = {row.budget: row.median for row in result.rows if row.system == "Budgeted"}
    layer = round(rows["50% saved"]["mean_exit"])
    assert rows["50% saved"]["score"] == pytest.approx(exits.scores[layer - 1])
    assert exits.average == pytest.approx(sum(exits.scores) / 6)
    reached = {row.system: row for row in result.reached}
    assert reached["Budgeted"] == ReachableExits("Budgeted", least=1, most=6, settings=6, widest_gap=1)
    assert reached["PCEE-BERT"].least == 2


def test_a_page_of_data_that_is_in_no_paper_has_all_that_was_printed() -> None:
    study = load_study("pabee")
    result = run_study(study, made_up(study, [0]), [0])
    text = page(result, SUMMARY, None)
    assert "## The paper's own figures" in text
    assert "| PABEE | best of 1.30x to 1.96x | 61.2 at 1.57x |" in text
    assert "61.2 at 1.57x" in page(result, SUMMARY, "cola")
    assert "The paper's own figures" not in page(result, SUMMARY, "cola")


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


@pytest.mark.slow
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
    assert found["seeds"] == [0, 1]
    text = (tmp_path / "pcee.md").read_text()
    assert "| PCEE-BERT | 50% saved |" in text
    assert "| 84.8 at 53% |" in text  # printed for MRPC
    assert "The paper's own figures" not in text
    assert "BLEU and confidence" in text


@pytest.fixture(scope="module")
def of_values(mrpc: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    more = (
        "--test",
        mrpc / "test.jsonl",
        "--task",
        "regression",
        "--label-column",
        "near",
        "--layers",
        6,
        "--seeds",
        1,
    )
    return study("pabee", mrpc, encoder, tmp_path_factory.mktemp("values"), *more)


def test_a_study_of_values_on_a_test_set(of_values: dict[str, Any]) -> None:
    found = of_values
    assert (found["rows_that_choose"], found["rows_reported"], found["depth"]) == (40, 24, 6)
    assert [row["system"] for row in found["rows"]] == ["Backbone", "9L", "6L", "PABEE"]
    assert found["promises"] == []
