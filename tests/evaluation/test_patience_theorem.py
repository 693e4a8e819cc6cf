"""PABEE's theorem against every sequence of answers, against simulation, and against the paper's own example."""

from itertools import pairwise, product
from typing import Any

import pytest

from offramp.errors import InvalidInput
from offramp.evaluation.patience_theorem import Setting, conditions, exact, needed_accuracy, simulate

DERIVED, PROOFS_END, THEOREM, PROOFS_HEAD = "derived", "proof's end", "theorem", "proof's head"
ERRORS = [0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.9]


def holding(**setting: Any) -> set[str]:
    return {name for name, holds in conditions(Setting(**setting)).items() if holds}


def enumerated(setting: Setting) -> tuple[float, float]:
    """Leaves, and leaves wrong, summed over every way in which the internal classifiers can err."""
    q, t = setting.internal_error, setting.patience
    leaves = leaves_wrong = 0.0
    for wrong in product((False, True), repeat=setting.internal):
        weight = q ** sum(wrong) * (1 - q) ** (setting.internal - sum(wrong))
        repeats = 0
        for before, now in pairwise(wrong):
            repeats = repeats + 1 if before == now else 0
            if repeats == t:
                leaves += weight
                leaves_wrong += weight * now
                break
    return leaves, leaves_wrong


# --- the exact answer ---------------------------------------------------------------------------------------


def test_three_classifiers_by_hand() -> None:
    # w and r at q = .2: ww .04, rr .64 leave after two; wr r .16 * .8, rw w .16 * .2 leave after three
    told = exact(Setting(internal=3, patience=1, internal_error=0.2, last_error=0.1))
    assert told.leaves == pytest.approx(0.84)
    assert told.leaves_wrong == pytest.approx(0.072)
    assert told.error == pytest.approx(0.072 + 0.16 * 0.1)
    # three in a row: www .008, rrr .512
    told = exact(Setting(internal=3, patience=2, internal_error=0.2, last_error=0.1))
    assert (told.leaves, told.leaves_wrong, told.error) == pytest.approx((0.52, 0.008, 0.008 + 0.48 * 0.1))


