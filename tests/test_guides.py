"""The commands and the code of the documentation exist and run: docs/, README.md, CONTRIBUTING.md.

A Python block whose first line is a comment with a file's name is saved under that name; the others of a page run in
turn, in one namespace, in a folder with what the pages presume: `model` (a tiny model with graphs), `offramp-demo`,
`my-classifier`, `checkpoint` (of DeeBERT's script) and csv files.
"""

import csv
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
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
