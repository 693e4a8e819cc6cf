"""The lexical exit's features and logits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import offramp
from offramp.model.lexical.classifier import LexicalClassifier
from offramp.model.lexical.config import LexicalExit
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

SEP, CLS, PAD = 3, 2, 0
CASES = {  # rank, outputs
    "table of outputs": (3, 3),
    "with factors": (4, 9),
    "regression": (1, 1),
}


def random_classifier(case: str = "with factors", buckets: int = 997, **setting: int) -> LexicalClassifier:
    """A classifier as a fit leaves it, with random integers as large as they may be."""
    rank, outputs = CASES[case]
    classifier = LexicalClassifier(LexicalExit(buckets=buckets, rank=rank, **setting), outputs, SINGLE_LABEL)
    generator = torch.Generator().manual_seed(0)
    classifier.table.copy_(torch.randint(-127, 128, classifier.table.shape, generator=generator))
    classifier.steps.copy_(2 ** torch.randint(0, 8, (buckets, 1), generator=generator))
    classifier.squares.copy_(torch.randint(64, 2**14, (buckets, 1), generator=generator))
    if classifier.factors is not None:
        classifier.factors.copy_(torch.randint(-127, 128, classifier.factors.shape, generator=generator))
    classifier.bias.copy_(torch.randint(-(2**20), 2**20, classifier.bias.shape, generator=generator))
    classifier.scales.copy_(torch.tensor([2.0**-2, 2.0**-9, 2.0**-18]))
    classifier.special_ids.copy_(torch.tensor([SEP, CLS, -1, -1, PAD, -1]))
    return classifier


def plain_features(ids: Sequence[int], buckets: int, ngrams: int = 2) -> list[int]:
    """The buckets of one row without padding, by loops over Python's integers."""
    words, second, passed = [], [], False
    for token in ids:
        words.append(0 if token in (SEP, CLS, PAD) else token + 1)
        second.append(int(passed))
        passed = passed or token == SEP
    hashed = []
    for length in range(1, ngrams + 1):
        for end in range(len(ids)):
            gram = [words[k] if k >= 0 else 0 for k in range(end - length + 1, end + 1)]
            if not any(gram):
                continue
            number = second[end] + 2 * length - 1
            for word in gram:
                assert number * 4093 + word < 2**31
                number = (number * 4093 + word) % buckets
            hashed.append(number)
    return hashed


def plain_logits(classifier: LexicalClassifier, ids: Sequence[int]) -> Tensor:
    """The logits of one row, in float64 from the integers."""
    buckets = plain_features(ids, classifier.buckets, classifier.ngrams)
    sums = sum(classifier.table[bucket].double() * int(classifier.steps[bucket]) for bucket in buckets)
    norm = max(1.0, sum(int(classifier.squares[bucket]) for bucket in buckets) / 64) ** 0.5
    scales = classifier.scales.double()
    logits = (sums + torch.zeros(classifier.rank).double()) * scales[0] / norm
    if classifier.factors is not None:
        logits = logits.round().clamp(-1023, 1023) @ classifier.factors.double() * scales[1]
    return logits + classifier.bias.double() * scales[2]


def random_rows(vocabulary: int = 40) -> list[list[int]]:
    """Rows of one and two tokens, of special tokens alone, pairs with one and two separators, and a long one."""
    generator = torch.Generator().manual_seed(1)

    def words(count: int) -> list[int]:
        return torch.randint(4, vocabulary, (count,), generator=generator).tolist()

    short = [[CLS], [7], [CLS, SEP], [8, 9], [CLS, SEP, SEP, SEP], [CLS, *words(3), SEP]]
    pairs = [[CLS, *words(4), SEP, *words(5), SEP], [CLS, *words(2), SEP, SEP, *words(6), SEP], words(9)]
    return [*short, *pairs, [CLS, *words(510), SEP]]


def padded(rows: Sequence[Sequence[int]], extra: int = 0, dtype: torch.dtype = torch.long) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows)) + extra
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask.to(dtype)


@pytest.mark.parametrize("ngrams", [1, 2, 3])
@pytest.mark.parametrize("vocabulary", [40, 262_144])
def test_buckets_are_those_of_plain_loops(vocabulary: int, ngrams: int) -> None:
    classifier = random_classifier(buckets=524_287, ngrams=ngrams)
    rows = random_rows(vocabulary)
    buckets, weights = classifier.features(*padded(rows))
    for row, own, counted in zip(rows, buckets, weights, strict=True):
        assert own[counted > 0].tolist() == plain_features(row, classifier.buckets, ngrams)


