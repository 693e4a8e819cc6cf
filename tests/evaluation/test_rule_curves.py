"""The arithmetic of `benchmarks/lexical_rules.py`: scores within a budget, areas, ranks, times of other lengths."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from offramp.types.cost_table import CostTable

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TABLE = CostTable((1, 2, 3), (1.0, 2.0, 4.0), 0.0, "torch", 1, 8.0, "by hand", exit_ms=(0.0, 0.0))


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rule_curves

    return rule_curves


def setting(rules: ModuleType, least: float = -torch.inf) -> object:
    """Four rows: the first exit is right for 0 and 1, the second for 0, 1 and 2, the last for all but 0."""
    right = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]).bool()
    return rules.Setting(torch.tensor([[0.9, 0.7, 0.1, 0.1], [0.9, 0.9, 0.5, 0.1], [0.0] * 4]), right, least)


def test_at_a_budget_the_best_score_among_all_thresholds_that_cost_no_more(rules: ModuleType) -> None:
    made = rules.choices([setting(rules)], TABLE)
    # all at exit 1: cost 1, 2 of 4 right; rows 0 and 1 at exit 1, row 2 at exit 2 and row 3 at the last: cost 2, all
    # right; between them (two rows at exit 1, one at 2 or 3) nothing is both cheaper and better
    assert made.costs.tolist() == [1.0, 2.0]
    assert made.scores.tolist() == [0.5, 1.0]
    assert [made.within(budget) for budget in (0.9, 1.0, 1.9, 2.0, 4.0)] == [None, 0, 0, 1, 1]
    assert rules.exits_at(setting(rules), made.thresholds[1].item()).tolist() == [0, 0, 1, 2]


def test_thresholds_at_or_below_the_least_one_are_no_choice(rules: ModuleType) -> None:
    made = rules.choices([setting(rules, least=0.65)], TABLE)
    # what is left: never (cost 4, three right), and 0.8, where row 0 leaves at exit 1 and row 1 at exit 2
    assert made.costs.tolist() == [(1 + 2 + 4 + 4) / 4]
    assert made.scores.tolist() == [1.0]


def test_below_its_cheapest_threshold_a_rule_has_all_rows_at_one_exit(rules: ModuleType) -> None:
    own = setting(rules, least=0.65)
    plain = rules.one_exit(own.right)
    made = rules.report([own], [own], (rules.choices(plain, TABLE), plain), TABLE, [0.5, 1.0, 2.0, 4.0])
    assert made.reached.tolist() == [False, False, False, True]
    assert made.right.mean(dim=1).tolist()[1:] == [0.5, 0.75, 1.0]
    assert made.right[0].isnan().all()
    assert made.costs.tolist()[1:] == [1.0, 2.0, 2.75]


def test_ranks_count_the_areas_ahead_and_equal_ones_share_the_better_rank(rules: ModuleType) -> None:
    assert rules.ranks(torch.tensor([[0.9, 0.7, 0.8], [0.5, 0.5, 0.4]])).tolist() == [[1, 3, 2], [1, 1, 3]]
    before = torch.tensor([[0.9, 0.8], [0.9, 0.8], [0.8, 0.9], [0.5, 0.5]])
    after = torch.tensor([[0.8, 0.9], [0.9, 0.8], [0.8, 0.9], [0.6, 0.5]])
    # rule 0: 1 -> 2, 1 -> 1, 2 -> 2, 1 -> 1; rule 1: 2 -> 1, 2 -> 2, 1 -> 1, 1 -> 2
    assert rules.rank_changes(before, after) == {"better": [0.0, 0.25], "worse": [0.25, 0.25]}


def test_rows_that_reported_more_often_count_more(rules: ModuleType) -> None:
    totals, counts = torch.tensor([[3.0], [0.0], [0.0]]), torch.tensor([3.0, 1.0, 0.0])
    means = rules.resampled_means(totals, counts, resamples=500)
    assert means[0].tolist() == [0.75]
    assert set(means[1:, 0].nan_to_num(-1).unique().tolist()) <= {-1.0, 0.0, 0.6, 0.75, 6 / 7, 1.0}


def test_times_of_longer_texts_have_longer_layers_and_the_same_exits(rules: ModuleType) -> None:
    def table(tokens: float, layer: float) -> CostTable:
        ms = (0.2, 0.2 + layer + 0.1, 0.2 + 2 * layer + 0.1)
        return CostTable((0, 1, 2), ms, 0.0, "torch", 1, tokens, "by hand", exit_ms=(0.05, 0.1), cut_ms=(0.3, 0.0))

    made = rules.scaled_table([table(10, 1.0), table(20, 1.5)], 40)
    assert made.ms == pytest.approx((0.2, 0.2 + 2.5 + 0.1, 0.2 + 5.0 + 0.1))
    assert (made.exit_ms, made.cut_ms, made.tokens) == ((pytest.approx(0.05), pytest.approx(0.1)), (0.3, 0.0), 40)