@pytest.mark.parametrize("internal", [1, 2, 5, 8])
@pytest.mark.parametrize("patience", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("error", [0.1, 0.5, 0.7])
def test_the_exact_answer_is_the_sum_over_all_sequences(internal: int, patience: int, error: float) -> None:
    setting = Setting(internal, patience, error, 0.3)
    told = exact(setting)
    assert (told.leaves, told.leaves_wrong) == pytest.approx(enumerated(setting), abs=1e-12)
    assert told.error == pytest.approx(told.leaves_wrong + (1 - told.leaves) * 0.3)


@pytest.mark.parametrize("shared", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("patience", "error"), [(1, 0.2), (4, 0.2), (3, 0.4), (12, 0.2)])
def test_simulation_agrees_with_the_exact_answer(patience: int, error: float, shared: float) -> None:
    setting = Setting(12, patience, error, 0.1, shared)
    told, seen = exact(setting), simulate(setting, samples=100_000, seed=1)
    for name, probability in vars(told).items():
        spread = (probability * (1 - probability) / 100_000) ** 0.5
        assert getattr(seen, name) == pytest.approx(probability, abs=4 * spread + 1e-12), name


def test_a_seed_decides_the_simulation() -> None:
    setting = Setting(12, 3, 0.2, 0.1)
    assert simulate(setting, 1000, seed=1) == simulate(setting, 1000, seed=1) != simulate(setting, 1000, seed=2)


# --- the conditions -----------------------------------------------------------------------------------------


def test_the_papers_example_holds_from_patience_4() -> None:
    """N = 12, q = .2, p = .1; A = 2.5^t / 2 is 7.8125 at t = 3, 19.53125 at t = 4."""
    for t in range(1, 12):
        assert (THEOREM in holding(internal=12, patience=t, internal_error=0.2, last_error=0.1)) == (t >= 4)
    # at t = 3, n - t = 9: A - p = 7.71, A - q = 7.61, A / 2 - q = 3.71, but (A - q) / (1 - q) = 9.516
    assert holding(internal=12, patience=3, internal_error=0.2, last_error=0.1) == {DERIVED}


def test_the_papers_three_statements_differ() -> None:
    # A = 1.25^2 * .66 / .4 = 2.578: A / 2 - q = .889, A - p = 1.918, A - q = 2.178, derived 3.630
    sides = {1: {DERIVED, PROOFS_END, THEOREM}, 2: {DERIVED, PROOFS_END}, 3: {DERIVED}, 4: set()}
    for gap, wanted in sides.items():
        assert holding(internal=2 + gap, patience=2, internal_error=0.4, last_error=0.66) == wanted
    # A = 1.25^2 * .6 / .4 = 2.344: derived (A - q) / (1 - q) = 3.240; with p for q above the line it would be 2.906
    assert holding(internal=5, patience=2, internal_error=0.4, last_error=0.6) == {DERIVED}
    # A = (5/3)^4 * .125 / .3 = 3.215: A / 2 - q = 1.308, A - q = 2.915, A - p = 3.090, derived 4.164
    assert holding(internal=7, patience=4, internal_error=0.3, last_error=0.125) == {DERIVED, THEOREM}
    assert holding(internal=5, patience=4, internal_error=0.3, last_error=0.125) == {
        DERIVED,
        PROOFS_END,
        THEOREM,
        PROOFS_HEAD,
    }


def test_each_condition_is_enough_and_the_derived_one_is_the_weakest() -> None:
    for internal, last, error in product(range(2, 13), ERRORS, ERRORS):
        for patience in range(1, internal):
            setting = Setting(internal, patience, error, last)
            held = {name for name, holds in conditions(setting).items() if holds}
            assert not held or (DERIVED in held and exact(setting).error < last), setting


def test_no_condition_is_necessary() -> None:
    setting = Setting(12, 1, 0.2, 0.1)
    assert not any(conditions(setting).values())
    assert exact(setting).error < 0.1


@pytest.mark.parametrize("patience", [3, 4, 9])
def test_with_no_more_classifiers_than_patience_nothing_improves(patience: int) -> None:
    setting = Setting(3, patience, 0.2, 0.1)
    assert all(conditions(setting).values())  # n - t <= 0: they say nothing here
    assert exact(setting).leaves == 0
    assert exact(setting).error == 0.1


def test_shared_errors_undo_the_theorem_while_its_condition_holds() -> None:
    setting = Setting(12, 4, 0.2, 0.1, shared=1.0)
    assert all(conditions(setting).values())
    assert exact(setting).error == pytest.approx(0.2)  # everybody leaves at exit 5, with one classifier's error
    alone = exact(Setting(12, 4, 0.2, 0.1)).error
    assert exact(Setting(12, 4, 0.2, 0.1, shared=0.5)).error == pytest.approx((alone + 0.2) / 2)


# --- appendix C ---------------------------------------------------------------------------------------------


def test_two_of_three_is_a_majority() -> None:
    # three layers, t = 1: right are rr, wr r, rw r: a^2 + 2 a (1 - a) a = a^2 (3 - 2 a), .784 at a = .7
    assert needed_accuracy(layers=3, patience=1, accuracy=0.784) == pytest.approx(0.7)


def test_where_nobody_leaves_each_classifier_must_be_as_accurate_as_the_last() -> None:
    assert needed_accuracy(layers=12, patience=11, accuracy=0.8) == pytest.approx(0.8)


def test_of_twelve_equal_layers_patience_2_and_3_need_least() -> None:
    for accuracy in (0.6, 0.75, 0.9):
        needed = {t: needed_accuracy(12, t, accuracy) for t in range(1, 12)}
        assert sorted(needed, key=needed.__getitem__)[:2] == [2, 3]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((0, 1, 0.2, 0.1), "internal and patience must be at least 1, got 0 and 1"),
        ((12, 0, 0.2, 0.1), "internal and patience must be at least 1, got 12 and 0"),
        ((12, 1, 0.0, 0.1), "errors must lie inside 0..1"),
        ((12, 1, 0.2, 1.0), "errors must lie inside 0..1"),
        ((12, 1, 0.2, 0.1, 1.5), "shared in 0..1"),
    ],
)
def test_a_setting_outside_its_range_is_refused(parameters: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Setting(*parameters)
