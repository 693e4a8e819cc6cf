"""System One by jevcompat's own checks: each of its requirements is passed, or not applicable for a reason in a table.

A fine-tuned classifier answers the questions that it was trained for, jevcompat asks several of each type. So its cases
run against models, each with the labels for which some of its questions are the right ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest

from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.played import played, played_app
from support.served import served_model

checks = pytest.importorskip("jevcompat.checks")
typesafe = pytest.importorskip("typesafe_sdk")
jevcompat = pytest.importorskip("jevcompat")
client, runner, spec = (import_module(f"jevcompat.{name}") for name in ("client", "runner", "spec"))

PASSED = "passed"
ONE_QUESTION = (
    "a model has the labels for one question, and this needs a noul, a choice and a score with texts of their own"
)
TABLE = dict.fromkeys(spec.REQUIREMENTS, PASSED) | {
    "http.models": "GET /v1/models has OpenAI's form, {object, data}, which vLLM's clients read",
    "request.multi": ONE_QUESTION,
    "choice.options": "a classifier chooses among all of its labels: another number of options is another question",
    "semantics.question-id": ONE_QUESTION,
    "semantics.batching": ONE_QUESTION,
    "semantics.question-order": ONE_QUESTION,
    "dropin.sdk-python": ONE_QUESTION,
}
"""Each requirement of jevcompat 0.1.1: passed, or the reason why it is not applicable."""

STATEMENTS = (
    checks.NOUL["instructions"],
    "The customer threatens a chargeback",
    '{"task":"Decide whether the customer wants money back","include":["refunds","chargebacks"]}',
)


MOODS = ("Calm", "Frustrated", "Very angry")


@dataclass(frozen=True)
class Model:
    """A model, and the cases whose questions it was trained for.

    Attributes:
        labels: of the model.
        problem_type: of the model.
        types: of the questions that it answers; () = jevcompat's own preflight finds out.
        cases: that run against it; () = all that are in no other row.
        key: without which the server refuses.
    """

    labels: Sequence[str]
    problem_type: str
    types: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    key: str | None = None


MODELS = {
    "statements": Model(STATEMENTS, MULTI_LABEL),
    "locked": Model(STATEMENTS, MULTI_LABEL, cases=("noul-basic", "auth"), key="k"),
    "teams": Model(
        tuple(checks.CHOICE["criteria"]),
        SINGLE_LABEL,
        ("choice",),
        ("choice-basic", "choice-null-description", "choice-options", "structured-text"),
    ),
    "kinds": Model(tuple(checks.UNICODE_OPTIONS), SINGLE_LABEL, ("choice",), ("unicode",)),
    "frustration": Model(("level",), REGRESSION, ("score",), ("score-levels", "structured-text")),
}
OTHERS = {case for model in MODELS.values() for case in model.cases} - {"structured-text", "noul-basic", "auth"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    apps = {
        name: played_app(
            served_model(*model.labels, problem_type=model.problem_type), *([model.key] if model.key else [])
        )
        for name, model in MODELS.items()
    }
    apps["mood"] = played_app(served_model(*MOODS))
    with played(apps) as address:
        yield address


def outcomes(url: str, name: str, model: Model) -> dict[str, Any]:
    """The requirements that jevcompat's cases exercise, each with its findings."""
    context = checks.Ctx(client.Client(f"{url}/{name}", model.key), key_given=model.key is not None)
    if model.types:
        context.info["types_ok"] = set(model.types)
    else:
        checks.preflight(context)
    for case in checks.CASES:
        if case.name in model.cases or not (model.cases or case.name in OTHERS):
            case.fn(context, case.name)
    assert not context.inconclusive
    return {result.id: result.findings for result in runner.fold(context, None) if result.status != "skip"}


def test_each_requirement_is_passed_or_has_its_reason(url: str) -> None:
    runs = [outcomes(url, name, model) for name, model in MODELS.items()]
    passed = {rule for run in runs for rule in run} - {rule for run in runs for rule, faults in run.items() if faults}
    faults = {rule: [str(fault) for run in runs for fault in run.get(rule, ())] for rule in spec.REQUIREMENTS}

    assert len(TABLE) == len(spec.REQUIREMENTS) == 48
    assert all(TABLE.values())
    assert {rule: faults[rule] for rule, word in TABLE.items() if word == PASSED and rule not in passed} == {}
    assert {rule for rule, word in TABLE.items() if word != PASSED} & passed == set()


@pytest.fixture(scope="module")
def official(url: str) -> Iterator[Any]:
    with typesafe.TypeSafeClient(api_key="any", base_url=f"{url}/mood") as official:
        yield official


CALM = typesafe.Noul(instructions="Calm")
MOOD = typesafe.Choice(criteria=dict.fromkeys(reversed(MOODS)))
LEVEL = typesafe.Score(criteria=MOODS)


def test_the_official_client_reads_all_types_of_answers_to_one_request(official: Any) -> None:
    """By hand: the answers are about one distribution, so each follows from the choice's probabilities."""
    answer = official.system_one(state={"text": "a dog"}, questions={"calm": CALM, "mood": MOOD, "level": LEVEL})

    shares = [answer.choices["mood"].probabilities[name] for name in MOODS]
    assert (answer.model, sum(shares)) == ("tiny", pytest.approx(1))
    assert answer.choices["mood"].choice == MOODS[shares.index(max(shares))]
    assert answer.choices["mood"].confidence == pytest.approx((max(shares) - 1 / 3) / (2 / 3))
    assert answer.nouls["calm"].noul == shares[0]
    assert answer.scores["level"].score == pytest.approx(shares[1] + 2 * shares[2])
    assert answer.scores["level"].legend == dict(enumerate(MOODS))
    assert answer.scores["level"].probabilities == dict(enumerate(shares))
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len('{"text":"a dog"}'), 0)


def test_names_order_and_other_questions_do_not_change_an_answer(official: Any) -> None:
    one = official.system_one(state="a dog", questions={"calm": CALM, "mood": MOOD, "level": LEVEL})
    other = official.system_one(state="a dog", questions={"2": LEVEL, "\N{DOG}": CALM})
    assert other.scores["2"] == one.scores["level"]
    assert other.nouls["\N{DOG}"] == one.nouls["calm"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (typesafe.Noul(instructions="Is it calm?"), "a predicate must be a label of the model, one of 'Calm'"),
        (typesafe.Choice(criteria={"Calm": None, "Angry": None}), "the options of a choice must be the labels"),
        (typesafe.Score(criteria=MOODS[::-1]), "the levels of a score must be the labels of the model, in its order"),
    ],
)
def test_a_question_that_the_model_was_not_trained_for_is_a_400(official: Any, question: Any, words: str) -> None:
    with pytest.raises(typesafe.TypeSafeBadRequestError, match=f"tiny was not trained for this question: {words}"):
        official.system_one(state="a dog", questions={"q": question})
