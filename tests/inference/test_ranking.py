"""Ranking by hand, and by a predictor whose pairs leave at different exits."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from offramp.errors import InvalidInput, NotApplicable
from offramp.inference.flight import LeftRows
from offramp.inference.predictor import Predictor
from offramp.inference.ranking import ranked, relevances, to_relevances
from offramp.inference.torch_engine import TorchEngine
from offramp.model.modeling import MultiExitModel
from offramp.policies.replay import replay
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, SINGLE_LABEL
from offramp.types.trace import Trace
from support.models import LAYERS, balanced, texts, tiny_model, tiny_tokenizer

QUERY, COUNT = "the cat sat", 30
MARGIN = {"name": "margin"}
HELD_BACK = MARGIN | {"offsets": [0.0, 0.5]}
"""Margin of two classes, lowered by 0.5 where the answer is the second one, "relevant"."""


def predictor_of(model: MultiExitModel, point: OperatingPoint | None = None) -> Predictor:
    return Predictor(TorchEngine(model.eval()), tiny_tokenizer(), point)


def test_two_classes_are_ranked_by_the_second_and_one_output_by_its_sigmoid() -> None:
    odds = math.log(3)
    two = np.array([[0, odds], [odds, 0]], np.float32)
    assert relevances(two).tolist() == pytest.approx([0.75, 0.25])
    assert relevances(two, raw=True).tolist() == pytest.approx([odds, -odds])
    assert relevances(two[:, 1:]).tolist() == pytest.approx([0.75, 0.5])


def test_scores_that_run_together_keep_their_order_and_rows_without_an_answer_come_last() -> None:
    logits = np.array([[100.0], [math.nan], [300.0], [-1.0], [100.0]], np.float32)
    layers = np.array([1, 2, 3, 4, 1])
    left = LeftRows(np.arange(5), logits, layers, np.isnan(logits[:, 0]))

    answers = ranked([{"error": "blank"}, *to_relevances(left)])

    assert [answer["index"] for answer in answers] == [3, 1, 5, 4, 0, 2]
    assert answers[0] == {"index": 3, "score": 1.0, "exit_layer": 3}
    assert answers[-2:] == [
        {"index": 0, "error": "blank"},
        {"index": 2, "error": "the model's logits are not finite", "exit_layer": 2},
    ]


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_predictor_ranks_as_its_answers_to_the_pairs_do(outputs: int) -> None:
    predictor = predictor_of(balanced(tiny_model(num_labels=outputs)))
    documents = [*texts(COUNT), " "]
    answers = predictor([(QUERY, text) for text in documents], top_k=0 if outputs == 1 else None)
    if outputs == 1:
        scores = [1 / (1 + math.exp(-answer["value"])) for answer in answers[:-1]]
    else:
        scores = [answer["scores"]["LABEL_1"] for answer in answers[:-1]]

    best = predictor.rank(QUERY, documents, batch_size=7)

    assert [text["index"] for text in best[:-1]] == sorted(range(COUNT), key=lambda index: -scores[index])
    assert [text["score"] for text in best[:-1]] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert all(text["exit_layer"] == LAYERS for text in best[:-1])
    assert best[-1]["index"] == COUNT
    assert "error" in best[-1]


def test_held_back_texts_leave_later_than_irrelevant_ones_that_are_as_clear() -> None:
    """By hand: probabilities of "relevant" at three exits; a text leaves where its margin, less 0.5 if it is above one
    half, reaches 0.3."""
    shares = torch.tensor([[0.3, 0.7, 0.1], [0.3, 0.8, 0.95], [0.1, 0.95, 0.6]], dtype=torch.float64)  # (exits, texts)
    trace = Trace(torch.stack((1 - shares, shares), dim=-1).log().float())
    # Margins are |2 share - 1|: 0.4, 0.4, 0.8 at the first exit; 0.4, 0.6, 0.9 at the second.
    assert replay(trace, MARGIN, (0.3, 0.3)).exit_layers.tolist() == [1, 1, 1]
    # Text 1: 0.4 - 0.5, then 0.6 - 0.5, both below 0.3. Text 2 is irrelevant at first, and leaves with the first one.
    assert replay(trace, HELD_BACK, (0.3, 0.3)).exit_layers.tolist() == [1, 3, 1]


def test_ranking_at_a_point_with_offsets_lets_the_irrelevant_leave_first() -> None:
    model = balanced(tiny_model(num_labels=2))
    layers: dict[str, dict[int, int]] = {}
    for name, policy in (("alike", MARGIN), ("held back", HELD_BACK)):
        point = OperatingPoint(policy, (0.02,) * (LAYERS - 1))
        layers[name] = {
            text["index"]: text["exit_layer"] for text in predictor_of(model, point).rank(QUERY, texts(COUNT))
        }
    first = predictor_of(model, OperatingPoint({"name": "fixed"}, (1.0,) * (LAYERS - 1))).rank(QUERY, texts(COUNT))

    relevant = {text["index"] for text in first if text["score"] > 0.5 and layers["alike"][text["index"]] == 1}
    irrelevant = {text["index"] for text in first if text["score"] < 0.5 and layers["alike"][text["index"]] == 1}

    assert len(relevant) > 2
    assert len(irrelevant) > 2
    assert all(layers["held back"][index] == 1 for index in irrelevant)
    assert all(layers["held back"][index] > 1 for index in relevant)


@pytest.mark.parametrize(("outputs", "problem_type"), [(3, SINGLE_LABEL), (2, MULTI_LABEL)])
def test_other_models_are_refused(outputs: int, problem_type: str) -> None:
    predictor = predictor_of(tiny_model(num_labels=outputs, problem_type=problem_type))
    with pytest.raises(NotApplicable, match="one output or two classes"):
        predictor.rank(QUERY, ["a dog"])


@pytest.mark.parametrize(
    ("query", "documents", "batch_size"),
    [(QUERY, "a dog", None), (QUERY, [("a", "b")], None), (QUERY, [7], None), (7, ["a dog"], None), (QUERY, ["a"], 0)],
)
def test_what_is_no_query_with_texts_is_refused(query: Any, documents: Any, batch_size: int | None) -> None:
    with pytest.raises(InvalidInput):
        predictor_of(tiny_model(num_labels=1)).rank(query, documents, batch_size)


def test_no_texts_give_no_answers() -> None:
    assert predictor_of(tiny_model(num_labels=1)).rank(QUERY, []) == []
