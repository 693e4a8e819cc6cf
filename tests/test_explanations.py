"""The explanation pages: their code runs as printed, and their figures are those of the files that they name."""

import doctest
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "explanation"
BLOCK = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["certificates", "policies"])
def test_the_code_of_a_page_prints_what_the_page_shows(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    assert blocks
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, f"{page}.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    assert runner.run(example, out=output.append).failed == 0, "".join(output)


def figures() -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / "docs_pictures.json").read_text(encoding="utf-8"))


def chance(rows: int, level: float, lost: int) -> float:
    """The chance of at most so many losses, by exact binomials."""
    return sum(math.comb(rows, count) * level**count * (1 - level) ** (rows - count) for count in range(lost + 1))


def test_the_table_of_rows_has_the_fewest_rows_that_certify() -> None:
    text = (PAGES / "certificates.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| lost among them |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    assert len(lines) == 6
    for lost, *cells in ([int(cell.replace(",", "")) for cell in line.strip("| ").split("|")] for line in lines):
        for level, rows in zip((0.01, 0.02, 0.05), cells, strict=True):
            assert chance(rows, level, lost) <= 0.05 < chance(rows - 1, level, lost)
            assert figures()["rows"][f"{level:g}"][str(lost)] == rows


def test_the_pictures_of_the_pages_exist_and_have_a_text() -> None:
    pages = [path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))]
    pictures = [match for page in pages for match in re.findall(r"!\[([^]]*)\]\(\.\./pictures/(\w+\.svg)\)", page)]
    assert {name for _, name in pictures} == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    assert all(len(text) > 40 for text, _ in pictures)


def test_the_figures_below_the_pictures_are_those_that_were_drawn() -> None:
    drawn, text = figures(), (PAGES / "certificates.md").read_text(encoding="utf-8")
    without, certified = drawn["draws"]["without"], drawn["draws"]["certified"]
    assert f"{100 * without['broken']:.0f} % lose more" in text
    assert f"{100 * certified['broken']:.0f} % do" in text
    assert f"{certified['mean_exit']:.2f} of 12 layers" in text
    assert f"in place of {without['mean_exit']:.2f}" in text
    sst2, policies = drawn["exits"]["SST-2"], (PAGES / "policies.md").read_text(encoding="utf-8")
    assert f"lost {100 * (1 - sst2['score'] / sst2['full_score']):.1f} %" in " ".join(policies.split())
    assert f"CLINC150: {100 * drawn['exits']['CLINC150']['shares'][0]:.0f} % before the first layer" in policies
    assert not any(drawn["exits"]["SNLI"]["shares"][:6])


def test_each_figure_of_when_not_stands_in_a_file_that_its_paragraph_links_to() -> None:
    text = re.sub(r"`[^`]*`", "", (PAGES / "when-not.md").read_text(encoding="utf-8"))
    checked = 0
    for paragraph in text.split("\n\n"):
        targets = [(PAGES / target).resolve() for target in re.findall(r"\(([\w./-]+\.(?:md|json))\)", paragraph)]
        linked = " ".join(path.read_text(encoding="utf-8") for path in targets if path.parent != PAGES)
        for figure in re.findall(r"\d+\.\d+", paragraph):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", linked), (figure, paragraph)
            checked += 1
    assert checked > 30
