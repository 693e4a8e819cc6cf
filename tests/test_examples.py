"""Every public name has an example in its docstring, and it runs.

An example may use `offramp`, `torch`, a tiny `model` with three classes and four layers, `rows` (its input, tokenized),
`folder` (the same model saved with its tokenizer and an operating point called "default"), `texts`, `trace` (100
labelled rows, four exits, three classes), and `reranker` (a folder of a model with two classes). The current directory
is a temporary one.
"""

import doctest
import inspect
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

import offramp
from offramp.types.operating_point import OperatingPoint, write_points
from support.models import balanced, save_folder, text_rows, texts, tiny_model
from support.traces import random_trace

NAMES = {0: "bad", 1: "fine", 2: "good"}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an example may use."""
    model = balanced(tiny_model(id2label=NAMES, pooling="mean"))
    folder = save_folder(tmp_path_factory.mktemp("examples") / "model", model)
    write_points({"default": OperatingPoint({"name": "entropy"}, (0.05, 0.06, 0.07))}, folder / "operating_points.json")
    reranker = save_folder(tmp_path_factory.mktemp("examples") / "reranker", tiny_model(num_labels=2))
    trace = random_trace("single_label_classification", depth=4, samples=100)
    rows = text_rows(20)
    return {
        "offramp": offramp,
        "torch": torch,
        "model": model,
        "rows": rows,
        "folder": str(folder),
        "reranker": str(reranker),
        "texts": texts(4),
        "trace": trace,
    }


def example_of(name: str) -> str:
    """The section `Example:` of a public name's own docstring."""
    docstring = inspect.cleandoc(attrgetter(name)(offramp).__doc__ or "")
    _, _, section = docstring.partition("\nExample:\n")
    return inspect.cleandoc("\n" + section)


@pytest.mark.parametrize("name", [*offramp.__all__, "Predictor.rank"])
def test_the_example_of_a_public_name_runs(
    name: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = example_of(name)
    assert ">>> " in section, f"offramp.{name} has no Example: in its docstring"
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    test = doctest.DocTestParser().get_doctest(section, dict(names), name, None, 0)
    report: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.DocTestRunner(verbose=False, optionflags=flags).run(test, out=report.append)
    assert not results.failed, "".join(report)
