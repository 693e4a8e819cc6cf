"""The commands and the code of the documentation exist and run: docs/, README.md, CONTRIBUTING.md.

A Python block whose first line is a comment with a file's name is saved under that name; the others of a page run in
turn, in one namespace, in a folder with what the pages presume: `model` (a tiny model with graphs), `offramp-demo`,
`my-classifier`, `checkpoint` (of DeeBERT's script) and csv files.
"""

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.cli.main import COMMANDS
from offramp.model.backbones.bert import FAMILIES
from offramp.model.backbones.registry import BACKBONES
from offramp.policies.registry import POLICIES
from offramp.registry import load
from offramp.types.operating_point import write_points
from support.graphs import NAMES, copied
from support.models import LAYERS, WIDTH, save_folder, texts, tiny_classifier, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parent.parent
GUIDES = [*sorted((ROOT / "docs" / "how-to").glob("*.md")), ROOT / "docs" / "tutorial.md"]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCED = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:^|(?<=[\s|&;(]))offramp ([a-z]\S*)((?:\\\n|[^|>&;#\n])*)", re.MULTILINE)
SAVED = re.compile(r"# ([\w/]+\.py)\n")
SPARK_AND_DASK = ROOT / "docs" / "how-to" / "spark-and-dask.md"


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [code for name, code in FENCED.findall(page.read_text(encoding="utf-8")) if name == language]


def commands(page: Path) -> list[tuple[str, str]]:
    """Return the calls of `offramp` in a page's code, each as its command and its arguments."""
    text = page.read_text(encoding="utf-8")
    code = [block for _, block in FENCED.findall(text)]
    prose = FENCED.sub("", text)
    code += INDENTED.findall(prose) + SPAN.findall(prose)
    return [found for part in code for found in COMMAND.findall(part)]


def faults(command: str, arguments: str) -> list[str]:
    """Return the options of a call that the command does not have, and the values that they do not take."""
    if command not in COMMANDS:
        return [f"no command {command}"]
    options = {
        name: option
        for option in load(COMMANDS, command).params
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts, "-h", "--help")
    }
    words, wrong = shlex.split(arguments.replace("\\\n", " ").replace("'", "")), []
    for word, following in pairwise([*words, ""]):
        if not re.match(r"--?[a-z]", word):
            continue
        name, _, value = word.partition("=")
        if name not in options:
            wrong.append(f"{command} has no {name}")
        elif isinstance(kind := options[name].type, click.Choice) and (value or following) not in kind.choices:
            wrong.append(f"{command} {name} does not take {value or following}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_have_the_options_that_it_names(page: Path) -> None:
    wrong = [fault for command, arguments in commands(page) for fault in faults(command, arguments)]
    assert wrong == []


def test_the_commands_are_found() -> None:
    assert len([found for page in PAGES for found in commands(page)]) > 60
    assert faults("predict", "model --lexicla x.txt") == ["predict has no --lexicla"]
    assert faults("export", "model --policy entropie") == ["export --policy does not take entropie"]
    assert faults("servve", "model") == ["no command servve"]


@torch.no_grad()
def paper_checkpoint(folder: Path, batch: dict[str, Tensor], pabee: bool = False) -> Tensor:
    """Write a checkpoint as the script of DeeBERT, or of PABEE, names its weights; return the logits (L, B, 3)."""
    classifier = tiny_classifier("bert", num_labels=3)
    poolers = [classifier.bert.pooler.dense if pabee else nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    classifiers = [nn.Linear(WIDTH, 3) for _ in range(LAYERS)]
    modules = {
        f"classifiers.{exit}" if pabee else f"highway.{exit}.classifier": classifiers[exit] for exit in range(LAYERS)
    }
    if not pabee:
        modules |= {f"highway.{exit}.pooler.dense": poolers[exit] for exit in range(LAYERS)}
    weights = {
        name: value for name, value in classifier.state_dict().items() if not (pabee and name.startswith("class"))
    }
    for path, module in modules.items():
        prefix = path if pabee else f"bert.encoder.{path}"
        weights |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    if not pabee:
        poolers[-1], classifiers[-1] = classifier.bert.pooler.dense, classifier.classifier
    classifier.config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    states = classifier.bert(**batch, output_hidden_states=True).hidden_states[1:]
    parts = zip(poolers, classifiers, states, strict=True)
    return torch.stack([classify(pooler(state[:, 0]).tanh()) for pooler, classify, state in parts])


def run(page: Path, folder: Path) -> dict[str, Any]:
    """Run the Python of a page and return its names."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(blocks(page, "python")):
        program = compile(code, f"{page.name}, block {number}", "exec")
        if saved := SAVED.match(code):
            (folder / saved[1]).write_text(code, encoding="utf-8")
        else:
            exec(program, names)
    return names


@pytest.fixture
def presumed(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the pages presume, as the current one; tables that they write to are as before afterwards."""
    copied(exported, tmp_path / "model")
    for number, name in enumerate(("train", "validation", "test")):
        with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows((text, NAMES[len(text) % 3]) for text in texts(60, seed=number))
    paper_checkpoint(tmp_path / "checkpoint", {"input_ids": torch.tensor([[2, 3]])})
    tiny_classifier("bert", id2label=NAMES).save_pretrained(tmp_path / "my-classifier")
    tiny_tokenizer().save_pretrained(tmp_path / "my-classifier")
    intents = dict(enumerate(offramp.read_examples("helpdesk", split="test").label_names))
    save_folder(tmp_path / "offramp-demo", tiny_model(id2label=intents, pooling="mean"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for table in (POLICIES, BACKBONES, FAMILIES):
        for name in list(table):
            monkeypatch.setitem(table, name, table[name])
    before = [dict(table) for table in (POLICIES, BACKBONES, FAMILIES)]
    yield tmp_path
    for table, rows in zip((POLICIES, BACKBONES, FAMILIES), before, strict=True):
        for name in set(table) - set(rows):
            del table[name]
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_python_of_a_guide_runs(page: Path, presumed: Path) -> None:
    if page.stem == "ray-serve":
        pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'offramp[ray]'")
    assert run(page, presumed)


@pytest.mark.parametrize("pabee", [False, True], ids=["DeeBERT", "PABEE"])
def test_a_checkpoint_of_the_papers_scripts_keeps_all_its_answers(pabee: bool, presumed: Path) -> None:
    batch = {
        "input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1] * 3 + [0]]),
    }
    expected = paper_checkpoint(presumed / "checkpoint", batch, pabee)
    with torch.no_grad():
        found = run(ROOT / "docs/how-to/from-paper-scripts.md", presumed)["convert"]("checkpoint")(**batch).exit_logits
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_graph_without_offramp_answers_as_the_predictor_does(presumed: Path) -> None:
    rows = texts(20, seed=3)
    point = offramp.calibrate(offramp.record("model", rows, "onnx-int8"), "entropy", offramp.Target(speedup=1.5))
    write_points({"default": point}, presumed / "model" / "operating_points.json")
    answer = run(ROOT / "docs/how-to/export.md", presumed)["answer"]
    expected = offramp.Predictor.load("model", engine="onnx-int8")(rows)
    assert len({row["exit_layer"] for row in expected}) > 1
    assert answer(rows) == [(row["label"], row["exit_layer"]) for row in expected]


# Spark and Dask.

ANSWER_TYPES = {"label": "string", "score": "float64", "exit_layer": "Int32", "error": "string"}
SOME_MISSING: list[str | None] = [*texts(40, seed=5), None, "", *texts(3, seed=6), " "]


def predicted(rows: list[str | None]) -> list[dict[str, Any]]:
    """Return the predictor's own answers in the folder `model`; a missing text is a blank one."""
    return offramp.Predictor.load("model", engine="onnx-int8")([text or "" for text in rows])


def filled(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table without their missing cells."""
    return [{name: cell for name, cell in row.items() if not pd.isna(cell)} for row in table.to_dict("records")]


@pytest.fixture
def answers(presumed: Path) -> Any:
    """The module of the page, as a worker imports it."""
    run(SPARK_AND_DASK, presumed)
    return importlib.import_module("answers")


@pytest.mark.parametrize("dtype", [object, "str", "string", pd.ArrowDtype(pa.string())], ids=str)
def test_batches_of_pandas_are_answered_as_the_predictor_does_and_have_fixed_types(dtype: Any, answers: Any) -> None:
    batches = [SOME_MISSING[:30], [], SOME_MISSING[30:], [None, None], ["the cat"]]
    for batch in batches:
        index = [7, 7, *range(len(batch))][: len(batch)]  # as behind a union of tables: not unique
        found = answers.answer(pd.Series(batch, index, dtype), "model")
        assert {name: str(kind) for name, kind in found.dtypes.items()} == ANSWER_TYPES
        assert list(found.index) == index
        assert filled(found) == predicted(batch)
    assert [sum("error" in row for row in predicted(batch)) for batch in batches] == [0, 0, 3, 2, 0]


def test_the_model_of_a_worker_is_loaded_once(answers: Any) -> None:
    assert answers.load("model") is answers.load("model")
    assert answers.load("model").workers == answers.load("model").engine.graph.threads == 1


def test_answers_are_added_to_a_table_beside_its_own_columns(answers: Any) -> None:
    table = pd.DataFrame({"id": range(len(SOME_MISSING)), "text": SOME_MISSING, "label": "of the table"})
    found = answers.add_answers(table, "model")
    assert list(found) == ["id", "text", "label", "score", "exit_layer", "error"]
    assert list(found["id"]) == list(table["id"])
    assert filled(found[list(ANSWER_TYPES)]) == predicted(SOME_MISSING)


def test_a_column_of_numbers_is_refused_in_the_words_of_the_page(answers: Any) -> None:
    with pytest.raises(offramp.InvalidInput) as error:
        answers.answer(pd.Series([7]), "model")
    assert str(error.value) in SPARK_AND_DASK.read_text(encoding="utf-8")


def output(program: str, folder: Path) -> Any:
    """Run a program of the page with a few lines more, which fill `found`, in a process of its own; return that."""
    run(SPARK_AND_DASK, folder)
    with open("test.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], *([text, "x"] for text in SOME_MISSING)])
    code = "\n".join([Path(program).read_text(encoding="utf-8"), MORE[program], "import json", SAVE])
    (folder / "whole.py").write_text(code, encoding="utf-8")
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    ended = subprocess.run([sys.executable, "whole.py"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


SAVE = """if __name__ == "__main__":
    with open("found.json", "w", encoding="utf-8") as file:
        json.dump(found, file)
"""
MORE = {
    "with_spark.py": """
import contextlib
import io


def rows(table):
    return [[row.text, row.answer.asDict()] for row in table.collect()]


def answer_tables(batches):
    return (answers.add_answers(batch, SparkFiles.get("model")) for batch in batches)


@pandas_udf(answers.SCHEMA)
def by_broadcast(texts: pd.Series) -> pd.DataFrame:
    answered = sent.value(texts.fillna(""))
    return pd.DataFrame(answered, columns=list(answers.TYPES)).astype(answers.TYPES)


@pandas_udf(answers.SCHEMA)
def by_pair(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.DataFrame]:
    for first, second in batches:
        answered = answers.load(SparkFiles.get("model"))(list(zip(first, second)))
        yield pd.DataFrame(answered, columns=list(answers.TYPES)).astype(answers.TYPES)


sent = spark.sparkContext.broadcast(answers.load("model"))
words = table.where("trim(text) != ''")
with contextlib.redirect_stdout(io.StringIO()) as plan:
    answered.where("answer.exit_layer < 3").explain()
found = {
    "column": rows(answered),
    "spread": rows(table.repartition(8).withColumn("answer", answer("text"))),
    "few": rows(table.where("text is null").withColumn("answer", answer("text"))),
    "none": rows(table.where("text = 'no such text'").withColumn("answer", answer("text"))),
    "broadcast": rows(table.withColumn("answer", by_broadcast("text"))),
    "tables": [row.asDict() for row in table.mapInPandas(answer_tables, "text string, " + answers.SCHEMA).collect()],
    "pairs": rows(words.withColumn("answer", by_pair("text", "text"))),
    "runs": plan.getvalue().count("ArrowEvalPython"),
}
spark.stop()
""",
    "with_dask.py": """
if __name__ == "__main__":
    answered = dask.dataframe.concat([answered, answered])  # its index is not unique
    found = {
        kind: answered.compute(scheduler=kind).astype(object).replace({float("nan"): None}).to_dict("split")
        for kind in ("threads", "processes")
    }
""",
}


@pytest.mark.slow
def test_the_page_answers_in_a_session_of_spark(presumed: Path) -> None:
    pytest.importorskip("pyspark", reason="needs pip install pyspark")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("needs Java")
    found = output("with_spark.py", presumed)
    expected = [[text or None, answer] for text, answer in zip(SOME_MISSING, predicted(SOME_MISSING), strict=True)]

    def present(rows: list[list[Any]]) -> list[list[Any]]:
        return [[text, {name: cell for name, cell in answer.items() if cell is not None}] for text, answer in rows]

    assert present(found["column"]) == present(found["broadcast"]) == expected
    assert sorted(present(found["spread"]), key=repr) == sorted(expected, key=repr)
    assert present(found["few"]) == [[None, {"error": "the text is blank"}]] * 2
    assert found["none"] == []
    assert present([[row.pop("text"), row] for row in found["tables"]]) == expected
    words = [text for text in SOME_MISSING if (text or "").strip()]
    pairs = offramp.Predictor.load("model", engine="onnx-int8")([(text, text) for text in words])
    assert present(found["pairs"]) == [list(row) for row in zip(words, pairs, strict=True)]
    assert found["runs"] == 1


@pytest.mark.slow
def test_the_page_answers_in_dask(presumed: Path) -> None:
    pytest.importorskip("dask.dataframe", reason="needs pip install 'dask[dataframe]'")
    for found in output("with_dask.py", presumed).values():
        assert found["columns"] == ["text", *ANSWER_TYPES]
        assert found["index"] == [*range(len(SOME_MISSING))] * 2
        answered = [dict(zip(ANSWER_TYPES, row[1:], strict=True)) for row in found["data"]]
        present = [{name: cell for name, cell in row.items() if cell is not None} for row in answered]
        assert present == predicted(SOME_MISSING) * 2
