"""docs/papers.md names the code and the test of each mechanism, docs/architecture.md the files to open: they exist."""

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from offramp.policies.registry import POLICIES
from offramp.training.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parent.parent
OURS = {"margin"}  # not from a paper


def rows() -> list[tuple[str, str]]:
    """The last two cells of every row of every table: code and test."""
    lines = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [(row[-2].strip("`"), row[-1].strip("`")) for row in cells if row[-1].startswith("`")]


def test_there_are_tables() -> None:
    assert len(rows()) > 25


@pytest.fixture
def modules() -> dict[str, ModuleType]:
    """The modules that the tables name, by their path; a fixture, because to import them all takes seconds."""
    paths = {code.partition(":")[0] for code, _ in rows()}
    return {path: import_module("offramp." + path.removesuffix(".py").replace("/", ".")) for path in paths}


def test_the_code_is_where_the_table_says(modules: dict[str, ModuleType]) -> None:
    for code, _ in rows():
        path, _, name = code.partition(":")
        assert (ROOT / "src" / "offramp" / path).is_file(), code
        module = modules[path]
        assert getattr(module, name).__module__ == module.__name__, code


def test_the_test_is_where_the_table_says() -> None:
    for _, test in rows():
        path, _, name = test.partition("::")
        source = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), test


@pytest.mark.parametrize("table", [POLICIES, OBJECTIVES], ids=["policies", "objectives"])
def test_every_policy_and_objective_of_a_paper_has_a_row(table: dict[str, str]) -> None:
    told = {f"offramp.{code.replace('.py', '').replace('/', '.')}" for code, _ in rows()}
    assert {name for name, place in table.items() if place not in told} <= OURS


def test_the_map_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`([\w/]+\.py)`", text))
    assert len(paths) > 25
    assert [path for path in paths if not any((top / path).is_file() for top in (ROOT, ROOT / "src/offramp"))] == []
