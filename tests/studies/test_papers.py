"""What the papers compare and printed, as data."""

import pytest

from offramp.policies.registry import POLICIES, load_policy
from offramp.studies.markdown import TITLES, printed_rows
from offramp.studies.registry import STUDIES, load_study
from offramp.studies.spec import AS_IT_IS, EXITS, SpeedupBetween, TrainingSpec, printed
from offramp.training.objectives.registry import OBJECTIVES


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_study_names_what_there_is(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert set(study.shows) <= set(TITLES)
    assert study.pace is None or study.pace in [system.name for system in study.systems]
    for regression in (False, True):
        assert all(training.objective in OBJECTIVES for training in study.all_trainings(regression))
    for system in study.systems:
        for policy in (*system.policies, *(system.regression or ())):
            assert load_policy(policy)
            assert policy["name"] in POLICIES


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_printed_figure_stands_beside_a_row_of_ours(name: str) -> None:
    study = load_study(name)
    labels = {budget.label for budget in study.budgets}
    rows = {(system.name, AS_IT_IS) for system in study.systems}
    rows |= {(system.name, label) for system in study.systems for label in labels}
    rows |= {(training.name, EXITS) for training in study.all_trainings(False)}
    for row in study.published:
        assert (row.system, row.budget) in rows
        assert set(row.figures) <= {*TITLES, "average", "best"}
        assert all(0 <= row.figures.get(name, 50) <= 101 for name in ("score", "relative", "average", "best"))
        assert 0 <= row.figures.get("saving", 0.5) < 1


def test_trainings_of_one_name_are_one_training() -> None:
    found: dict[str, TrainingSpec] = {}
    for name in STUDIES:
        for regression in (False, True):
            for training in load_study(name).all_trainings(regression):
                assert found.setdefault(training.name, training) == training


def printed_figures(study: str, data: str, system: str, budget: str) -> dict[str, float]:
    (found,) = [
        dict(row.figures)
        for row in load_study(study).published
        if (row.data, row.system, row.budget) == (data, system, budget)
    ]
    return found


def test_figures_looked_up_in_the_papers() -> None:
    pcee = printed_figures("pcee", "mrpc", "PCEE-BERT", "50% saved")
    assert pcee == pytest.approx({"score": 84.8, "saving": 0.53})
    assert printed_figures("pcee", "rte", "PABEE", "75% saved") == pytest.approx({"score": 55.8, "saving": 0.75})
    assert printed_figures("pabee", "rte", "PABEE", SpeedupBetween(1.30, 1.96).label) == {
        "score": 80.1,
        "speedup": 1.57,
    }
    assert printed_figures("berxit", "mrpc", "ALT", "70% saved") == {"relative": 94, "saving": pytest.approx(0.74)}
    assert printed_figures("berxit", "stsb", "ALT-LTE", "98% of the score")["mean_exit"] == 4.6
    assert printed_figures("badge", "mnli", "joint-bypass", EXITS) == {"average": 77.8, "best": 83.8}
    assert printed_figures("mpee", "qnli", "MPEE", "3.5x fewer MACs") == {"score": 90.2, "macs_ratio": 2.45}


def test_a_table_as_text_is_read_cell_by_cell() -> None:
    rows = printed(
        "table 9", "BERT", ("score", "saving"), " | | a | b\nX | half | 1 50 | -\nY | half | 2 40 | 3 30", (1, 0.01)
    )
    assert [(row.data, row.system, dict(row.figures)) for row in rows] == [
        ("a", "X", {"score": 1, "saving": 0.5}),
        ("a", "Y", {"score": 2, "saving": 0.4}),
        ("b", "Y", {"score": 3, "saving": 0.3}),
    ]
    assert printed_rows(rows)[2] == "| system | asked | a | b |"
    assert printed_rows(rows)[4:] == ["| X | half | 1.0 at 50% |  |", "| Y | half | 2.0 at 40% | 3.0 at 30% |"]