def test_int32_arithmetic_gives_the_same_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in OpenVINO, which computes int64 in 32 bits."""
    classifier = random_classifier(buckets=524_287, ngrams=3)
    ids, mask = padded(random_rows(262_144))
    expected, _ = classifier.features(ids, mask)
    monkeypatch.setattr(Tensor, "long", Tensor.int)
    classifier.special_ids = classifier.special_ids.int()
    buckets, _ = classifier.features(ids.int(), mask)
    assert buckets.dtype == torch.int32
    assert torch.equal(buckets.to(torch.int64), expected)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_plain_loops(case: str) -> None:
    classifier = random_classifier(case)
    rows = random_rows()
    logits = classifier(*padded(rows))
    assert logits.dtype == torch.float32
    expected = torch.stack([plain_logits(classifier, row) for row in rows])
    torch.testing.assert_close(logits.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32, torch.int32])
def test_batch_order_and_padding_change_no_bit(case: str, dtype: torch.dtype) -> None:
    classifier, rows = random_classifier(case), random_rows()
    alone = torch.cat([classifier(*padded([row], dtype=dtype)) for row in rows])
    assert torch.equal(torch.cat([classifier(torch.tensor([row])) for row in rows]), alone)  # without a mask
    for extra in (0, 1, 5):
        assert torch.equal(classifier(*padded(rows, extra, dtype)), alone)
        assert torch.equal(classifier(*padded(rows[::-1], extra, dtype)).flip(0), alone)
    ids, mask = padded(rows, 3, dtype)
    assert torch.equal(classifier(torch.where(mask != 0, ids, 17), mask), alone)  # whatever the padding is
    assert torch.equal(classifier(ids.roll(3, 1)[-1:], mask.roll(3, 1)[-1:]), alone[-1:])  # on the left


@pytest.mark.parametrize("case", CASES)
def test_the_models_dtype_changes_no_bit(case: str) -> None:
    classifier, batch = random_classifier(case), padded(random_rows())
    classifier.scales[2] = 2.0**-30  # a small bias: float16 ends at 2^-24
    expected = classifier(*batch)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        logits = classifier.to(dtype)(*batch)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, expected)


def test_a_word_of_the_second_text_has_another_bucket() -> None:
    classifier = random_classifier()
    first, second = (classifier.features(torch.tensor([row]))[0] for row in ([CLS, 7, SEP], [CLS, SEP, 7, SEP]))
    assert first[0, 1] != second[0, 2]


def test_unfitted_logits_are_zeros() -> None:
    classifier = LexicalClassifier(LexicalExit(buckets=10, rank=2), 2, SINGLE_LABEL)
    assert not classifier(torch.tensor([[1, 2, 3]])).any()
    assert not list(classifier.parameters())


@pytest.mark.parametrize(("problem_type", "expected"), [(SINGLE_LABEL, 0.9), (MULTI_LABEL, 0.75), (REGRESSION, 0.0)])
def test_certainty_is_the_largest_probability(problem_type: str, expected: float) -> None:
    classifier = LexicalClassifier(LexicalExit(buckets=10, rank=2), 2, problem_type)
    odds = [1.0, 9.0] if problem_type == SINGLE_LABEL else [9.0, 1 / 3]  # of two labels 0.9 and 0.25
    logits = torch.tensor([odds]).log()
    torch.testing.assert_close(classifier.certainty(logits), torch.tensor([expected]))


@pytest.mark.parametrize("outputs", [1, 2, 7, 150, 225])
@pytest.mark.parametrize("vocabulary", [40, 30_522, 262_144])
def test_default_sizes_keep_the_weights_below_8_mb(outputs: int, vocabulary: int) -> None:
    setting = LexicalExit().resolved(outputs, vocabulary)
    classifier = LexicalClassifier(setting, outputs, SINGLE_LABEL)
    assert sum(buffer.nbytes for buffer in classifier.buffers()) <= 8_000_000
    assert LexicalExit(**setting.to_data()) == setting


@pytest.mark.parametrize(
    "values", [{"ngrams": 0}, {"ngrams": 4}, {"buckets": 0}, {"buckets": 2**19}, {"rank": 0}, {"ngrams": 1.5}]
)
def test_sizes_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(offramp.InvalidInput, match="of a lexical exit must be a whole number"):
        LexicalExit(**values)


@pytest.mark.parametrize(("rank", "outputs"), [(4, 3), (257, 300)])
def test_a_rank_that_does_not_fit_the_outputs_is_refused(rank: int, outputs: int) -> None:
    with pytest.raises(offramp.InvalidInput, match="rank must be at most"):
        LexicalExit(rank=rank).resolved(outputs, 100)
