"""docs/claims.md and the pages that quote it say what benchmarks/results/claims.json holds; its statistics."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from offramp.evaluation.metrics import METRICS, score
from offramp.studies.selection import EvaluationSplit
from offramp.studies.spec import SpeedupBetween
from offramp.types.outputs import ExitOutput
from offramp.types.trace import Trace

ROOT = Path(__file__).parent.parent
SCRIPT = re.compile(r"python (benchmarks/\w+\.py)")


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    """The module that writes the pages."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield import_module("claims_page")
    sys.path.pop(0)


@pytest.fixture(scope="module")
def measure(pages: ModuleType) -> ModuleType:
    """The module with the statistics."""
    return import_module("claims_measure")


def test_the_page_is_the_result_and_every_line_has_its_source(pages: ModuleType) -> None:
    made = pages.load()
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page(made), "run python benchmarks/claims.py --pages"
    for row in made["rows"]:
        script = SCRIPT.match(row["command"])
        assert script is not None, row["name"]
        assert (ROOT / script[1]).is_file(), row["name"]
        assert (ROOT / row["file"]).is_file(), row["name"]
        assert row["verdict"] == pages.verdict(row), row["name"]
        assert row["value"] is not None or row["verdict"] == pages.OPEN, row["name"]


def test_figures_and_verdicts_that_other_pages_quote_are_those_of_the_lines(pages: ModuleType) -> None:
    rows = {row["name"]: row for row in pages.load()["rows"]}
    for file in pages.QUOTING:
        text = file.read_text(encoding="utf-8")
        wrong = [(quote, name) for quote, name in pages.quotes(text) if quote not in pages.quotable(rows[name])]
        assert wrong == [], f"{file.name}: run python benchmarks/claims.py --pages, and correct the sentences"
        assert re.findall(r"[-+]\d+\.\d+|\d points", pages.QUOTE.sub("", text)) == [], (
            f"{file.name}: figures that quote no line"
        )


def test_a_quoted_figure_is_renewed_in_its_own_form(pages: ModuleType) -> None:
    rule = {"kind": "above", "bound": 0.0}
    row = {"value": -1.5, "low": -2.0, "high": -1.0, "unit": "points", "rule": rule, "seeds": []}
    old = "loses [+9.00 points](claims.md#x-1), [+9.00 (+1 to +2)](claims.md#x-1): [does not hold](claims.md#x-1)"
    new = "loses [-1.50 points](claims.md#x-1), [-1.50 (-2.00 to -1.00)](claims.md#x-1): [does not hold](claims.md#x-1)"
    assert pages.refreshed(old, {"x-1": row}) == new
    assert pages.quotable(row) >= {"-1.50 points", "-1.50", "-1.50 (-2.00 to -1.00)", "does not hold"}


def test_seeds_that_differ_leave_a_claim_open(pages: ModuleType) -> None:
    row = {"low": 0.1, "high": 2.0, "rule": {"kind": "above", "bound": 0.0}, "seeds": [4.4, 0.2]}
    assert (pages.verdict(row), pages.verdict({**row, "seeds": [4.4, -0.2]})) == ("holds", "cannot be said")


