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
    pages = [path.read_text(encoding="utf-8") for path in (*sorted(PAGES.glob("*.md")), ROOT / "docs" / "scaling.md")]
    pattern = re.compile(r"!\[([^]]*)\]\((?:\.\./)?pictures/(\w+\.svg)\)")
    pictures = [match for page in pages for match in pattern.findall(page)]
    assert {name for _, name in pictures} == {path.name for path in (ROOT / "docs" / "pictures").glob("*.svg")}
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


ROWS = [  # a file of results, the beginning of a line in it, the figures of that line on the page
    ("prices.md", "| sst2 | torch, 1 |", "13.637 4.230"),
    ("prices.md", "| sst2 | onnx-int8, 1 |", "4.103 1.202"),
    ("lexical.md", "| banking77 | 0.", "0.911"),
    ("lexical.md", "| ag_news | 0.", "0.885 0.891"),
    ("lexical.md", "| imdb | 0.", "0.878 0.841"),
    ("lexical.md", "| snli | 0.", "0.594 0.771"),
    ("lexical.md", "| snli | with |", "3.73 0.6"),
    ("lexical.md", "| snli | without |", "3.75"),
    ("speed.md", "| AG News | 1 |", "3.65"),
    ("speed.md", "| cascade as right as default |", "12.94"),
    ("speed.md", "| CLINC150 | 1 | onnx", "1.82 1.71 4.68"),
    ("speed.md", "| CLINC150 | 32 | onnx", "4.86 1.84 7.95"),
    ("speed.md", "| CLINC150 | 1 | 0.", "0.349 0.040 0.138 0.084 0.056"),
    ("speed_mpnet.md", "| CLINC150 | 1 | onnx", "10.59 20.16"),
    ("speed_mpnet.md", "| CLINC150 | 32 | onnx", "20.39 25.91"),
    ("sst2.md", "| mean | 0.", "0.805"),
    ("sst2.md", "| first | 0.", "0.545"),
    ("sst2.md", "| 1 | 75 % saved |", "4.00 3.73 3.42"),
    ("sst2.md", "| 32, as they come | lose", "2.25 2.11"),
    ("sst2.md", "| 32, sorted by length | lose", "2.25 1.84"),
    ("tokens.md", "| all stay | all |", "0.877"),
    ("tokens.md", "| mild | all |", "0.800"),
    ("serving_attack.md", "| at 2x | honest |", "2.71"),
    ("serving_attack.md", "| at 2x | slowed at 2x |", "5.35"),
]


def test_each_figure_of_when_not_stands_in_its_line_of_the_results() -> None:
    text = re.sub(r"`[^`]*`", "", (PAGES / "when-not.md").read_text(encoding="utf-8"))
    known = {"1.1", "3.4"}  # of docs/results.md
    for file, start, quoted in ROWS:
        lines = (ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8").splitlines()
        cells = [re.findall(r"\d+\.\d+", line) for line in lines if line.startswith(start)]
        assert any(set(quoted.split()) <= set(line) for line in cells), (file, start, quoted)
        known |= set(quoted.split())
    snli, sst2 = (figures()["exits"][task] for task in ("SNLI", "SST-2"))
    drawn = (*(snli["accuracy"][layer] for layer in (1, 4, 6, 12)), sst2["score"], sst2["full_score"])
    assert set(re.findall(r"\d+\.\d+", text)) == known | {f"{value:g}" for value in drawn}
