"""The pages of docs/: what they name exists, links lead somewhere on disk, and no page is left out of the site."""

import re
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from offramp.policies.registry import POLICIES
from offramp.training.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parent.parent
TOP = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")]
RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.md"))
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
ROOT_PAGE = ROOT / "docs" / "index.md"
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


@cache
def tokens(page: Path) -> list[Token]:
    """The page's blocks, and after each block its inline parts."""
    blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text(encoding="utf-8"))
    return [token for block in blocks for token in (block, *(block.children or ()))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give the headings of a page."""
    pairs = pairwise(tokens(page))
    texts = [token.content for previous, token in pairs if previous.type == "heading_open"]
    plain = [re.sub(r"[`*]|\]\([^)]*\)", "", text).lower() for text in texts]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in plain}


def links(page: Path) -> list[str]:
    targets = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens(page)]
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)]


def broken(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    return not path.exists() or bool(anchor and path.suffix == ".md" and anchor not in anchors(path))


@pytest.mark.parametrize("page", [*TOP, *PAGES, *RESULTS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_leads_to_a_file_and_a_heading_on_disk(page: Path) -> None:
    assert [target for target in links(page) if broken(page, target)] == []


def listed(page: Path) -> set[Path]:
    """The pages in the tables of contents of a page."""
    trees = [token.content for token in tokens(page) if token.type == "fence" and token.info == "{toctree}"]
    entries = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    return {match.resolve() for entry in entries for match in page.parent.glob(f"{entry}.*")}


def test_every_page_is_in_a_table_of_contents() -> None:
    contents = set().union(*map(listed, PAGES))
    assert [page for page in PAGES if page not in contents | {ROOT_PAGE}] == []
