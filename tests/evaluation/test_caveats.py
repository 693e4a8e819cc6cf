"""What a trace cannot show, in sentences, by hand."""

from dataclasses import replace

import pytest
import torch

from offramp.calibration.calibrate import calibrate
from offramp.errors import CannotReach
from offramp.evaluation.caveats import caveats, needed_rows
from offramp.types.operating_point import Certificate, OperatingPoint, Target
from offramp.types.problem_types import MULTI_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace


def right_at_the_end(labels: list[int], classes: int = 2) -> Trace:
    """Two exits: the first answers class 0 always, the last is right."""
    last = torch.nn.functional.one_hot(torch.tensor(labels), classes).float()
    first = torch.zeros_like(last)
    first[:, 0] = 1
    return Trace(torch.stack((first, last)), torch.tensor(labels))


def early(**target: float) -> dict[str, OperatingPoint]:
    return {"default": OperatingPoint({"name": "fixed"}, (1.0,), target)}


RARE = [0] * 594 + [1] * 6  # 1 % positives


@pytest.mark.parametrize(
    ("labels", "target", "words"),
    [
        ([0], {"max_drop": 0.01}, "1 row promises little: 0 of 1 right answers of the full model are lost here, but "),
        ([0], {"max_drop": 0.01}, "the share of lost answers may be as high as 95.0% (95%); 'default' allows 1.00%, "),
        ([0], {"speedup": 2}, "may be as high as 95.0% (95%)"),
        (
            [0] * 40,
            {"agreement": 0.98},
            "as high as 7.2% (95%); 'default' allows 2.00%, which 149 right answers without a loss",
        ),
        ([0, 1] * 20, {"max_drop": 0.05}, "20 of 40 right answers of the full model are lost here, but the share of l"),
    ],
)
def test_few_rows_promise_little(labels: list[int], target: dict[str, float], words: str) -> None:
    (sentence, *_) = caveats(right_at_the_end(labels), early(**target))
    assert words in sentence


def test_enough_rows_need_no_words() -> None:
    assert needed_rows({"max_drop": 0.01}) == needed_rows({"max_drop": 0.0}) == 299
    assert needed_rows({"speedup": 2.0}) == needed_rows({}) == needed_rows({"level": 0.05, "delta": 0.1}) == 59
    assert caveats(right_at_the_end([0, 1, 2] * 100, 3), early(max_drop=0.01)) == []
    assert caveats(right_at_the_end([0, 1] * 30), early(speedup=2)) == []
    assert caveats(random_trace("regression", samples=60, outputs=1), early(max_drop=0.01)) == []


def test_an_encoder_that_scores_less_than_the_lexical_exit_is_named() -> None:
    trace = right_at_the_end([0, 1] * 10)
    trace = replace(trace, logits=trace.logits.flip(0), layers=torch.tensor([0, 2]))  # the last exit answers class 0
    words = "the lexical exit alone has accuracy 1.0000, the full model 0.5000: here the encoder adds nothing to it; "
    assert words + "train longer, or see whether the encoder is needed" in caveats(trace, {})
    fitted = replace(trace, fit_rows=torch.arange(20) < 2)  # 10 %
    for other in (fitted, replace(trace, layers=torch.tensor([1, 2])), right_at_the_end([0, 1] * 10)):
        assert not any("the encoder adds nothing" in sentence for sentence in caveats(other, {}))


def test_a_point_at_full_depth_loses_nothing() -> None:
    never = OperatingPoint({"name": "fixed"}, (float("inf"),), {"max_drop": 0.01})
    assert caveats(right_at_the_end([0, 1] * 10), {"full": never}) == []


def test_a_certificate_has_its_own_number_of_rows() -> None:
    certificate = Certificate("drop", 0.05, 0.05, 0.05, 0.0, 20, "binomial", None, "data", None)
    point = OperatingPoint({"name": "fixed"}, (1.0,), {"level": 0.05}, certificate=certificate)
    assert caveats(right_at_the_end([0, 1] * 10), {"default": point}) == []


@pytest.mark.parametrize(
    ("labels", "metric", "words"),
    [
        (RARE, None, "'no' always would keep 99.0% of the full model's accuracy (0.9900 of 1.0000), and the target is"),
        (RARE, None, "choose --metric macro-f1 or f1"),
        ([1 - label for label in RARE], "f1", "'yes' always would keep 99.5% of the full model's f1"),
        ([1 - label for label in RARE], "f1", "choose --metric macro-f1 or matthews"),
        ([0] * 600, None, "all 600 rows have the label 'no': nothing is known of others"),
        ([0], None, "the only row has the label 'no': nothing is known of others"),
        ([0] * 600, "f1", "no row has the label 'yes', whose f1 this is: it counts as 0"),
        (RARE, "f1", "6 rows of class 'yes' promise little: 6 of 6 right answers"),
    ],
)
def test_a_majority_that_would_pass_alone_is_named(labels: list[int], metric: str | None, words: str) -> None:
    sentences = caveats(right_at_the_end(labels), early(max_drop=0.01), metric, ["no", "yes"])
    assert any(words in sentence for sentence in sentences), sentences


def test_a_model_that_is_no_better_than_the_majority_is_named() -> None:
    labels = torch.tensor(RARE)
    trace = Trace(torch.tensor([1.0, 0.0]).expand(2, 600, 2), labels)  # class 0 always
    assert caveats(trace, early(max_drop=0.01), None, ["no", "yes"]) == [
        "answering 'no' always would have accuracy 0.9900, and the full model has 0.9900, and the target is 99.0%: "
        "rare classes may be lost unseen"
    ]  # by any metric the model is no better


