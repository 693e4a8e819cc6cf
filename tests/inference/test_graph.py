"""The exported graph leaves where the torch loop leaves, with the same logits: policies x encoders, any batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from offramp.early_exit.loop import run
from offramp.inference.graph_inputs import GraphOutput
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.record import record
from offramp.model.bypass import Bypass
from offramp.model.heads import HEADS
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.policies.base import Policy
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.outputs import Answers
from offramp.types.problem_types import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from support.contracts import CHOICES, LEAVING, OUTPUTS, Case, clear_of_noise
from support.graphs import arrays, gated, graph_of, parts_of
from support.models import ABSOLUTE, FAMILIES, LAYERS, TEXTS, encoder_config, padded, rows_for, tiny_model, token_rows
from support.traces import has_meaning, threshold_between

ROWS = 64
BATCHES = [(1, 0, 8), (7, 3, ROWS), (64, 0, ROWS)]
"""Rows at once, columns of padding more than they need, how many rows are asked."""
TOLERANCE = 1e-4

POLICIES: dict[str, dict[str, Any]] = {
    **CHOICES,
    "pcee, three in a row": {"name": "pcee", "patience": 3},
    "stability, once": {"name": "stability", "patience": 1},
    "stability, all": {"name": "stability", "ensemble": "all"},
}
# one of each kind: without memory, with it, fitted, with a wrapper, ensembles; the others are slow
QUICK = {
    SINGLE_LABEL: (
        "certainty",
        "consistency",
        "divergence, js in a row",
        "entropy",
        "entropy, by class",
        "fixed",
        "gain",
        "margin, per exit",
        "patience",
        "pcee, run",
    ),
    MULTI_LABEL: ("margin", "patience"),
    REGRESSION: ("consistency of values", "stability, run"),
}
POLICY_CASES = [
    pytest.param(name, problem, marks=[] if name in QUICK.get(problem, POLICIES) else [pytest.mark.slow])
    for problem in PROBLEM_TYPES
    for name, data in POLICIES.items()
    if has_meaning(load_policy(data), problem, LAYERS)
]

# with memory, which is that of the exits they read; and one without
REMEMBERING = ("consistency", "divergence, js in a row", "entropy", "patience", "pcee, run")
LEXICAL = LexicalExit(buckets=61)

KINDS: dict[str, dict[str, Any]] = {
    "albert": {"family": "albert"},
    "modernbert": {"family": "modernbert", "lexical": LEXICAL},
    "cifar_resnet": {"family": "cifar_resnet", "num_labels": 1, "certainty": False},
    "bert, all that exits may have": {
        "bypass": Bypass(rank=4),
        "memory": 0.6,
        "token_exit": LEAVING,
        "exit_layers": [1, 3, 4],
        "lexical": LEXICAL,
    },
    "bert, memory": {"bypass": Bypass(rank=4), "memory": 0.6, "lexical": LEXICAL},
}


@dataclass(frozen=True)
class Exported:
    case: Case
    graph: OnnxSession
    policy: Policy
    read: tuple[int, ...]  # the layers whose exits the policy reads


def case_of(model: MultiExitModel) -> Case:
    rows = rows_for(model, ROWS)
    return Case(model, rows, record(model, rows, batch_size=16))


@cache
def bert(problem: str, lexical: LexicalExit | None = None) -> Case:
    """The same weights for every kind of problem; what a layer and an exit compute does not depend on it."""
    model = tiny_model(num_labels=3, problem_type=problem, pooling="mean", certainty=True, lexical=lexical)
    model.load_state_dict(gated().state_dict(), strict=lexical is None)
    return case_of(model)


@cache
def kind(name: str) -> Case:
    return case_of(built(**KINDS[name]))


def built(**exits: Any) -> MultiExitModel:
    model = tiny_model(**({"family": "bert", "pooling": "mean", "certainty": True} | exits))
    for branch in model.bypasses:  # shut at the start
        torch.nn.init.normal_(branch.up.weight)
    return model


def exported_from(
    case: Case, data: dict[str, Any], layers: Sequence[int] | None = None, read: Sequence[int] | None = None
) -> Exported:
    """The graph has the exits at `layers` (None = all); the policy reads those at `read` (None = all of these)."""
    policy = load_policy(data)
    graph = graph_of(case.model, policy, layers, read)
    held = replace(case, trace=case.trace.select(graph.metadata.layers))
    return Exported(held, graph, policy, graph.metadata.layers_read)


def assert_the_contract(one: Exported, thresholds: Sequence[float]) -> set[int]:
    """The graph is asked in batches of several sizes, the loop for all at once; the exits that rows left at."""
    case, exits = one.case, torch.tensor(one.graph.metadata.layers)
    with torch.no_grad():
        expected = run(case.model, one.policy, thresholds, padded(case.model, case.rows), exit_layers=one.read)
    checked = clear_of_noise(replace(case, trace=case.trace.select(one.read)), one.policy, thresholds)
    limits = dict(zip(one.read, thresholds, strict=False))
    thresholds = [limits.get(layer, -math.inf) for layer in exits[:-1].tolist()]  # nobody asks for those not read
    assert checked.float().mean() > 0.8
    shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    for size, extra, count in BATCHES:
        for numbers in shuffled[:count].split(size):
            chosen = [case.rows[number] for number in numbers.tolist()]
            told = one.graph.run(arrays(padded(case.model, chosen, extra)), thresholds)
            assert_same(told, expected, numbers, checked[numbers])
            sure = numbers[checked[numbers]]
            ran = (exits <= expected.exit_layers[sure].unsqueeze(1)).unsqueeze(-1)  # (K, L, 1)
            if exits[0] == 0:  # integers with a common scale: equal to the last bit
                assert np.array_equal(told.logits_by_exit[:, 0], case.trace.logits[0, numbers])
            said = case.trace.logits[:, sure].transpose(0, 1).where(ran, torch.nan)
            assert np.allclose(
                told.logits_by_exit[checked[numbers].numpy()], said, atol=TOLERANCE, rtol=0, equal_nan=True
            )
            if case.trace.certainty is not None:
                sures = case.trace.certainty[:, sure].T.where(ran.squeeze(-1), torch.nan)
                found = told.certainty_by_exit[checked[numbers].numpy()]
                assert np.allclose(found, sures, atol=TOLERANCE, rtol=0, equal_nan=True)
    return set(expected.exit_layers.tolist())


def assert_same(told: GraphOutput, expected: Answers, numbers: torch.Tensor, check: torch.Tensor) -> None:
    rows = numbers[check]
    assert told.exit_layers[check.numpy()].tolist() == expected.exit_layers[rows].tolist()
    assert np.allclose(told.logits[check.numpy()], expected.logits[rows], atol=TOLERANCE, rtol=0)


def exits_where_the_contract_holds(one: Exported) -> set[int]:
    """At thresholds at which few leave early, and many; and with another one at each exit; the exits in use."""
    seen, exits = scores(one.policy, one.case.trace.select(one.read)), len(one.read)
    left = [assert_the_contract(one, [threshold_between(seen[:-1], place)] * (exits - 1)) for place in (0.4, 0.75)]
    ladder = [threshold_between(score, 0.9 - 0.2 * exit) for exit, score in enumerate(seen[:-1])]
    return set.union(*left, assert_the_contract(one, ladder))


def assert_the_contract_wherever_rows_leave(one: Exported) -> None:
    assert len(exits_where_the_contract_holds(one)) > 1  # else nothing was tested


@pytest.mark.parametrize(("name", "problem"), POLICY_CASES)
def test_with_any_policy_the_graph_answers_as_the_loop_does(name: str, problem: str) -> None:
    assert_the_contract_wherever_rows_leave(exported_from(bert(problem), POLICIES[name]))


OTHERS = ["albert", "bert, all that exits may have", pytest.param("modernbert", marks=pytest.mark.slow)]


@pytest.mark.parametrize("policy", ["entropy", "patience"])
@pytest.mark.parametrize("name", OTHERS)
def test_with_another_encoder_or_other_exits_the_graph_answers_as_the_loop_does(name: str, policy: str) -> None:
    assert_the_contract_wherever_rows_leave(exported_from(kind(name), POLICIES[policy]))


def test_where_masks_have_a_row_for_each_token_the_graph_answers_as_the_loop_does() -> None:
    case = case_of(built(family="deberta", exit_layers=[2, 4]))
    assert_the_contract_wherever_rows_leave(exported_from(case, POLICIES["entropy"]))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        pytest.param(
            *case.values,
            marks=[] if case.values in [(name, SINGLE_LABEL) for name in REMEMBERING] else [pytest.mark.slow],
        )
        for case in POLICY_CASES
    ],
)
def test_an_exit_that_a_policy_does_not_read_is_no_part_of_it(name: str, problem: str) -> None:
    """As in the loop and in a replay of the exits that it reads: no row leaves there, and no memory of it is kept."""
    one = exported_from(bert(problem, LEXICAL), POLICIES[name], read=(0, 1, 3, 4))
    assert_the_contract_wherever_rows_leave(one)


@pytest.mark.parametrize(
    ("name", "layers", "read"),
    [
        ("bert, memory", (0, 2, 4), (2, 4)),
        ("albert", (2, 3, 4), (2, 4)),
        pytest.param("modernbert", (0, 1, 3, 4), (0, 3, 4), marks=pytest.mark.slow),
        pytest.param("bert, all that exits may have", (1, 3, 4), (1, 4), marks=pytest.mark.slow),
        pytest.param("cifar_resnet", (2, 4), (2, 4), marks=pytest.mark.slow),
    ],
)
def test_blocks_before_an_exit_that_a_graph_leaves_out_run_all_the_same(
    name: str, layers: tuple[int, ...], read: tuple[int, ...]
) -> None:
    policy = POLICIES["fixed" if name == "cifar_resnet" else "entropy"]
    assert_the_contract_wherever_rows_leave(exported_from(kind(name), policy, layers, read))


@pytest.mark.parametrize("policy", ["fixed", "stability"])
def test_a_graph_of_images_answers_as_the_loop_does(policy: str) -> None:
    assert_the_contract_wherever_rows_leave(exported_from(kind("cifar_resnet"), POLICIES[policy]))


@pytest.mark.parametrize(
    ("name", "problem"), [case for case in POLICY_CASES if not str(case.values[0]).endswith(", all")]
)
def test_never_gives_the_full_models_logits(name: str, problem: str) -> None:
    one = exported_from(bert(problem), POLICIES[name])
    told = one.graph.run(arrays(padded(one.case.model, one.case.rows)), math.inf)
    assert told.exit_layers.tolist() == [LAYERS] * ROWS
    assert np.allclose(told.logits, one.case.trace.logits[-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", OTHERS)
def test_where_all_texts_are_one_token_some_may_leave_too(name: str) -> None:
    case = kind(name)
    rows = [{"input_ids": [number], "attention_mask": [1]} for number in (7, 9, 11, 13)]
    numbers = np.array([1, 3, 0, 2]) % len(case.model.layers)  # of the exits
    layers = np.array(case.model.layers)[numbers]
    fixed = graph_of(case.model, load_policy("fixed"))
    thresholds = np.repeat(layers[:, None] - 0.5, len(case.model.layers) - 1, axis=1)
    told = fixed.run(arrays(padded(case.model, rows)), thresholds)
    assert told.exit_layers.tolist() == layers.tolist()
    expected = record(case.model, rows).logits[numbers, np.arange(4)]
    assert np.allclose(told.logits, expected, atol=TOLERANCE, rtol=0)


def assert_int8_is_exact(model: MultiExitModel, policy: str = "entropy") -> None:
    """Alone, in batches, shuffled, with more padding: one answer, that of a replay, equal to the last bit."""
    rule, rows = load_policy(POLICIES[policy]), rows_for(model, ROWS)
    engine = OnnxEngine(graph_of(model, rule, int8=True), model.config)
    trace = record(engine, rows, batch_size=1)
    thresholds = [threshold_between(scores(rule, trace)[:-1], 0.6)] * (len(model.layers) - 1)
    expected = replay(trace, rule, thresholds)
    assert len(set(expected.exit_layers.tolist())) > 1  # else nothing was tested
    shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    for size, extra in [(1, 0), (1, 1), (7, 0), (32, 2), (64, 5), (64, 51)]:
        extra = extra if "input_ids" in rows[0] else 0
        for numbers in shuffled.split(size):
            batch = padded(model, [rows[number] for number in numbers.tolist()], extra)
            assert torch.equal(engine.all_exits(batch).logits, trace.logits[:, numbers])
            told = engine.graph.run(arrays(batch), thresholds)
            assert told.exit_layers.tolist() == expected.exit_layers[numbers].tolist()
            assert np.array_equal(told.logits, expected.logits[numbers])


@pytest.mark.parametrize("name", OTHERS)
def test_in_int8_nothing_depends_on_the_batch(name: str) -> None:
    assert_int8_is_exact(kind(name).model)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("exits", [{"pooling": "mean"}, {"head": "shared_pooler"}, {"head": "attention"}], ids=str)
def test_in_int8_nothing_depends_on_the_batch_in_any_family(exits: dict[str, Any], family: str) -> None:
    assert_int8_is_exact(tiny_model(family, **exits))


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["weighted_mean", "weighted_sum", "none"])
def test_in_int8_nothing_depends_on_the_batch_where_tokens_leave(fusion: str) -> None:
    config = encoder_config(num_attention_heads=8)  # of a row alone ONNX Runtime's mean over so many differs
    torch.manual_seed(0)
    exits = {"pooling": "mean", "token_exit": replace(LEAVING, fusion=fusion)}
    assert_int8_is_exact(MultiExitModel.from_backbone(config, 3, **exits).eval())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_answers_as_a_graph_as_in_the_loop(family: str) -> None:
    left: set[int] = set()
    exits = {} if family == "cifar_resnet" else {"exit_layers": [1, 3, 4]}
    exits |= {"lexical": LEXICAL} if family in TEXTS else {}
    for problem in (SINGLE_LABEL, MULTI_LABEL, REGRESSION):
        model = tiny_model(family, OUTPUTS[problem], problem_type=problem, pooling="mean", **exits)
        for policy in ("stability",) if problem == REGRESSION else ("divergence", "margin", "patience"):
            if has_meaning(load_policy(POLICIES[policy]), problem):
                left |= exits_where_the_contract_holds(exported_from(case_of(model), POLICIES[policy]))
    assert len(left) > 1  # else nothing was tested


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_any_head_answers_as_a_graph_as_in_the_loop(head: str, pooling: str, family: str) -> None:
    model = tiny_model(family, head=head, pooling=pooling)
    assert_the_contract_wherever_rows_leave(exported_from(case_of(model), POLICIES["max-prob"]))


@pytest.mark.slow
def test_an_exit_with_memory_and_a_gate_reads_its_state_once_in_a_graph() -> None:
    """FastBERT's head has two tanh: each is in the graph once, not once for the memory and once for the gate."""
    model = tiny_model(head="attention", certainty=True, memory=0.75, exit_layers=[2, 4])
    for level in parts_of(model, "of a test").levels:
        assert [node.op_type for node in level.nodes].count("Tanh") == 2
    batch = padded(model, token_rows(6))
    output = graph_of(model, load_policy("certainty")).run(arrays(batch), math.inf)
    expected = model(**batch)
    assert np.allclose(output.logits_by_exit, expected.logits_by_exit.detach(), atol=1e-5)
    assert np.allclose(output.certainty_by_exit, expected.certainty_by_exit.detach(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ABSOLUTE)
def test_where_tokens_leave_the_graph_answers_as_the_loop_does(family: str) -> None:
    case = case_of(tiny_model(family, pooling="mean", token_exit=LEAVING))
    for policy in ("entropy", "patience"):
        assert_the_contract_wherever_rows_leave(exported_from(case, POLICIES[policy]))
