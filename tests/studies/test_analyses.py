"""What the papers say of their models besides speed: by hand, and against the plain definition."""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F

from offramp.errors import InvalidInput, NotApplicable
from offramp.studies.analyses import bleu, bleu_confidence, certainty_quartiles, overthinking
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace
from support.traces import random_trace

needs_sacrebleu = pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="sacrebleu is not installed")


def chosen(*rows: tuple[int, ...]) -> torch.Tensor:
    """Logits (L, N, 2) of exits that give these answers, three to one."""
    return math.log(3) * F.one_hot(torch.tensor(rows), 2).float()


def test_overthinking() -> None:
    # right answers are 1 0 1 1; row 1 is right at exit 2 alone, row 2 at exits 1 and 2, row 3 at the last
    trace = Trace(chosen((1, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 1)), torch.tensor([1, 0, 1, 1]))
    found = overthinking(trace)
    assert found.error.tolist() == [0.5, 0.25, 0.5]
    assert found.became_wrong == 0.5
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.entropy.tolist() == pytest.approx([entropy] * 3)


def test_overthinking_is_of_classes() -> None:
    with pytest.raises(NotApplicable):
        overthinking(random_trace(REGRESSION, outputs=1))


def test_quartiles_of_certainty() -> None:
    certainty = torch.tensor([[0.5, 0.1, 0.3, 0.2, 0.4], [1, 1, 1, 1, 0]])
    trace = Trace(torch.zeros(2, 5, 2), certainty=certainty)
    assert certainty_quartiles(trace)[0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert certainty_quartiles(trace)[1].tolist() == [0, 1, 1, 1, 1]
    with pytest.raises(InvalidInput, match="no gate"):
        certainty_quartiles(Trace(torch.zeros(2, 5, 2)))


@needs_sacrebleu
def test_bleu_is_of_words_in_common() -> None:
    same = ("the cat sat on the mat", "the cat sat on the mat")
    found = bleu([same, ("the cat sat on the mat", "a dog ran under one tree")])
    assert found[0].item() == pytest.approx(100)
    assert found[1].item() < 10


@needs_sacrebleu
def test_confidence_against_bleu() -> None:
    first = "the cat sat on the mat today"
    pairs = [(first, " ".join(first.split()[:words])) for words in (4, 5, 6, 7)] * 2
    overlap = bleu(pairs)
    assert (overlap[:4].diff() > 0).all()
    rising = overlap[:4].float() / 100
    logits = torch.stack((torch.cat((torch.zeros(4), rising.flip(0))), torch.cat((rising, torch.zeros(4)))), dim=-1)
    # exit 1: rows 0 to 3 are answered 1, surer with BLEU, and 4 to 7 are answered 0, less sure; exit 2: all 1
    trace = Trace(torch.stack((logits, torch.tensor([0.0, 1.0]).expand(8, 2))))

    zero, one = bleu_confidence(trace, pairs)[0].tolist()

    sure = rising.double().sigmoid()
    wanted = [torch.corrcoef(torch.stack((overlap[:4], each)))[0, 1].item() for each in (sure.flip(0), sure)]
    assert (zero, one) == pytest.approx(wanted)
    assert zero < 0 < one
    assert bleu_confidence(trace, pairs)[1].isnan().all()  # nobody is answered 0, and confidence does not vary


def test_bleu_needs_the_texts_of_a_choice_between_two() -> None:
    with pytest.raises(InvalidInput, match="4 rows need as many pairs"):
        bleu_confidence(Trace(torch.zeros(2, 4, 2)), [("a", "b")])
    with pytest.raises(NotApplicable, match="two classes"):
        bleu_confidence(Trace(torch.zeros(2, 4, 3)), [("a", "b")] * 4)
