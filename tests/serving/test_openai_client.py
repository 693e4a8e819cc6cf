"""The real `openai` client against the application: another URL, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from offramp.types.problem_types import MULTI_LABEL
from support.played import played, played_app
from support.served import served_model

openai = pytest.importorskip("openai")

LEVELS = ("bad", "fine", "good")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    models = {
        "guard": served_model("hate", "threat", problem_type=MULTI_LABEL),
        "binary": served_model("fine", "toxic"),
        "mood": served_model(*LEVELS),
    }
    with played({name: played_app(model) for name, model in models.items()}) as address:
        yield address


def client(url: str, model: str) -> Any:
    return openai.OpenAI(api_key="any", base_url=f"{url}/{model}/v1", max_retries=0)


def test_moderations_come_in_the_order_of_the_texts(url: str) -> None:
    texts = [f"text {number}" for number in range(8)]
    with client(url, "guard") as guard:
        answer = guard.moderations.create(input=texts)
        alone = [guard.moderations.create(input=text, model="omni-moderation-latest").results[0] for text in texts]
    assert [result.to_dict() for result in answer.results] == [result.to_dict() for result in alone]
    for result in answer.results:
        scores = result.category_scores.to_dict()
        assert result.categories.to_dict() == {name: score > 0.5 for name, score in scores.items()}
        assert result.flagged == (max(scores.values()) > 0.5)
    assert {result.flagged for result in answer.results} == {True, False}


def test_a_part_is_moderated_and_an_image_is_a_bad_request(url: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    with client(url, "binary") as guard:
        part = guard.moderations.create(input=[{"type": "text", "text": "a dog"}]).results[0]
        assert part.to_dict() == guard.moderations.create(input="a dog").results[0].to_dict()
        with pytest.raises(openai.BadRequestError, match="images are not read"):
            guard.moderations.create(input=[image])


def test_decisions_are_parsed_as_their_types(url: str) -> None:
    with client(url, "mood") as mood:
        answer = mood.decisions.create(
            model="gpt-6-luna",
            input=[{"role": "user", "content": "a dog"}],
            questions=[
                {"type": "choice", "instructions": "Mood?", "choices": [{"value": name} for name in LEVELS[::-1]]},
                {"type": "score", "instructions": "How good?", "levels": [{"label": name} for name in LEVELS]},
                {"type": "predicate", "instructions": "good", "name": "is good"},
            ],
        )
    choice, score, predicate = answer.answers
    shares = [option.probability for option in choice.probabilities]
    assert [option.value for option in choice.probabilities] == list(LEVELS[::-1])
    assert choice.choice == LEVELS[::-1][shares.index(max(shares))]
    assert (choice.name, score.name, predicate.name) == (None, None, "is good")
    assert predicate.probability == shares[0]
    assert score.score == pytest.approx(2 * shares[0] + shares[1])
    assert answer.usage.total_tokens == len("a dog")


def test_a_question_of_another_model_and_another_models_name_raise_what_clients_catch(url: str) -> None:
    question = {"type": "predicate", "instructions": "Is it good?"}
    with client(url, "mood") as mood:
        with pytest.raises(openai.BadRequestError, match="tiny was not trained for this question"):
            mood.decisions.create(model="tiny", input="a dog", questions=[question])
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'") as error:
            mood.decisions.create(model="gpt-5", input="a dog", questions=[question])
    assert error.value.code == "model_not_found"
