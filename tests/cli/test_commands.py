import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from click import Context, Parameter
from click.testing import Result
from transformers import AutoModelForSequenceClassification, BertModel

from offramp.calibration.saved_lines import LINES_FILE
from offramp.cli.main import main
from offramp.evaluation.metrics import METRICS
from offramp.inference.onnx.metadata import weights_digest
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.predictor import Predictor
from offramp.inference.record import TASKS
from offramp.model.heads import HEADS, POOLINGS
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.policies.divergence import DIVERGENCES, WINDOWS, Divergence
from offramp.policies.ensemble import MEMBERS
from offramp.policies.registry import POLICIES
from offramp.types.graph_file import RANGES_FILE
from offramp.types.operating_point import POINTS_FILE, read_points
from offramp.types.trace import Trace
from support.command_line import offramp
from support.graphs import copied
from support.models import LAYERS, encoder_config, padded, save_folder, text_rows, texts, tiny_model, tiny_tokenizer

COMMANDS = (
    "bench",
    "calibrate",
    "demo",
    "evaluate",
    "export",
    "info",
    "predict",
    "record",
    "report",
    "study",
    "train",
)


def labelled(path: Path, count: int, seed: int = 0) -> Path:
    """Rows of jsonl: "good" where the text says good, else "bad"; a score that is the number of words."""
    rows = [
        {"text": text, "label": "good" if "good" in text else "bad", "words": len(text.split())}
        for text in texts(count, seed=seed)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, data, and a model that was trained on them from the command line."""
    folder = tmp_path_factory.mktemp("cli")
    BertModel(encoder_config()).save_pretrained(folder / "encoder")
    tiny_tokenizer().save_pretrained(folder / "encoder")
    labelled(folder / "train.jsonl", 96, seed=1)
    labelled(folder / "validation.jsonl", 48, seed=2)
    result = train(folder, "model", "--json")
    assert result.exit_code == 0, result.output
    (folder / "told.json").write_text(result.stdout)
    return folder


def train(folder: Path, output: str, *more: Any) -> Result:
    files = ("--train", folder / "train.jsonl", "--validation", folder / "validation.jsonl")
    return offramp("train", *files, "--backbone", folder / "encoder", "-o", folder / output, "--epochs", 2, *more)


def test_help_lists_every_command_and_each_has_an_example() -> None:
    listed = offramp("--help").stdout
    for command in COMMANDS:
        assert command in listed
        lines = offramp(command, "--help").stdout.splitlines()[1:]
        assert any(line.startswith(f"  offramp {command}") for line in lines)
        assert not any("\\b" in line for line in lines)


def options_of(command: str) -> Sequence[Parameter]:
    known = main.get_command(Context(main), command)
    assert known is not None
    return known.params


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("train", "head", HEADS),
        ("train", "pooling", POOLINGS),
        ("train", "task", TASKS.values()),
        ("train", "metric", METRICS),
        ("evaluate", "metric", METRICS),
        ("study", "metrics", METRICS),
        ("calibrate", "ensemble", MEMBERS),
        ("calibrate", "window", WINDOWS),
        ("calibrate", "divergence", DIVERGENCES),
    ],
)
def test_an_option_knows_the_names_of_the_library(command: str, option: str, names: Collection[str]) -> None:
    (kind,) = (known.type for known in options_of(command) if known.name == option)
    assert set(kind.choices) == set(names)


@pytest.mark.parametrize("command", ["bench", "calibrate", "evaluate", "export", "record", "report", "study", "train"])
def test_every_command_that_reads_labels_has_their_options(command: str) -> None:
    names = {name for parameter in options_of(command) for name in parameter.opts}
    assert {"--label-column", "--label-names", "--text-column", "--pair-column"} <= names


def test_labels_in_columns_and_names_of_numbers_reach_the_model(place: Path, tmp_path: Path) -> None:
    many, coded = tmp_path / "many.csv", tmp_path / "coded.csv"
    rows = [(text, int("good" in text), int("cat" in text)) for text in texts(24)]
    many.write_text("text,good,cat\n" + "".join(f"{text},{good},{cat}\n" for text, good, cat in rows))
    columns = ("--task", "multi-label", "--label-column", "good", "--label-column", "cat")
    more = ("--validation", many, "--backbone", place / "encoder", "-o", tmp_path / "m", "--epochs", 1)
    result = offramp("train", "--train", many, *more, *columns)
    assert result.exit_code == 0, result.output
    assert Predictor.load(tmp_path / "m").engine.config.id2label == {0: "good", 1: "cat"}

    lines = "".join(f"{text},{good},{cat}\n" for text, good, cat in rows)
    coded.write_text(f"text,label,site\nno label,-1,2\n{lines}")
    refused = offramp("evaluate", place / "model", "--data", coded)
    assert refused.exit_code == 1
    assert "say which by --label-names" in refused.output
    read = offramp(
        "record", place / "model", "--data", coded, "--label-names", "bad,good", "-o", tmp_path / "t.safetensors"
    )
    assert read.exit_code == 0
    assert "0 = bad, 1 = good" in read.output
    assert Trace.load(tmp_path / "t.safetensors").labels.tolist() == [good for _, good, _ in rows]
    by_site = ("--slice-by", "site", "--json")
    slices = offramp("evaluate", place / "model", "--data", coded, "--label-names", "bad,good", *by_site)
    cats = sum(cat for _, _, cat in rows)
    counts = [group["rows"] for group in json.loads(slices.stdout.splitlines()[-1])["slices"]["slices"]]
    assert counts == [len(rows) - cats, cats]  # not the row that was left out


def test_help_loads_no_torch() -> None:
    code = "import sys, offramp.cli.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_python_m_offramp_is_the_command_line() -> None:
    run = subprocess.run([sys.executable, "-m", "offramp", "--version"], check=True, capture_output=True, text=True)
    assert run.stdout.startswith("offramp, version ")


def test_training_leaves_a_model_folder_with_a_default_point_and_nothing_else(place: Path) -> None:
    files = {file.name for file in (place / "model").iterdir()}
    wanted = {"config.json", "model.safetensors", "README.md", POINTS_FILE, "tokenizer.json", "tokenizer_config.json"}
    assert files == wanted | {LINES_FILE, RANGES_FILE}
    told = json.loads((place / "told.json").read_text())
    assert told["layers"] == [0, 1, 2, 3, 4]
    assert told["metric"] == "accuracy"
    assert told["points"]["default"]["target"] == {"max_drop": 0.01}


def test_certified_thresholds_at_each_exit_take_the_lines_of_training_and_all_rows(place: Path) -> None:
    asked = ("calibrate", place / "model", "--agreement", 0.5, "--per-exit", "--confidence", 0.6, "--name", "sure")
    trained_on = {json.loads(line)["text"] for line in (place / "train.jsonl").read_text().splitlines()}
    labelled(place / "fresh.jsonl", 60, seed=3)
    lines = (place / "fresh.jsonl").read_text().splitlines()
    fresh = [line for line in lines if json.loads(line)["text"] not in trained_on]
    (place / "fresh.jsonl").write_text("\n".join(fresh) + "\n")
    result = offramp(*asked, "--data", place / "fresh.jsonl")
    assert result.exit_code == 0, result.output
    assert f"training on {96 // 5} of its rows, the threshold chosen on {len(fresh)}\n" in result.stderr
    assert read_points(place / "model" / POINTS_FILE)["sure"].certificate.rows == len(fresh) > 40
    result = offramp(*asked, "--data", place / "train.jsonl")
    assert "fitted on 48 rows, the threshold chosen on the other 48 (lines.json was fitted on " in result.stderr


def test_the_target_of_the_default_point_is_of_the_metric_asked_for(place: Path) -> None:
    result = train(place, "by f1", "--metric", "f1", "--json", "--max-drop", 0.5)
    told = json.loads(result.stdout)
    assert (told["metric"], told["points"].get("default", {"measured": {"metric": "f1"}})["measured"]["metric"]) == (
        "f1",
        "f1",
    )
    assert "f1 is that of class 'good', the second of the two" in told["notes"]
    assert "note: f1 is that of class 'good'" in result.stderr


@pytest.mark.parametrize(
    ("metric", "code", "words"),
    [
        ("pearson", 1, "pearson has no meaning for single_label_classification with 2 outputs; these have: accuracy"),
        ("f2", 2, "'f2' is not one of 'accuracy', 'f1', 'macro-f1'"),
    ],
)
@pytest.mark.parametrize("command", ["train", "calibrate", "evaluate", "report"])
def test_a_metric_that_does_not_fit_is_refused_before_anything_runs(
    place: Path, command: str, metric: str, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.inference.record.record", None)  # would fail another way
    data = ("--data", place / "validation.jsonl", "--metric", metric)
    if command == "train":
        result = train(place, "never made", "--metric", metric)
    elif command == "report":
        result = offramp("report", place / "model", *data, "-o", tmp_path / "page.html")
    else:
        result = offramp(command, place / "model", *data, *(("--max-drop", 0.1) if command == "calibrate" else ()))
    assert (result.exit_code, words in result.stderr) == (code, True), result.output
    assert not (place / "never made").exists()


def test_few_rows_and_unbalanced_classes_are_said_by_calibrate_and_evaluate(place: Path, tmp_path: Path) -> None:
    model = copytree(place / "model", tmp_path / "model")
    rows = (place / "validation.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(next(row for row in rows if '"good"' not in row) + "\n")
    data = ("--data", tmp_path / "one.jsonl")
    calibrated = offramp("calibrate", model, *data, "--speedup", 1.2, "--name", "one")
    assert calibrated.exit_code == 0, calibrated.output
    assert "note: 1 row promises little" in calibrated.stderr
    told = json.loads(offramp("evaluate", model, *data, "--json").stdout)
    assert any("the only row has the label 'bad'" in note for note in told["notes"])


def test_rows_without_a_finite_answer_are_left_out_with_a_count(place: Path, tmp_path: Path) -> None:
    assert offramp("record", place / "model", "--data", place / "validation.jsonl", "-o", tmp_path / "t").exit_code == 0
    trace = Trace.load(tmp_path / "t")
    trace.logits[1, 2] = torch.nan
    trace.save(tmp_path / "one")
    result = offramp("evaluate", place / "model", "--trace", tmp_path / "one", "--json")
    assert "note: 1 of 48 rows has no finite answer and is left out here (row 3)" in result.stderr
    assert json.loads(result.stdout)["points"]["default"]["measured"]["rows"] == 47
    assert "NaN" not in result.stdout
    trace.logits[:] = torch.nan
    trace.save(tmp_path / "all")
    Trace(torch.randn(4, 5, 3)).save(tmp_path / "three")
    refused = offramp("evaluate", place / "model", "--trace", tmp_path / "three")
    assert refused.exit_code == 1
    assert "three has 3 outputs, the model 2" in refused.stderr
    refused = offramp("evaluate", place / "model", "--trace", tmp_path / "all")
    assert refused.exit_code == 1
    assert "all 48 samples have no finite answer" in refused.stderr
    assert refused.stdout == ""


def test_training_does_not_overwrite_a_model(place: Path) -> None:
    before = (place / "model" / "model.safetensors").read_bytes()
    result = train(place, "model")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("model: there is a model already; choose another folder")
    assert (place / "model" / "model.safetensors").read_bytes() == before


def test_an_unfinished_run_is_not_overwritten_but_resumed_when_asked(place: Path) -> None:
    (place / "stopped" / "checkpoints").mkdir(parents=True)
    result = train(place, "stopped")
    assert result.exit_code == 1
    assert "--resume" in result.stderr
    assert train(place, "stopped", "--resume").exit_code == 0
    assert not (place / "stopped" / "checkpoints").exists()


def test_the_same_seed_trains_the_same_model(place: Path) -> None:
    weights = {}
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        assert train(place, name, "--seed", seed).exit_code == 0
        weights[name] = (place / name / "model.safetensors").read_bytes()
    assert weights["one"] == weights["same"] != weights["other"]


def test_a_fine_tuned_model_gets_exits_and_keeps_its_answers(place: Path) -> None:
    names = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}  # not in the data's order
    torch.manual_seed(5)
    classifier = AutoModelForSequenceClassification.from_config(encoder_config("electra", **names)).eval()
    classifier.save_pretrained(place / "fine-tuned")
    tiny_tokenizer().save_pretrained(place / "fine-tuned")
    result = train(place, "kept", "--backbone", place / "fine-tuned", "--objective", "two-stage", "--freeze")
    assert result.exit_code == 0, result.output
    model = MultiExitModel.from_pretrained(place / "kept")
    assert model.config.id2label == names["id2label"]
    batch = padded(model, text_rows(8))
    assert torch.equal(model(**batch).logits, classifier(**batch).logits)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--freeze",), 2, "Error: --freeze goes with --objective self-distillation or two-stage, not with weighted"),
        (("--freeze", "--lexical"), 2, " has no exits yet, and --freeze goes with --objective self-distillation or "),
        (("--objective", "two-stage", "--freeze"), 1, "--freeze keeps a fine-tuned classifier's head, and there is "),
        (("--objective", "two-stage", "--memory", 0.9), 1, "TwoStage freezes the last exit, and memory"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(place: Path, more: tuple[Any, ...], code: int, said: str) -> None:
    result = train(place, "frozen", *more)
    assert result.exit_code == code
    assert said in result.output.splitlines()[-1]
    assert "Traceback" not in result.output
    assert not (place / "frozen").exists()


def test_exits_may_have_a_gate_a_bypass_and_a_memory(place: Path) -> None:
    more = ("--certainty", "--bypass-rank", 4, "--memory", 0.9, "--head", "attention", "--token-exit", "1:0.5,3:0.8")
    assert train(place, "rich", *more).exit_code == 0
    config = MultiExitModel.from_pretrained(place / "rich").config
    assert (config.certainty, config.bypass["rank"], config.memory, config.head) == (True, 4, 0.9, "attention")
    assert (
        offramp("record", place / "rich", "--data", place / "validation.jsonl", "-o", place / "rich.st").exit_code == 0
    )
    assert Trace.load(place / "rich.st").certainty.shape == (1 + LAYERS, 48)
    facts = json.loads(offramp("info", place / "rich", "--json").stdout)
    assert (facts["certainty"], facts["bypass"]["rank"], facts["memory"]) == (True, 4, 0.9)
    assert facts["token_exit"]["keep_ratio"] == {"1": 0.5, "3": 0.8}
    data = ("--data", place / "validation.jsonl", "--speedup", 1.2)
    assert offramp("calibrate", place / "rich", *data, "--policy", "certainty").exit_code == 0


def test_numbers_are_a_regression_when_asked(place: Path) -> None:
    result = train(place, "regression", "--task", "regression", "--label-column", "words", "--exit-layers", "2,4")
    assert result.exit_code == 0, result.output
    assert "pearson of every exit, on 48 rows" in result.stdout
    assert "consistency fitted on 24 rows, the threshold chosen on the other 24" in result.stderr
    answers = offramp("predict", place / "regression", given="the cat\n").stdout
    assert set(json.loads(answers)) == {"value", "exit_layer"}


def test_training_keeps_the_first_layers_when_asked(place: Path) -> None:
    assert train(place, "short", "--layers", 2).exit_code == 0
    config = json.loads((place / "short" / "config.json").read_text())
    assert config["backbone"]["num_hidden_layers"] == 2
    assert config["exit_layers"] == [1, 2]
    both = train(place, "both", "--layers", 2, "--objective", "two-stage", "--freeze")
    assert both.exit_code == 2
    assert "choose one" in both.output


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--layers", "5", "there is no layer 4: the encoder's layers are 0 to 3"),
        ("--exit-layers", "1,2", "exit_layers must rise from 1 or more to the last layer, 4; got [1, 2]"),
        ("--label-column", "stars", 'no column "stars"; the columns are "text", "label", "words"'),
    ],
)
def test_bad_training_input_is_one_line_and_exit_code_1(place: Path, option: str, value: str, said: str) -> None:
    result = train(place, "refused", option, value)
    assert result.exit_code == 1
    *guesses, error = result.stderr.strip().splitlines()
    assert said in error
    assert not any(line.startswith("Error") for line in guesses)
    assert not (place / "refused" / "config.json").exists()


@pytest.mark.parametrize("arguments", [("train",), ("calibrate", "model"), ("calibrate", "m", "--speedup", "0.5")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert offramp(*arguments).exit_code == 2


@pytest.mark.parametrize("target", [("--max-drop", 0), ("--max-drop", 1), ("--agreement", 1)])
def test_a_certificate_is_of_a_target_that_rows_can_show(place: Path, target: tuple[str, float]) -> None:
    data = ("--data", place / "validation.jsonl", "--confidence", 0.9)
    result = offramp("calibrate", place / "model", *target, *data)
    assert result.exit_code == 2
    assert "--confidence takes targets above 0 and below 1" in result.stderr


def test_a_name_that_is_no_folder_is_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = offramp("info", "no-such-model")
    assert result.exit_code == 1
    first, last = result.stderr.strip().splitlines()
    assert first == "no-such-model: there is no such folder, so it is looked up on the hub"
    assert last.startswith("Error: no-such-model: no model can be loaded from there (")
    assert last.endswith("; there is no folder of that name either")


@pytest.mark.parametrize("command", ["info", "predict", "evaluate", "record"])
def test_a_folder_without_a_model_is_one_line(command: str, tmp_path: Path) -> None:
    labelled(tmp_path / "x.jsonl", 3)
    options = {"evaluate": ("--data", tmp_path / "x.jsonl"), "record": ("--data", tmp_path / "x.jsonl", "-o", "t")}
    result = offramp(command, tmp_path, *options.get(command, ()))
    assert result.exit_code == 1
    assert "no model can be loaded from there" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_model_without_exits_is_refused_by_name(place: Path) -> None:
    result = offramp("info", place / "encoder")
    assert result.exit_code == 1
    assert "a bert model without exits" in result.stderr


def test_record_writes_a_trace_that_calibrate_and_evaluate_take(place: Path) -> None:
    trace = place / "trace.safetensors"
    data = ("--data", place / "validation.jsonl")
    assert offramp("record", place / "model", *data, "-o", trace).exit_code == 0
    assert Trace.load(trace).logits.shape == (1 + LAYERS, 48, 2)
    for source in (("--trace", trace), data):
        told = offramp("evaluate", place / "model", *source, "--json").stdout
        assert json.loads(told)["layerwise"] == json.loads((place / "told.json").read_text())["layerwise"]


def test_evaluate_compares_every_policy_beside_what_it_always_said(place: Path, tmp_path: Path) -> None:
    data = ("--data", place / "validation.jsonl")
    result = offramp("evaluate", place / "model", *data, "--picture", tmp_path / "policies.png")
    assert result.exit_code == 0, result.output
    exits, points, policies, recalls = result.stdout.split("\n\n")
    assert exits.startswith("accuracy of every exit, on 48 rows")
    assert points.startswith("operating point")
    assert policies.startswith("accuracy of every policy, on 24 rows")
    assert recalls.startswith("recall by class at 'default', worst loss first")
    assert (tmp_path / "policies.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(offramp("evaluate", place / "model", *data, "--json").stdout)
    assert {"metric", "layers", "layerwise", "points", "comparison", "recall", "notes", "exit_summary"} == set(told)
    assert {each["name"] for each in told["recall"]["slices"]} == {"good", "bad"}
    wanted = {*POLICIES, "margin, per exit"} - {"certainty", "stability"}
    assert set(told["comparison"]["policies"]) == wanted
    assert {line.split("  ")[0] for line in policies.splitlines()[3:]} == {*wanted, "oracle"}
    refused = offramp("evaluate", place / "model", *data, "--picture", tmp_path / "policies.xyz")
    assert refused.exit_code == 1
    assert "policies.xyz" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(("by", "names"), [("label", ["bad", "good"]), ("words", None), ("length", None)])
def test_evaluate_tells_slices_of_the_default_point(place: Path, by: str, names: list[str] | None) -> None:
    arguments = ("evaluate", place / "model", "--data", place / "validation.jsonl", "--slice-by", by)
    told = json.loads(offramp(*arguments, "--json").stdout)
    slices = told["slices"]["slices"]
    assert (told["slices"]["by"], told["slices"]["point"]) == (by, "default")
    assert sum(each["rows"] for each in slices) == 48
    right = sum(each["rows"] * each["score"] for each in slices)
    assert right / 48 == pytest.approx(told["points"]["default"]["measured"]["score"])
    if names is not None:
        assert [each["name"] for each in slices] == names
    shown = offramp(*arguments).stdout.split("\n\n")[-1].splitlines()
    assert [line.split("  ")[0] for line in shown[2:]] == [each["name"] for each in slices]


def test_evaluate_works_without_labels_and_says_what_a_trace_has_not(place: Path, tmp_path: Path) -> None:
    assert offramp("record", place / "model", "--data", place / "validation.jsonl", "-o", tmp_path / "t").exit_code == 0
    whole = Trace.load(tmp_path / "t")
    Trace(whole.logits, layers=whole.layers, tokens=whole.tokens).save(tmp_path / "bare")
    result = offramp("evaluate", place / "model", "--trace", tmp_path / "bare", "--slice-by", "length")
    assert result.exit_code == 0, result.output
    assert "agreement of every policy, on 24 rows" in result.stdout
    for by, said in (("words", "a trace has no columns; give --data"), ("label", "needs labels")):
        refused = offramp("evaluate", place / "model", "--trace", tmp_path / "bare", "--slice-by", by)
        assert refused.exit_code == 1
        assert said in refused.stderr.splitlines()[-1]
    whole.take(torch.tensor([0])).save(tmp_path / "one")
    assert "no policies to compare" in offramp("evaluate", place / "model", "--trace", tmp_path / "one").stdout
    save_folder(tmp_path / "model", tiny_model(num_labels=2, lexical=LexicalExit(buckets=61)))
    other = offramp("evaluate", tmp_path / "model", "--trace", tmp_path / "t")
    assert f"note: the trace was recorded with other weights than those in {tmp_path / 'model'}: no fi" in other.stderr
    refused = offramp("evaluate", tmp_path / "model", "--trace", tmp_path / "t", "--slice-by", "length")
    assert "no operating point 'default' to slice" in refused.stderr.splitlines()[-1]
    missing = ("--data", place / "validation.jsonl", "--slice-by", "site")
    refused = offramp("evaluate", place / "model", *missing)
    assert refused.stderr.splitlines()[-1].endswith('no column "site"; the columns are "text", "label", "words"')


def test_calibrate_saves_the_point_beside_the_others(place: Path) -> None:
    save_folder(place / "own", tiny_model(id2label={0: "bad", 1: "good"}))
    arguments = ("--data", place / "validation.jsonl", "--policy", "pcee", "--measure", "margin", "--patience", 2)
    for name, target in (("safe", ("--agreement", 1)), ("fast", ("--speedup", 1.5))):
        assert offramp("calibrate", place / "own", *arguments, *target, "--name", name).exit_code == 0
    points = json.loads((place / "own" / POINTS_FILE).read_text())["points"]
    assert set(points) == {"safe", "fast"}
    assert points["fast"]["policy"] == {"name": "pcee", "measure": "margin", "patience": 2}
    assert points["fast"]["measured"]["mean_exit"] <= 4 / 1.5
    assert points["safe"]["measured"]["agreement"] == 1
    card = (place / "own" / "README.md").read_text()
    assert card.count("## Operating points") == 1
    assert "| safe | pcee | accuracy" in card
    assert "| fast | pcee | accuracy" in card
    shown = offramp("info", place / "own").stdout
    assert "pcee measure=margin patience=2" in shown


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            ("--divergence", "js", "--patience", 2, "--window", "consecutive"),
            {"name": "divergence", "divergence": "js", "patience": 2, "window": "consecutive"},
        ),
        (("--ensemble", "run"), {"name": "divergence", **vars(Divergence()), "ensemble": "run"}),
    ],
)
def test_calibrate_takes_the_parameters_of_a_policy(
    options: tuple[Any, ...], wanted: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    folder = save_folder(tmp_path / "model", tiny_model(id2label={0: "bad", 1: "good"}))
    policy = ("--policy", "divergence", *options)
    data = ("--data", place / "validation.jsonl", "--speedup", 1.2)
    assert offramp("calibrate", folder, *data, *policy).exit_code == 0
    assert json.loads((folder / POINTS_FILE).read_text())["points"]["default"]["policy"] == wanted
    answers = offramp("predict", folder, given="a good cat\nthe dog\n").stdout.splitlines()
    assert [set(json.loads(answer)) for answer in answers] == [{"label", "score", "exit_layer"}] * 2


def test_calibrate_refuses_a_parameter_of_another_policy(place: Path) -> None:
    data = ("--data", place / "validation.jsonl", "--speedup", 1)
    result = offramp("calibrate", place / "model", *data, "--policy", "entropy", "--window", "all")
    assert result.exit_code == 1
    assert "'entropy' has no parameter 'window'" in result.stderr
    assert offramp("calibrate", place / "model", *data, "--ensemble", "both").exit_code == 2


def test_calibrate_refuses_another_models_trace(place: Path) -> None:
    Trace(torch.randn(3, 20, 2)).save(place / "other.safetensors")
    result = offramp("calibrate", place / "model", "--trace", place / "other.safetensors", "--speedup", 1)
    assert result.exit_code == 1
    assert "other.safetensors has exits at layers 1, 2, 3, the model at layers 0 (lexical), 1, 2, 3, 4" in result.stderr


def test_a_trace_of_another_kind_of_model_is_refused(place: Path, tmp_path: Path) -> None:
    refusals = {
        "labels": (Trace(torch.randn(4, 20, 2), torch.ones(20, 2)), "is of a multi_label_classification, the model of"),
        "values": (Trace(torch.randn(4, 20, 2), problem_type="regression"), "is of a regression, the model of"),
        "layers": (Trace(torch.randn(4, 20, 2), layers=torch.tensor([2, 4, 6, 8])), "has exits at layers 2, 4, 6"),
    }
    before = (place / "model" / POINTS_FILE).read_text()
    for name, (trace, said) in refusals.items():
        trace.save(tmp_path / name)
        for command in (("evaluate",), ("calibrate", "--speedup", 1)):
            refused = offramp(command[0], place / "model", "--trace", tmp_path / name, *command[1:])
            assert refused.exit_code == 1
            assert said in refused.stderr.splitlines()[-1]
    assert (place / "model" / POINTS_FILE).read_text() == before


def test_calibrate_saves_nothing_beside_a_model_without_exits(place: Path) -> None:
    Trace(torch.randn(3, 20, 2)).save(place / "other.safetensors")
    result = offramp("calibrate", place / "encoder", "--trace", place / "other.safetensors", "--speedup", 1)
    assert result.exit_code == 1
    assert "a bert model without exits" in result.stderr
    assert not (place / "encoder" / POINTS_FILE).exists()


def test_calibrate_says_what_is_the_best_there_is(place: Path) -> None:
    result = offramp("calibrate", place / "model", "--data", place / "validation.jsonl", "--speedup", 1e9)
    assert result.exit_code == 1
    assert "the best is " in result.stderr


def test_predict_answers_a_file_line_by_line_in_order(place: Path) -> None:
    lines = texts(70, seed=3)
    (place / "texts.txt").write_text("\n".join(lines) + "\n")
    result = offramp("predict", place / "model", place / "texts.txt", "-o", place / "answers.jsonl", "--batch-size", 4)
    assert result.exit_code == 0
    assert result.stdout == ""
    answers = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    wanted = Predictor.load(place / "model")(lines)
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in wanted]
    assert [answer["exit_layer"] for answer in answers] == [answer["exit_layer"] for answer in wanted]


def test_predict_at_full_depth_uses_every_layer(place: Path) -> None:
    answers = offramp("predict", place / "model", "--operating-point", "full", given="a good cat\nthe dog\n").stdout
    assert [json.loads(line)["exit_layer"] for line in answers.splitlines()] == [4, 4]


def test_predict_that_a_bad_line_stops_leaves_no_file(place: Path) -> None:
    rows = [json.dumps({"text": "the cat"})] * 1024 + ["{"]
    (place / "broken.jsonl").write_text("\n".join(rows))
    result = offramp("predict", place / "model", place / "broken.jsonl", "-o", place / "out.jsonl", "--strict")
    assert result.exit_code == 1
    assert "broken.jsonl, line 1025" in result.stderr
    assert not list(place.glob("*out.jsonl*"))


def test_an_output_is_refused_before_the_model_is_loaded(place: Path) -> None:
    (place / "in.txt").write_text("the cat\n")
    for arguments, reason in (
        (("predict", "no-model", place / "in.txt", "-o", place / "in.txt"), "an input of this command"),
        (("predict", "no-model", "-o", place / "no" / "out"), "there is no folder"),
        (("record", place / "model", "--data", "x", "-o", place / "model" / "config.json"), "an input of this command"),
        (("report", place / "model", "--data", place / "in.txt", "-o", place / "in.txt"), "an input of this command"),
        (("evaluate", "no-model", "--data", place / "in.txt", "--picture", place / "in.txt"), "an input"),
    ):
        result = offramp(*arguments)
        assert result.exit_code == 1
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 1


# Graphs.


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A model's folder with both of its graphs."""
    return copied(exported, tmp_path / "model")


def bare(folder: Path) -> Path:
    """The same folder without them."""
    for file in folder.glob("*.onnx*"):
        file.unlink()
    return folder


def classes(path: Path, count: int = 40) -> Path:
    rows = [{"text": text, "label": ("bad", "fine", "good")[len(text) % 3]} for text in texts(count, seed=8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_export_writes_a_file_and_says_what_was_found(folder: Path) -> None:
    result = offramp("export", bare(folder))
    assert result.exit_code == 0, result.output
    first, second, third, fourth = result.stdout.splitlines()
    size = sum(file.stat().st_size for file in folder.glob("model.onnx*")) / 1e6
    assert first.startswith(f"{folder / 'model.onnx'}: {size:.1f} MB in ")
    assert second == "runs entropy; holds entropy, margin"
    assert third == "holds the exits at layers 1, 2, 3, 4"
    assert "rows at full depth against torch: 100.00% of the answers the same, logits at most" in fourth
    assert OnnxSession.load(folder / "model.onnx").metadata.precision == "float32"
    assert not (folder / "model.int8.onnx").exists()


def test_export_in_8_bits_with_data_tells_the_scores(folder: Path, tmp_path: Path) -> None:
    result = offramp("export", bare(folder), "--int8", "--data", classes(tmp_path / "data.jsonl"))
    assert result.exit_code == 0, result.output
    *_, third, last = result.stdout.splitlines()
    assert third.startswith("40 rows at full depth against torch: ")
    assert last.startswith("accuracy 0.")
    assert ", torch 0." in last
    assert OnnxSession.load(folder / "model.int8.onnx").metadata.precision == "int8"
    assert not (folder / "model.onnx").exists()


def test_export_tells_machines_the_same(folder: Path, tmp_path: Path) -> None:
    result = offramp("export", bare(folder), "--data", classes(tmp_path / "data.jsonl"), "--policy", "margin", "--json")
    told = json.loads(result.stdout)
    assert told["path"] == str(folder / "model.onnx")
    assert (told["engine"], told["policy"]) == ("onnx-float32", {"name": "margin"})
    assert (told["rows"], told["agreement"], told["metric"]) == (40, 1.0, "accuracy")
    assert told["score"] == told["torch_score"]
    assert told["difference"] < 1e-4
    assert told["bytes"] == sum(file.stat().st_size for file in folder.glob("model.onnx*"))
    assert {"name": "entropy"} in told["policies"]
    assert (told["layers"], told["left_out"]) == ([1, 2, 3, 4], [])


def test_another_policy_of_a_file_that_is_there_is_no_export(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.inference.export.export", None)
    path, other = folder / "model.onnx", (folder / "model.int8.onnx").read_bytes()
    result = offramp("export", folder, "--policy", "pcee", "--patience", 2)
    assert result.stdout == f"{path} runs pcee (measure entropy, patience 2) now\n"
    assert OnnxSession.load(path).metadata.policy == {"name": "pcee", "measure": "entropy", "patience": 2}
    assert (folder / "model.int8.onnx").read_bytes() == other
    result = offramp("export", folder, "--policy", "margin", "--int8", "--json")
    assert json.loads(result.stdout) == {"path": str(folder / "model.int8.onnx"), "policy": {"name": "margin"}}
    assert OnnxSession.load(folder / "model.int8.onnx").metadata.policy == {"name": "margin"}


def test_a_policy_that_the_file_does_not_hold_is_exported(folder: Path) -> None:
    result = offramp("export", folder, "--policy", "pcee", "--patience", 3)
    assert result.exit_code == 0, result.output
    assert "runs pcee (measure entropy, patience 3); holds" in result.stdout
    assert OnnxSession.load(folder / "model.onnx").metadata.policy["patience"] == 3


def test_other_weights_are_exported_anew(folder: Path) -> None:
    before = OnnxSession.load(folder / "model.onnx").metadata
    tiny_model(id2label={0: "bad", 1: "fine", 2: "good"}, exit_layers=[4], pooling="mean", seed=5).save_pretrained(
        folder
    )
    assert not (folder / POINTS_FILE).exists()
    assert offramp("export", folder, "--policy", "margin").exit_code == 0
    after = OnnxSession.load(folder / "model.onnx").metadata
    assert (before.layers, after.layers) == ((1, 2, 3, 4), (4,))
    assert after.model == weights_digest(folder)


def test_export_refuses_what_makes_no_sense(folder: Path) -> None:
    assert offramp("export", folder, "--patience", 2).exit_code == 2
    assert offramp("export", folder, "--policy", "nobody").exit_code == 2
    result = offramp("export", folder, "--policy", "stability")
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (1, 1)
    result = offramp("export", folder, "--policy", "entropy", "--patience", 2)
    assert result.exit_code == 1
    assert "'entropy' has no parameter 'patience'" in result.stderr
    assert OnnxSession.load(folder / "model.onnx").metadata.policy == {"name": "entropy"}


@pytest.mark.parametrize("absent", ["onnx", "onnxruntime", "onnxscript"])
def test_without_its_packages_export_says_how_to_get_them(
    absent: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.cli.export.find_spec", lambda name: None if name == absent else name)
    result = offramp("export", folder)
    assert result.exit_code == 1
    assert result.stderr == f"Error: export needs {absent}: pip install 'offramp[onnx]'\n"


def test_predict_answers_with_the_engine_that_is_asked_for(folder: Path) -> None:
    given = "\n".join(texts(30, seed=5)) + "\n"
    told = {
        engine: offramp("predict", folder, "--engine", engine, given=given).stdout.splitlines()
        for engine in ("torch", "onnx", "onnx-int8", "auto")
    }
    assert told["auto"] == told["onnx"] != told["onnx-int8"]
    for lines in zip(told["onnx"], told["torch"], strict=True):
        one, other = map(json.loads, lines)
        assert (one["label"], one["exit_layer"]) == (other["label"], other["exit_layer"])


def test_predict_with_a_graph_that_is_missing_is_one_line(folder: Path) -> None:
    result = offramp("predict", bare(folder), "--engine", "onnx-int8", given="the cat\n")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {folder}: no model.int8.onnx; `offramp export {folder} --int8` makes it\n"
    assert result.stdout == ""


def test_record_calibrate_and_evaluate_take_an_engine(folder: Path, tmp_path: Path) -> None:
    data = ("--data", classes(tmp_path / "data.jsonl"))
    for engine, name in (("torch", "torch-float32"), ("onnx", "onnx-float32"), ("onnx-int8", "onnx-int8")):
        trace = tmp_path / f"{engine}.safetensors"
        assert offramp("record", folder, *data, "-o", trace, "--engine", engine).exit_code == 0
        about = Trace.load(trace).provenance
        assert (about["engine"], about["data"]) == (name, "data.jsonl")
        result = offramp("calibrate", folder, *data, "--agreement", 0.9, "--engine", engine, "--policy", "entropy")
        assert result.exit_code == 0, result.output
        points = json.loads((folder / POINTS_FILE).read_text())["points"]
        assert points["default"]["measured"]["about"]["engine"] == name
        scores = json.loads(offramp("evaluate", folder, *data, "--engine", engine, "--json").stdout)
        assert scores == json.loads(offramp("evaluate", folder, "--trace", trace, "--json").stdout)
    assert Predictor.load(folder).engine.name == "onnx-int8"  # what the point was measured with


def test_calibrate_names_the_command_where_the_graph_does_not_run_the_new_policy(folder: Path, tmp_path: Path) -> None:
    asked = ("--data", classes(tmp_path / "data.jsonl"), "--agreement", 0.9, "--engine", "onnx", "--policy")
    assert "cannot run it yet" not in offramp("calibrate", folder, *asked, "entropy").stderr
    lines = {
        "margin": "`offramp export FOLDER --policy margin` lets the graph run it",
        "patience": "the file does not hold its steps: save the point, and `offramp export FOLDER` writes them",
    }
    for policy, words in lines.items():
        result = offramp("calibrate", folder, *asked, policy)
        assert result.exit_code == 0, result.output
        (line,) = [each for each in result.stderr.splitlines() if "cannot run it yet" in each]
        assert line.startswith("onnx cannot run it yet: the graph runs the policy entropy, ")
        assert line.endswith(words)


def test_report_writes_one_page_and_says_the_decision(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("altair", reason="the page's charts need offramp[report]")
    page = tmp_path / "report.html"
    asked = ("report", place / "model", "--data", place / "validation.jsonl", "-o", page)
    told = json.loads(offramp(*asked, "--json").stdout)
    assert told["page"] == str(page)
    html = page.read_text(encoding="utf-8")
    assert told["decision"]["headline"] in html
    assert "ms where all layers take" in html
    specs = json.loads(re.findall(r'id="charts">(.*?)</script>', html, re.DOTALL)[0])["charts"]
    assert {f"reliability-{layer}" for layer in range(1, LAYERS + 1)} | {"times", "similarity"} <= set(specs)
    assert [point["layer"] for point in specs["similarity"]["layer"][0]["data"]["values"]] == [
        "embedding",
        *map(str, range(1, LAYERS + 1)),
    ]
    assert weights_digest(place / "model") in html
    page.unlink()
    result = offramp(*asked, "--no-timing", "--operating-point", "slow")
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "no saved operating point 'slow'" in result.output
    assert offramp(*asked, "--no-timing").output.splitlines()[-1] == str(page)
    assert "Milliseconds were not measured" in page.read_text(encoding="utf-8")