def test_the_advice_is_another_metric_that_the_majority_does_not_pass() -> None:
    labels = torch.zeros(600, 2)
    labels[:, 0] = 1
    labels[:60, 1] = 1
    answers = labels.clone()
    answers[480:, 0] = 0  # f1 of the model .9, of "toxic" always .95; macro-f1 .94 and .5
    trace = Trace(torch.stack((labels * 0 - 1, answers - 0.5)), labels, problem_type=MULTI_LABEL)
    (sentence,) = caveats(trace, early(max_drop=0.01), "f1", ["toxic", "threat"])
    assert sentence.endswith("rare classes may be lost unseen; choose --metric macro-f1")


def test_a_target_that_nobody_asked_for_is_not_the_target() -> None:
    for points in ({}, early(speedup=2)):
        (sentence,) = caveats(right_at_the_end(RARE), points, None, ["no", "yes"])
        assert "(0.9900 of 1.0000), enough for a target of 99.0%: rare classes may be lost unseen" in sentence


def test_rows_of_which_none_is_right_lose_none() -> None:
    wrong = Trace(torch.tensor([1.0, 0.0]).expand(2, 3, 2), torch.tensor([1, 1, 1]))
    (few, *_) = caveats(wrong, early(max_drop=0.01))
    assert few == "3 rows promise little: no answer of the full model is right here, so none can be lost"


def test_an_f1_says_whose_it_is() -> None:
    (words,) = caveats(right_at_the_end([0, 1] * 400), early(max_drop=0.01), "f1", ["no", "yes"])
    assert words == "f1 is that of class 'yes', the second of the two"


def test_a_metric_that_the_majority_does_not_pass_has_no_such_words() -> None:
    for metric in ("macro-f1", "matthews"):
        assert caveats(right_at_the_end(RARE), early(max_drop=0.01), metric, ["no", "yes"]) == []
    assert not any("always" in words for words in caveats(right_at_the_end(RARE), early(max_drop=0.01), "f1"))


def test_agreement_and_certificates_get_another_advice() -> None:
    trace = right_at_the_end(RARE)
    unlabelled = Trace(trace.logits)
    (sentence,) = caveats(unlabelled, early(agreement=0.99), None, ["no", "yes"])
    assert "'no' always would agree with the full model on 99.0% of the rows, and the target is 99.0%" in sentence
    assert "--hold-back no:0.2" in sentence
    certificate = Certificate("drop", 0.01, 0.05, 0.01, 0.0, 600, "binomial", None, "data", None)
    point = OperatingPoint({"name": "fixed"}, (1.0,), {"level": 0.01}, certificate=certificate)
    (sentence,) = caveats(trace, {"default": point}, None, ["no", "yes"])
    assert "the certificate counts rows of all classes alike; --hold-back no:0.2" in sentence


def test_several_labels_of_which_few_are_true() -> None:
    labels = torch.zeros(600, 3)
    labels[:6, 0] = 1
    trace = Trace(torch.stack((labels * 0 - 1, labels - 0.5)), labels, problem_type=MULTI_LABEL)
    missing, sentence = caveats(trace, early(max_drop=0.01), None, ["toxic", "threat", "insult"])
    assert "answering no label always would keep 99.0%" in sentence
    assert sentence.endswith("choose --metric macro-f1 or f1")
    assert missing == "no row has the label 'threat', 'insult': nothing is known of it"


def test_a_score_of_rows_without_its_class_is_named() -> None:
    alike = Trace(torch.randn(2, 400, 3), torch.ones(400, dtype=torch.long))
    assert "all rows have one label: matthews is not defined and counts as 0" in caveats(alike, {}, "matthews")
    nothing = Trace(torch.randn(2, 400, 3), torch.zeros(400, 3))
    for metric in ("f1", "macro-f1"):
        assert f"no row has a label: {metric} counts as 0" in caveats(nothing, {}, metric)
        with pytest.raises(CannotReach, match="no row has a label"):
            calibrate(nothing, "margin", Target(max_drop=0.01), metric)


def test_labels_that_are_all_alike_have_no_correlation() -> None:
    constant = Trace(torch.randn(2, 70, 1), torch.full((70,), 3.5))
    assert caveats(constant, early(max_drop=0.01)) == [
        "the labels of all 70 rows are alike: pearson is not defined and counts as 0"
    ]
    few = constant.take(torch.arange(10))
    assert caveats(few, early(max_drop=0.01)) == [
        "the labels of all 10 rows are alike: pearson is not defined and counts as 0"
    ]
    sentences = caveats(constant.take(torch.tensor([3])), early(max_drop=0.01), "spearman")
    assert sentences == [
        "1 row promises little: no interval of spearman can be given from them",
        "one row has no spearman; it counts as 0",
    ]


def test_a_correlation_of_few_rows_has_fishers_interval() -> None:
    """Of 19 rows and a correlation of .6: atanh(.6) = .6931, 1.96 / sqrt(16) = .49; tanh(.2031), tanh(1.1831)."""
    x = torch.linspace(-1, 1, 19)
    noise = torch.linalg.qr(torch.stack((torch.ones(19), x, x**3 + x**2), dim=1))[0][:, 2]
    values = 0.6 * x / x.norm() + 0.8 * noise  # the correlation with x is .6
    trace = Trace(torch.stack((values, values)).unsqueeze(-1), x)
    (sentence,) = caveats(trace, early(max_drop=0.01))
    assert sentence == "19 rows promise little: the full model's pearson of 0.600 may be 0.200 to 0.828 (95%)"


def test_classes_without_rows_are_named() -> None:
    sentence = "no row has the label 'c', 'd', 'e', 'f', 'g' and 2 more: nothing is known of it"
    assert caveats(right_at_the_end([0, 1] * 200, 9), early(max_drop=0.01), None, list("abcdefghi")) == [sentence]