@pytest.mark.parametrize(
    ("kind", "bound", "low", "high", "verdict"),
    [
        ("above", 0.0, 0.1, 2.0, "holds"),
        ("above", 0.0, 0.0, 2.0, "cannot be said"),
        ("above", 0.0, -2.0, -0.1, "does not hold"),
        ("below", 0.0, -2.0, -0.1, "holds"),
        ("below", 0.0, 0.1, 2.0, "does not hold"),
        ("at least", -1.0, -0.9, 5.0, "holds"),
        ("at least", -1.0, -3.0, -1.1, "does not hold"),
        ("at least", -1.0, -3.0, 0.0, "cannot be said"),
        ("at most", 1.05, 0.9, 1.01, "holds"),
        ("at most", 1.05, 1.06, 1.2, "does not hold"),
        ("within", 1.0, -0.9, 0.9, "holds"),
        ("within", 1.0, -0.9, 1.1, "cannot be said"),
        ("within", 1.0, 1.1, 2.0, "does not hold"),
    ],
)
def test_a_claim_holds_where_its_whole_interval_meets_the_condition(
    pages: ModuleType, kind: str, bound: float, low: float, high: float, verdict: str
) -> None:
    rule = pages.Rule(kind, bound)
    assert (rule.verdict(low, high), rule.verdict(None, None)) == (verdict, "cannot be said")


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson"])
def test_a_resample_scores_as_the_rows_that_it_draws(measure: ModuleType, metric: str) -> None:
    outputs = 1 if metric == "pearson" else 2
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, outputs, generator=random)
    labels = torch.randn(40, generator=random) if outputs == 1 else torch.randint(2, (40,), generator=random)
    trace = Trace(logits, labels)
    counts = torch.randint(4, (2, 40), generator=random)
    found = measure.resampled_score(EvaluationSplit(trace, 3, (metric,)), logits[0], counts.double())
    for row, value in zip(counts, found, strict=True):
        drawn = torch.arange(40).repeat_interleave(row)
        out = ExitOutput(logits[0, drawn], problem_type=trace.problem_type)
        assert value.item() == pytest.approx(score(METRICS[metric], out, labels[drawn]).item(), abs=1e-6)


def test_a_correlation_with_weights_is_that_of_the_rows_drawn(measure: ModuleType) -> None:
    random = torch.Generator().manual_seed(0)
    pair, counts = torch.randn(2, 30, generator=random).double(), torch.randint(4, (2, 30), generator=random)
    found = import_module("claims_bleu").weighted_correlation(*pair, counts.double())
    drawn = [pair[:, torch.arange(30).repeat_interleave(row)] for row in counts]
    assert found.tolist() == pytest.approx([torch.corrcoef(rows)[0, 1].item() for rows in drawn])


def test_gains_are_those_of_the_patiences_that_the_theorem_promises_one_for(measure: ModuleType) -> None:
    """The last exit is wrong on the first row, exit 1 on the second; patience 1, 2, 3 answer both right."""
    labels = torch.arange(8) % 2
    right = labels.expand(5, 8).clone()
    right[4, 0], right[0, 1] = 1, 0
    guesses = torch.cat((torch.zeros(4, 8, dtype=torch.long), right[4:]))
    counts = torch.ones(2, 8, dtype=torch.float64)

    def split(answers: torch.Tensor) -> EvaluationSplit:
        return EvaluationSplit(Trace(torch.nn.functional.one_hot(answers, 2).float(), labels), 5, ("matthews",))

    gain = import_module("claims_theorem").promised_gain
    draws, promised = gain(split(right), counts)
    assert (draws.tolist(), promised) == ([12.5, 12.5], [1, 2, 3])
    assert gain(split(guesses), counts) is None, "exits that guess are promised nothing"


def test_rows_that_choose_are_not_reported(measure: ModuleType) -> None:
    """Exit 1 is right on the rows that choose and wrong on the others; the last exit is right on half of each."""
    labels = torch.tensor([0] * 8)
    first = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    last = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    logits = 4 * torch.nn.functional.one_hot(torch.stack((first, last)), 2).float()
    split = EvaluationSplit(Trace(logits, labels), 2, ("accuracy",))
    half = measure.Half({"any": split}, torch.arange(4), torch.ones(3, 8, dtype=torch.float64))
    chosen = measure.Side("any", "fixed", SpeedupBetween(1.0, 100.0))
    gap = measure.gap_of(half, ((chosen, measure.Side("any")),), 1.0)
    assert gap.draws.tolist() == [-0.5] * 3
    assert gap.costs["saved"] == [0.5]
    seeds = measure.mean_gap([[gap, None], [gap, gap]])
    assert seeds.draws[:, 0].tolist() == [-50.0, -50.0]
    assert measure.mean_gap([[gap, None, None], [gap, gap, gap]]) is None
