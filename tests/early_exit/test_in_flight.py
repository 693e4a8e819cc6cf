"""Merged == alone: rows of several requests, each with thresholds of its own, leave where they leave by themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.early_exit.in_flight import ExitedRows, InFlight, Segments, start
from offramp.early_exit.loop import run
from offramp.errors import InvalidInput
from offramp.model.bypass import Bypass
from offramp.policies.base import Policy
from offramp.policies.confidence import Entropy, MaxProb
from offramp.policies.fixed import Fixed
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.carry import Carry
from offramp.types.outputs import Answers, ExitOutput
from offramp.types.problem_types import SINGLE_LABEL
from offramp.types.trace import Trace
from support.contracts import LEAVING, ROWS, Case, build, clear_of_noise, midpoint_near
from support.models import ABSOLUTE, FAMILIES, LAYERS, LIKE_BERT, padded, tiny_model, token_rows
from support.traces import CASE_IDS, CASES, Recorded, random_trace

SIZES = (1, 7, 30, 28)  # rows of each request
case_of = cache(build)


def requests(policy: Policy, thresholds: Tensor, inputs: Sequence[dict[str, Tensor]]) -> list[InFlight]:
    """Batches that stand before their first exit, their rows numbered on."""
    numbers = torch.arange(sum(SIZES)).split(SIZES)
    return [start(policy, thresholds[rows], batch, rows=rows) for rows, batch in zip(numbers, inputs, strict=True)]


@torch.no_grad()
def merged_answers(segments: Segments, batches: list[InFlight]) -> Answers:
    """Merge two batches before each exit, the last one first, until one is left."""
    exited: list[ExitedRows] = []
    while batches:
        if len(batches) > 1:
            batches = [batches[-1].merge(batches[0]), *batches[1:-1]]
        advanced = [batch.advance(segments) for batch in batches]
        exited += [leaving for leaving, _ in advanced if leaving is not None]
        batches = [batch for _, batch in advanced if batch is not None]
    order = torch.cat([part.rows[part.exited] for part in exited]).argsort()
    return Answers(
        torch.cat([part.logits[part.exited] for part in exited])[order],
        torch.cat([part.layers[part.exited] for part in exited])[order],
        torch.cat([part.failed[part.exited] for part in exited])[order],
    )


def own_thresholds(trace: Trace, policy: Policy) -> tuple[Tensor, Answers, list[list[float]]]:
    """Thresholds (N, L-1) that differ between even and odd rows, the answers by replay, and the two in use."""
    score, even = scores(policy, trace)[:-1], torch.arange(len(trace)) % 2 == 0
    used = [[midpoint_near(score, quantile)] * (trace.depth - 1) for quantile in (0.3, 0.8)]
    low, high = (replay(trace, policy, thresholds) for thresholds in used)
    expected = Answers(
        torch.where(even.unsqueeze(-1), low.logits, high.logits),
        torch.where(even, low.exit_layers, high.exit_layers),
        torch.where(even, low.failed, high.failed),
    )
    return torch.where(even.unsqueeze(-1), torch.tensor(used[0]), torch.tensor(used[1])), expected, used


def assert_merged_is_alone(case: Case, policy: Policy) -> None:
    thresholds, expected, used = own_thresholds(case.trace, policy)
    chunks = torch.arange(ROWS).split(SIZES)
    inputs = [padded(case.model, [case.rows[number] for number in chunk.tolist()]) for chunk in chunks]
    answers = merged_answers(case.model, requests(policy, thresholds, inputs))
    checked = clear_of_noise(case, policy, used[0]) & clear_of_noise(case, policy, used[1])
    assert checked.float().mean() > 0.85
    assert torch.equal(answers.exit_layers[checked], expected.exit_layers[checked])
    assert torch.allclose(answers.logits[checked], expected.logits[checked], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("data", "problem_type"), CASES, ids=CASE_IDS)
def test_merged_rows_of_any_policy_leave_as_they_do_alone(data: dict[str, Any], problem_type: str) -> None:
    trace, policy = random_trace(problem_type, samples=ROWS), load_policy(data)
    thresholds, expected, _ = own_thresholds(trace, policy)
    inputs = [{"rows": rows} for rows in torch.arange(ROWS).split(SIZES)]
    answers = merged_answers(Recorded(trace), requests(policy, thresholds, inputs))
    assert torch.equal(answers.exit_layers, expected.exit_layers)
    assert torch.equal(answers.logits, expected.logits)


@pytest.mark.parametrize("name", ["entropy", "patience", "pcee"])
@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[pytest.mark.slow] if family in LIKE_BERT else []) for family in FAMILIES],
)
def test_merged_rows_of_any_encoder_leave_as_they_do_alone(family: str, name: str) -> None:
    assert_merged_is_alone(case_of(family, SINGLE_LABEL), load_policy(name))


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize(
    "exits",
    [
        {"bypass": Bypass(rank=4), "certainty": True, "memory": 0.6, "head": "attention"},
        {"token_exit": LEAVING},
        {"token_exit": LEAVING, "memory": 0.9, "exit_layers": [1, 3, 4]},
    ],
)
def test_so_they_do_with_all_that_a_model_may_have(exits: dict[str, Any], pooling: str) -> None:
    assert_merged_is_alone(build("bert", SINGLE_LABEL, pooling=pooling, **exits), MaxProb())


@pytest.mark.parametrize("family", ABSOLUTE)
def test_so_they_do_where_tokens_exit(family: str) -> None:
    assert_merged_is_alone(build(family, SINGLE_LABEL, token_exit=LEAVING), Entropy())


@torch.no_grad()
def test_an_advance_runs_one_block_and_returns_the_rows_that_leave() -> None:
    trace = Trace(torch.tensor([[[0.0, 5.0], [0.0, 1.0], [0.0, 5.0]], [[5.0, 0.0], [5.0, 0.0], [0.0, 0.0]]]))
    batch = start(MaxProb(), torch.tensor([0.9]), {"rows": torch.arange(3)}, rows=torch.tensor([7, 8, 9]))
    leaving, batch = batch.advance(Recorded(trace))
    assert leaving is not None
    assert leaving.rows[leaving.exited].tolist() == [7, 9]
    assert leaving.layers[leaving.exited].tolist() == [1, 1]
    assert batch is not None
    assert (batch.rows.tolist(), batch.exit) == ([8], 1)
    leaving, batch = batch.advance(Recorded(trace))
    assert leaving is not None
    assert (leaving.rows.tolist(), leaving.layers.tolist(), leaving.logits.tolist()) == ([8], [2], [[5.0, 0.0]])
    assert batch is None


def test_without_a_sync_nobody_is_returned_and_the_first_answer_stays() -> None:
    trace = Trace(torch.tensor([[[0.0, 5.0]], [[5.0, 0.0]], [[5.0, 0.0]]]))
    batch = start(MaxProb(), torch.tensor([0.9, 0.9]), {"rows": torch.arange(1)})
    leaving, onward = batch.advance(Recorded(trace), sync=False)
    assert leaving is None
    assert onward is not None
    assert len(onward) == 1
    leaving, onward = onward.advance(Recorded(trace))
    assert leaving is not None
    assert (leaving.logits.tolist(), leaving.layers.tolist()) == ([[0.0, 5.0]], [1])
    assert onward is None


@torch.no_grad()
def test_the_embedding_runs_on_the_rows_that_stay_without_their_padding() -> None:
    model, inputs = Prefixed(), {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0], [8, 0, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] > 0).long()
    answers = run(model, MaxProb(), (0.9, 2.0, 2.0, 2.0), inputs)
    assert answers.exit_layers.tolist() == [0, 4, 4]
    assert model.embedded == [[[8, 9], [8, 0]]]
    full = tiny_model()(**{name: value[1:, :2] for name, value in inputs.items()}).logits
    assert torch.allclose(answers.logits[1:], full, atol=1e-6)
    assert run(model, MaxProb(), 0.0, inputs).exit_layers.tolist() == [0, 0, 0]
    assert len(model.embedded) == 1


class Prefixed:
    """A tiny model behind an exit that is sure of longer rows."""

    layers = (0, 1, 2, 3, 4)

    def __init__(self) -> None:
        self.model, self.embedded = tiny_model(), list[Any]()

    def lexical(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        length = inputs["attention_mask"].sum(dim=1, keepdim=True)
        return ExitOutput(torch.where(length > 2, torch.tensor([9.0, 0, 0]), torch.tensor([0.0, 0, 0])), layer=0)

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        self.embedded.append(inputs["input_ids"].tolist())
        return self.model.embed(inputs)

    def block(self, exit: int, carry: Carry) -> Carry:
        return self.model.block(exit - 1, carry)

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        return self.model.exit(exit - 1, carry)


def test_what_makes_no_batch_is_refused() -> None:
    model, thresholds = tiny_model(), torch.full((LAYERS - 1,), 0.99)
    one = start(MaxProb(), thresholds, padded(model, token_rows(2)))
    with pytest.raises(InvalidInput, match="under the same policy, got MaxProb\\(\\) before exit 0 and Fixed"):
        one.merge(start(Fixed(), thresholds, padded(model, token_rows(2))))
    with torch.no_grad():
        _, onward = start(Fixed(), torch.full((3,), 9.0), padded(model, token_rows(2))).advance(model)
        _, unsynced = start(Fixed(), torch.full((3,), 9.0), padded(model, token_rows(2))).advance(model, sync=False)
    assert onward is not None
    assert unsynced is not None
    with pytest.raises(InvalidInput, match="before exit 1"):
        start(Fixed(), thresholds, padded(model, token_rows(2))).merge(onward)
    with pytest.raises(InvalidInput, match=r"read the same exits, got None, \(2, 4\)"):
        one.merge(start(MaxProb(), thresholds[:1], padded(model, token_rows(2)), exit_layers=[2, 4]))
    with pytest.raises(InvalidInput, match="right after a sync"):
        onward.merge(unsynced)
    with pytest.raises(InvalidInput, match="make no batch"):
        one.merge(
            start(MaxProb(), thresholds, {"input_ids": torch.ones(1, 2).long(), "token_type_ids": torch.ones(1, 2)})
        )


def test_inputs_without_a_mask_get_one() -> None:
    one = start(MaxProb(), torch.ones(3), {"input_ids": torch.tensor([[5, 6, 7]])})
    other = start(MaxProb(), torch.ones(3), {"input_ids": torch.tensor([[8]])})
    merged = other.merge(one)
    assert merged.inputs is not None
    assert merged.inputs["input_ids"].tolist() == [[8, 0, 0], [5, 6, 7]]
    assert merged.inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


# --- carries ------------------------------------------------------------------------------------------------


def carry(lengths: Sequence[int], columns: int, attention: Tensor | None = None) -> Carry:
    mask = (torch.arange(columns) < torch.tensor(lengths).unsqueeze(1)).long()
    return Carry(torch.randn(len(lengths), columns, 4), mask, attention)


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("attention", "row_of_two", "row_of_three"),
    [
        (torch.tensor([[[[True, True, False]]]]), [True, True, False], [True, True, False]),
        (torch.tensor([[[[0.0, 0.0, LOWEST]]]]), [0.0, 0.0, LOWEST], [0.0, 0.0, LOWEST]),
        (torch.tensor([[[[1, 1, 0]]]]), [1, 1, 0], [1, 1, 0]),
        (torch.tensor([[1, 1, 0]]), [1, 1, 0], [1, 1, 0]),
    ],
    ids=["bool", "additive", "integer", "flat"],
)
def test_a_missing_attention_mask_is_written_as_the_other_ones_kind(
    attention: Tensor, row_of_two: list[Any], row_of_three: list[Any]
) -> None:
    joined = carry([2], 2).concat(carry([2], 3, attention))
    assert joined.attention is not None
    assert joined.attention.dtype == attention.dtype
    assert joined.attention.reshape(2, 3).tolist() == [row_of_two, row_of_three]


def test_of_two_lengths_without_masks_the_shorter_one_is_hidden_behind_its_end() -> None:
    joined = carry([2], 2).concat(carry([3], 3))
    assert joined.attention is not None
    assert joined.attention.tolist() == [[[[0.0, 0.0, LOWEST]]], [[[0.0, 0.0, 0.0]]]]
    assert carry([2], 2).concat(carry([2], 2)).attention is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_a_mask_that_was_written_joins_one_of_another_kind(dtype: torch.dtype) -> None:
    written, other = carry([2], 2).concat(carry([3], 3)), carry([2], 3, torch.tensor([[[[1, 1, 0]]]], dtype=dtype))
    expected = [[[[0.0, 0.0, LOWEST]]], [[[0.0, 0.0, 0.0]]], [[[0.0, 0.0, LOWEST]]]]
    for joined, order in ((written.concat(other), [0, 1, 2]), (other.concat(written), [1, 2, 0])):
        assert joined.attention is not None
        assert joined.attention[order].tolist() == expected


def test_rows_of_a_square_mask_behind_the_end_attend_as_the_first_one_does() -> None:
    square = torch.tensor([[[[1, 0], [0, 1]]]])
    joined = carry([2], 2, square).concat(carry([3], 3, torch.ones(1, 1, 1, 3).long()))
    assert joined.attention is not None
    assert joined.attention.tolist() == [[[[1, 0, 0], [0, 1, 0], [1, 0, 0]]], [[[1, 1, 1]] * 3]]


def test_all_that_belongs_to_a_row_is_joined_and_the_exit_has_read() -> None:
    one = replace(
        carry([2], 2),
        pooling_weights=torch.full((1, 1, 2), 0.5),
        exit_input=torch.ones(1, 1, 4),
        memory_logits=torch.ones(1, 3),
        token_importance=torch.ones(1, 1),
        pair_bias=torch.ones(1, 1, 2, 2),
        position_embeddings=torch.ones(1, 2, 2),
    )
    other = replace(
        carry([3, 1], 3),
        pooling_weights=torch.full((2, 1, 3), 0.25),
        memory_logits=torch.zeros(2, 3),
        token_importance=torch.zeros(2, 2),
        pair_bias=torch.zeros(1, 1, 3, 3),
        position_embeddings=torch.zeros(1, 3, 2),
    )
    joined = one.concat(other)
    assert joined.mask is not None
    assert joined.mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert torch.equal(joined.hidden[0, :2], one.hidden[0])
    assert torch.equal(joined.hidden[1:], other.hidden)
    assert joined.pooling_weights is not None
    assert joined.pooling_weights[:, 0].tolist() == [[0.5, 0.5, 0.0], [0.25] * 3, [0.25] * 3]
    assert joined.exit_input is None
    assert joined.memory_logits is not None
    assert joined.memory_logits[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert joined.token_importance is not None
    assert joined.token_importance.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert joined.pair_bias is other.pair_bias
    assert joined.position_embeddings is not None
    assert joined.position_embeddings[:, :, 0].tolist() == [[1.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3]


def test_images_of_two_sizes_make_no_batch() -> None:
    with pytest.raises(InvalidInput, match=r"\(1, 2, 4, 4\) and \(1, 2, 8, 8\) make no batch"):
        Carry(torch.zeros(1, 2, 4, 4)).concat(Carry(torch.zeros(1, 2, 8, 8)))
