"""One by one == any batch, any order, any padding == replay of the recorded trace: policies x encoders."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.early_exit.loop import run
from offramp.errors import InvalidInput
from offramp.inference.record import record
from offramp.model.bypass import Bypass
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.policies.base import Policy
from offramp.policies.confidence import MaxProb
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, run_policy, scores
from offramp.types.carry import Carry
from offramp.types.outputs import Answers, ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.contracts import (
    CHOICES,
    LEAVING,
    OUTPUTS,
    ROWS,
    Case,
    Rows,
    applies,
    build,
    clear_of_noise,
    midpoint_near,
    poisoned,
)
from support.models import (
    ABSOLUTE,
    FAMILIES,
    LAYERS,
    LIKE_BERT,
    TEXTS,
    WIDTH,
    encoder_config,
    padded,
    rows_for,
    tiny_model,
    token_rows,
)

LEXICAL = LexicalExit(buckets=61)
ALONE, QUANTILES = 6, (0.3, 0.75)
TOLERANCE = 1e-4

POLICY_CASES = [(name, problem) for problem in OUTPUTS for name in CHOICES if applies(name, problem)]

# several labels with BERT alone: what differs between encoders does not depend on the problem
ALL_CASES = [
    (name, problem, family)
    for name, problem in POLICY_CASES
    for family in FAMILIES
    if problem != MULTI_LABEL or family == "bert"
]

# a policy that remembers nothing, one that does, one that answers with several exits; the whole product is slow
KINDS = ("entropy", "patience", "pcee, run")


def product_of(*names: str) -> list[Any]:
    """BERT with every policy and every encoder with the named ones; all other cases are slow."""

    def is_fast(name: str, problem: str, family: str) -> bool:
        return family == "bert" or (name in names and problem == SINGLE_LABEL and family not in LIKE_BERT)

    return [pytest.param(*case, marks=() if is_fast(*case) else pytest.mark.slow) for case in ALL_CASES]


case_of = cache(build)
"""A model with rows and their trace, made once; no test changes one."""


@torch.no_grad()
def answers_to(
    case: Case, policy: Policy, thresholds: Sequence[float], numbers: Sequence[int], size: int, extra: int = 0
) -> Answers:
    """Answers to the rows of these numbers, in batches of `size`, on the CPU."""
    parts = []
    for start in range(0, len(numbers), size):
        chosen = [case.rows[number] for number in numbers[start : start + size]]
        parts.append(run(case.model, policy, thresholds, padded(case.model, chosen, extra)))
    return Answers(
        torch.cat([part.logits for part in parts]).cpu(),
        torch.cat([part.exit_layers for part in parts]).cpu(),
        torch.cat([part.failed for part in parts]).cpu(),
    )


def assert_same(found: Answers, expected: Answers, numbers: Tensor, checked: Tensor) -> None:
    """`found` answers rows `numbers`; those that are `checked` (N,) must be as `expected` (N)."""
    check = checked[numbers]
    rows = numbers[check]
    assert torch.equal(found.exit_layers[check], expected.exit_layers[rows])
    assert torch.equal(found.failed[check], expected.failed[rows])
    assert torch.allclose(found.logits[check], expected.logits[rows], atol=TOLERANCE, rtol=0, equal_nan=True)


def assert_the_contract(case: Case, policy: Policy, thresholds: Sequence[float]) -> None:
    expected = replay(case.trace, policy, thresholds)
    checked = clear_of_noise(case, policy, thresholds)
    assert checked.float().mean() > 0.9
    shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    for size, extra, numbers in [(1, 0, shuffled[:ALONE]), (8, 3, shuffled), (64, 7, shuffled.flip(0))]:
        assert_same(answers_to(case, policy, thresholds, numbers.tolist(), size, extra), expected, numbers, checked)


@pytest.mark.parametrize(("name", "problem", "family"), product_of(*KINDS))
def test_alone_in_any_batch_and_in_replay_a_sample_leaves_at_the_same_exit(
    name: str, problem: str, family: str
) -> None:
    case, policy = case_of(family, problem), load_policy(CHOICES[name])
    seen = scores(policy, case.trace)[:-1]
    left = []
    for quantile in QUANTILES:
        thresholds = [midpoint_near(seen, quantile)] * (LAYERS - 1)
        assert_the_contract(case, policy, thresholds)
        left.append(replay(case.trace, policy, thresholds).exit_layers)
    assert torch.stack(left).unique().numel() > 1  # else nothing was tested


@pytest.mark.parametrize(("name", "problem"), POLICY_CASES)
def test_each_exit_may_have_its_own_threshold_also_before_the_first_layer(name: str, problem: str) -> None:
    case, policy = case_of("bert", problem, lexical=LEXICAL, exit_layers=(1, 3, 4)), load_policy(CHOICES[name])
    assert case.model.layers == [0, 1, 3, 4]
    seen = scores(policy, case.trace)
    thresholds = [
        midpoint_near(seen[exit], quantile) if seen[exit].isfinite().any() else 0.0
        for exit, quantile in enumerate((0.8, 0.7, 0.6))
    ]
    assert_the_contract(case, policy, thresholds)


@pytest.mark.parametrize("patience", [1, 3])
@pytest.mark.parametrize(
    ("name", "problem"), [("pcee", SINGLE_LABEL), ("divergence", SINGLE_LABEL), ("stability", REGRESSION)]
)
def test_memory_of_any_length_goes_with_its_sample(name: str, problem: str, patience: int) -> None:
    case, policy = case_of("bert", problem), load_policy(name, patience=patience)
    for quantile in (0.1, 0.3, 0.6):
        threshold = midpoint_near(scores(policy, case.trace), quantile)
        assert_the_contract(case, policy, [threshold] * (LAYERS - 1))


@pytest.mark.parametrize(
    "family", [pytest.param(it, marks=[pytest.mark.slow] if it in LIKE_BERT else []) for it in TEXTS]
)
def test_the_contract_holds_for_every_encoder_behind_a_lexical_exit(family: str) -> None:
    case, policy = build(family, SINGLE_LABEL, lexical=LEXICAL), load_policy("patience")
    assert_the_contract(case, policy, [0.5, 1.5, 1.5, 1.5])
    assert len(replay(case.trace, policy, [0.5, 1.5, 1.5, 1.5]).exit_layers.unique()) > 1
    threshold = midpoint_near(scores(MaxProb(), case.trace)[0], 0.5)
    assert_the_contract(case, MaxProb(), [threshold] * LAYERS)


FEATURES: dict[str, dict[str, Any]] = {
    "bypass": {"bypass": Bypass(rank=4)},
    "bypass behind attention": {"bypass": Bypass(rank=4, placement="ffn"), "exit_layers": [1, 3, 4]},
    "certainty": {"certainty": True},
    "memory": {"memory": 0.6},
    "all": {"bypass": Bypass(rank=4), "certainty": True, "memory": 0.6, "head": "attention"},
    "all, lexical": {"bypass": Bypass(rank=4), "certainty": True, "memory": 0.6, "lexical": LEXICAL},
}


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "first"),
        ("bert", "mean"),
        ("albert", "first"),
        ("distilbert", "mean"),
        pytest.param("albert", "mean", marks=pytest.mark.slow),
        pytest.param("distilbert", "first", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("feature", FEATURES)
def test_the_contract_holds_for_what_a_model_may_have(feature: str, pooling: str, family: str) -> None:
    case = build(family, SINGLE_LABEL, pooling=pooling, **FEATURES[feature])
    for name in ("patience", "certainty") if case.model.gate is not None else ("max-prob", "patience"):
        policy = load_policy(name)
        threshold = midpoint_near(scores(policy, case.trace)[:-1], 0.5)
        assert_the_contract(case, policy, [threshold] * (len(case.model.layers) - 1))


@pytest.mark.parametrize("feature", FEATURES)
def test_with_any_feature_never_gives_the_full_models_logits(feature: str) -> None:
    case = build("bert", SINGLE_LABEL, **FEATURES[feature])
    batch = padded(case.model, case.rows)
    with torch.no_grad():
        answers = run(case.model, MaxProb(), math.inf, batch)
        assert torch.equal(answers.logits, case.model(**batch).logits)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("head", ["attention", "linear", "pooler", "shared_pooler"])
def test_the_contract_holds_for_every_head(head: str, pooling: str) -> None:
    case = build("bert", SINGLE_LABEL, head=head, pooling=pooling)
    threshold = midpoint_near(scores(MaxProb(), case.trace)[:-1], 0.5)
    assert_the_contract(case, MaxProb(), [threshold] * (LAYERS - 1))


@pytest.mark.parametrize("name", ["fixed", "max-prob", "patience"])
@pytest.mark.parametrize("family", ["albert", "bert"])
def test_with_fewer_exits_than_layers_the_contract_holds_in_layer_numbers(family: str, name: str) -> None:
    case = build(family, SINGLE_LABEL, exit_layers=[1, 3, 4])
    policy = load_policy(name)
    threshold = midpoint_near(scores(policy, case.trace)[:-1], 0.5)
    assert_the_contract(case, policy, [threshold] * 2)
    assert set(replay(case.trace, policy, [threshold] * 2).exit_layers.tolist()) <= {1, 3, 4}


@cache
def leaving_tokens(family: str) -> Case:
    return build(family, SINGLE_LABEL, token_exit=LEAVING)


@pytest.mark.parametrize("name", ["entropy", "patience", "fixed"])
@pytest.mark.parametrize("family", ABSOLUTE)
def test_the_contract_holds_where_tokens_leave_too(family: str, name: str) -> None:
    case, policy = leaving_tokens(family), load_policy(name)
    seen = scores(policy, case.trace)[:-1]
    for quantile in QUANTILES:
        thresholds = [midpoint_near(seen, quantile)] * (LAYERS - 1)
        assert_the_contract(case, policy, thresholds)


@pytest.mark.parametrize(
    "exits",
    [
        {"bypass": Bypass(rank=3), "memory": 0.9, "certainty": True},
        {"head": "attention", "exit_layers": [1, 3, 4]},
        {"token_exit": replace(LEAVING, fusion="none"), "head": "pooler", "pooling": "first"},
    ],
)
def test_the_contract_holds_where_tokens_leave_among_other_ideas(exits: dict[str, Any]) -> None:
    case = build("bert", SINGLE_LABEL, **{"token_exit": LEAVING, **exits})
    threshold = midpoint_near(scores(MaxProb(), case.trace)[:-1], 0.5)
    assert_the_contract(case, MaxProb(), [threshold] * (len(case.model.layers) - 1))


def test_with_tokens_and_layers_leaving_blocks_get_fewer_columns_and_rows() -> None:
    case = leaving_tokens("bert")
    threshold = midpoint_near(scores(MaxProb(), case.trace)[0], 0.5)
    answers, reached = watch(case.model, MaxProb(), [threshold, math.inf, math.inf], case.rows)
    stay = answers.exit_layers.eq(LAYERS).tolist()
    assert 0 < sum(stay) < ROWS
    first = [len(row["input_ids"]) for row in case.rows]
    second = [shortened(length, 0.6) for length, stays in zip(first, stay, strict=True) if stays]
    last = [shortened(length, 0.5) for length in second]
    assert reached == [(ROWS, 12), (sum(stay), max(second)), (sum(stay), max(second)), (sum(stay), max(last))]
    assert max(last) < max(second) < 12


def shortened(length: int, keep: float) -> int:
    stay = max(1, math.ceil(keep * (length - 1)))
    return length if stay >= length - 1 else 1 + stay + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_exits_after_some_layers_say_what_they_say_in_the_full_model(family: str) -> None:
    every, some = tiny_model(family), tiny_model(family, exit_layers=[2, 4])
    some.backbone.load_state_dict(every.backbone.state_dict())
    for place, exit in enumerate((1, 3)):
        some.heads.classifiers[place].load_state_dict(every.heads.classifiers[exit].state_dict())
    batch = padded(every, rows_for(every, 8))
    expected = every(**batch).logits_by_exit[:, [1, 3]]
    assert torch.allclose(some(**batch).logits_by_exit, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "problem", "family"),
    [case for case in product_of("pcee, run") if case.values[0] != "entropy, all"],
)
def test_never_gives_the_full_models_logits(name: str, problem: str, family: str) -> None:
    case = case_of(family, problem)
    batch = padded(case.model, case.rows)
    with torch.no_grad():
        answers = run(case.model, load_policy(CHOICES[name]), math.inf, batch)
        full = case.model(**batch).logits
    assert torch.equal(answers.logits, full)
    assert answers.exit_layers.tolist() == [LAYERS] * ROWS


@pytest.mark.parametrize(
    ("family", "token_exit"), [*((family, None) for family in FAMILIES), *((family, LEAVING) for family in ABSOLUTE)]
)
@pytest.mark.parametrize(("name", "problem"), [("entropy", SINGLE_LABEL), ("stability", REGRESSION)])
def test_a_nan_sample_is_an_error_for_itself_alone(
    name: str, problem: str, family: str, token_exit: TokenExit | None
) -> None:
    (case, sick), policy = poisoned(family, problem, token_exit), load_policy(name)
    well = Case(case.model, case.rows, case.trace.take((~sick).nonzero().squeeze(1)))
    threshold = [midpoint_near(scores(policy, well.trace)[:-1], 0.5)] * (LAYERS - 1)

    expected = replay(case.trace, policy, threshold)
    found = answers_to(case, policy, threshold, range(ROWS), 24, extra=2)

    assert torch.equal(found.failed, sick)
    assert found.exit_layers[sick].eq(1).all()
    assert found.logits[~sick].isfinite().all()
    checked = sick.clone()
    checked[~sick] = clear_of_noise(well, policy, threshold)
    assert_same(found, expected, torch.arange(ROWS), checked)


def test_nan_that_comes_at_a_later_layer_is_found_there() -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        model.heads.classifiers[2].bias.fill_(torch.nan)
    answers = run(model, MaxProb(), math.inf, padded(model, token_rows(5)))
    assert answers.failed.all()
    assert answers.exit_layers.tolist() == [3] * 5


class Watched:
    """Segments that note how many rows and columns reach each block."""

    def __init__(self, model: MultiExitModel) -> None:
        self.model, self.layers = model, model.layers
        self.reached: list[tuple[int, int]] = []

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        return self.model.embed(inputs)

    def block(self, exit: int, carry: Carry) -> Carry:
        rows, columns = carry.hidden.shape[:2]
        self.reached.append((rows, columns))
        for part in (carry.mask, carry.attention, carry.local_attention, carry.pair_bias):
            assert part is None or (len(part) in (1, rows) and part.shape[-1] == columns)
        assert carry.position_embeddings is None or carry.position_embeddings.shape[1] == columns
        return self.model.block(exit, carry)

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        return self.model.exit(exit, carry)


@torch.no_grad()
def watch(model: MultiExitModel, policy: Policy, threshold: Any, rows: Rows) -> tuple[Answers, list[tuple[int, int]]]:
    watched = Watched(model)
    return run(watched, policy, threshold, padded(model, rows)), watched.reached


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_runs_only_the_rows_that_are_still_there(family: str) -> None:
    case = case_of(family, SINGLE_LABEL)
    threshold = midpoint_near(scores(MaxProb(), case.trace)[:-1], 0.6)
    answers, reached = watch(case.model, MaxProb(), threshold, case.rows)
    expected = [int((answers.exit_layers > exit).sum()) for exit in range(LAYERS)]
    assert [rows for rows, _ in reached] == [rows for rows in expected if rows]
    assert expected[-1] < ROWS


@pytest.mark.parametrize("family", FAMILIES)
def test_once_everybody_has_left_no_block_runs(family: str) -> None:
    model = tiny_model(family)
    _, reached = watch(model, load_policy("fixed"), 2.0, rows_for(model, 9))
    assert len(reached) == 2


def long_one_first(case: Case) -> tuple[Rows, float, int]:
    """A long row that is readier at the first exit than some short ones, a threshold between, the longest short one."""
    ready_short = scores(MaxProb(), case.trace)[0]
    long_rows = [row for row in token_rows(60, longest=40, seed=9) if len(row["input_ids"]) > 30]
    ready = scores(MaxProb(), record(case.model, long_rows))[0]
    best = int(ready.argmax())
    short = [row for row, score in zip(case.rows, ready_short.tolist(), strict=True) if score < ready[best] - 0.02]
    assert len(short) >= 8
    return [*short[:4], long_rows[best], *short[4:]], ready[best].item() - 0.01, _longest(short)


def _longest(rows: Rows) -> int:
    return max(len(row["input_ids"]) for row in rows)


@pytest.mark.parametrize("family", TEXTS)
def test_when_the_long_sample_leaves_the_others_are_cut_and_answer_the_same(family: str) -> None:
    case = case_of(family, SINGLE_LABEL)
    rows, threshold, longest = long_one_first(case)
    limits = [threshold, math.inf, math.inf]

    answers, reached = watch(case.model, MaxProb(), limits, rows)

    assert answers.exit_layers.tolist() == [LAYERS if number != 4 else 1 for number in range(len(rows))]
    assert reached == [(len(rows), _longest(rows))] + [(len(rows) - 1, longest)] * 3
    expected = replay(record(case.model, rows), MaxProb(), limits)
    assert torch.allclose(answers.logits, expected.logits, atol=TOLERANCE)


BFLOAT16 = [
    *((family, False) for family in FAMILIES),
    *((family, True) for family in FAMILIES if family != "deberta"),  # transformers' own code fails there
]


@pytest.mark.parametrize(("family", "autocast"), BFLOAT16)
def test_in_bfloat16_most_samples_leave_where_they_leave_in_float32(
    family: str, autocast: bool, record_property: Any
) -> None:
    exact = case_of(family, SINGLE_LABEL)
    rough = tiny_model(family, pooling="mean")
    if not autocast:
        rough.to(torch.bfloat16)
    threshold = [midpoint_near(scores(MaxProb(), exact.trace)[:-1], 0.5)] * (LAYERS - 1)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        answers = answers_to(replace(exact, model=rough), MaxProb(), threshold, range(ROWS), 24)
    expected = replay(exact.trace, MaxProb(), threshold)

    same_exit = (answers.exit_layers == expected.exit_layers).float().mean().item()
    same_answer = (answers.logits.argmax(dim=-1) == expected.logits.argmax(dim=-1)).float().mean().item()
    record_property("same exit in bfloat16", same_exit)
    print(f"{family}, autocast {autocast}: {same_exit:.2f} at the same exit, {same_answer:.2f} with the same answer")
    assert not answers.failed.any()
    assert answers.logits.dtype == torch.float32
    assert same_exit > 0.9
    assert same_answer > 0.9


def test_left_padding_is_never_cut() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    kept = Carry(torch.arange(12.0).view(3, 4, 1), mask).take(torch.tensor([0]))
    assert kept.hidden.shape == (1, 4, 1)


@pytest.mark.parametrize("attention", ["square", "row", "flat", "none"])
def test_taking_rows_cuts_hidden_states_mask_and_attention_alike(attention: str) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    masks = {
        "square": mask[:, None, None, :].expand(3, 1, 5, 5),
        "row": mask[:, None, None, :],
        "flat": mask,
        "none": None,
    }
    carry = Carry(torch.randn(3, 5, WIDTH), mask, masks[attention])
    kept = carry.take(torch.tensor([1, 2]))
    assert torch.equal(kept.hidden, carry.hidden[[1, 2], :3])
    assert torch.equal(kept.mask, mask[[1, 2], :3])
    wanted = {
        "square": mask[[1, 2], None, None, :3].expand(2, 1, 3, 3),
        "row": mask[[1, 2], None, None, :3],
        "flat": mask[[1, 2], :3],
    }
    if attention == "none":
        assert kept.attention is None
    else:
        assert torch.equal(kept.attention, wanted[attention])


@pytest.mark.parametrize("masked", [True, False])
def test_taking_rows_takes_their_token_scores_along(masked: bool) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]) if masked else None
    token_importance = torch.arange(12.0).view(3, 4)
    kept = Carry(torch.randn(3, 5, WIDTH), mask, token_importance=token_importance).take(torch.tensor([2, 1]))
    assert torch.equal(kept.token_importance, token_importance[[2, 1], : 2 if masked else 4])


@pytest.mark.parametrize("shared", [True, False])
def test_biases_of_pairs_and_positions_are_cut_with_the_columns_and_what_is_a_rows_own_with_the_rows(
    shared: bool,
) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    bias, positions = torch.randn(1, 2, 5, 5), torch.randn(1 if shared else 3, 5, 4)
    local = mask[:, None, None, :].expand(3, 1, 5, 5)
    carry = Carry(torch.randn(3, 5, WIDTH), mask, local_attention=local, pair_bias=bias, position_embeddings=positions)
    kept = carry.take(torch.tensor([1, 2]))
    assert torch.equal(kept.pair_bias, bias[..., :3, :3])
    assert torch.equal(kept.position_embeddings, (positions if shared else positions[[1, 2]])[:, :3])
    assert torch.equal(kept.local_attention, local[[1, 2], :, :3, :3])


def test_taking_rows_without_a_mask_cuts_no_columns() -> None:
    carry = Carry(torch.randn(3, 5, WIDTH))
    kept = carry.take(torch.tensor([2, 0]))
    assert torch.equal(kept.hidden, carry.hidden[[2, 0]])
    assert kept.mask is None
    assert kept.attention is None


def test_the_wrong_number_of_thresholds_and_nan_are_refused() -> None:
    model = tiny_model()
    batch = padded(model, token_rows(2))
    with pytest.raises(InvalidInput, match="4 exits take 1 or 3 thresholds"):
        run(model, MaxProb(), [0.5, 0.5], batch)
    with pytest.raises(InvalidInput, match="nan"):
        run(model, MaxProb(), math.nan, batch)


def test_an_answer_may_be_the_policys_own() -> None:
    """Whoever leaves gets the logits of the step, not those of the exit."""

    class Doubled(Policy):
        def step(self, exit: int, out: ExitOutput, memory: Any) -> Any:
            step = MaxProb().step(exit, out, memory)
            return replace(step, logits=2 * step.logits)

    case = case_of("bert", SINGLE_LABEL)
    thresholds = [midpoint_near(scores(MaxProb(), case.trace)[:-1], 0.5)] * (LAYERS - 1)
    assert_the_contract(case, Doubled(), thresholds)
    _, logits = run_policy(Doubled(), case.trace)
    assert torch.equal(logits, 2 * case.trace.logits)


@pytest.fixture
def exact_matrix_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_matrix_products")
@pytest.mark.parametrize(("name", "problem", "family"), ALL_CASES)
def test_the_contract_holds_on_cuda(name: str, problem: str, family: str) -> None:
    case, policy = build(family, problem, "cuda"), load_policy(CHOICES[name])
    for quantile in QUANTILES:
        threshold = midpoint_near(scores(policy, case.trace)[:-1], quantile)
        assert_the_contract(case, policy, [threshold] * (LAYERS - 1))


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_matrix_products")
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_leaves_where_the_cpu_leaves(family: str) -> None:
    here, there = build(family, SINGLE_LABEL), build(family, SINGLE_LABEL, "cuda")
    threshold = [midpoint_near(scores(MaxProb(), here.trace)[:-1], 0.5)] * (LAYERS - 1)
    found = answers_to(there, MaxProb(), threshold, range(ROWS), 24)
    checked = clear_of_noise(here, MaxProb(), threshold)
    assert_same(found, replay(here.trace, MaxProb(), threshold), torch.arange(ROWS), checked)


def test_the_encoders_are_as_tiny_as_they_should_be() -> None:
    for family in FAMILIES:
        config = encoder_config(family)
        assert (config.hidden_size, config.num_hidden_layers) == (WIDTH, LAYERS)
