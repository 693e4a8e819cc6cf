"""A compiled model answers as the eager one does, and no batch size or length has it compiled again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx, nn

from offramp.early_exit.loop import run
from offramp.errors import UnsupportedBackbone
from offramp.inference.record import record
from offramp.inference.torch_compile import Compiled
from offramp.model.backbones.resnet import CifarResNetConfig
from offramp.model.bypass import Bypass
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.policies.confidence import MaxProb
from offramp.policies.replay import scores
from offramp.types.outputs import Answers
from support.models import FAMILIES, LAYERS, padded, rows_for, tiny_model
from support.traces import threshold_between

COMPILED = [family for family in FAMILIES if family != "deberta"]
SIZES = (11, 1, 16, 2, 9, 5, 3, 17, 4, 13, 7, 6, 14, 8, 10, 15, 12)
THREE_TOKENS = {"input_ids": [5, 9, 20], "attention_mask": [1, 1, 1]}


class Counting:
    """A backend of torch.compile that counts graphs and runs them as they are; it needs no compiler."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """The first call of torch.compile in a process loads what takes seconds."""
    torch.compile(nn.Linear(2, 2), backend=Counting())(torch.ones(1, 2))


def several_tokens(model: MultiExitModel, count: int) -> list[dict[str, Any]]:
    """Rows of two tokens and more, as tokenizers make them."""
    rows = rows_for(model, 3 * count)
    return [row for row in rows if len(row.get("input_ids", "image")) > 1][:count]


def threshold_for(model: MultiExitModel) -> list[float]:
    """About half of those who come to an exit leave there."""
    seen = scores(MaxProb(), record(model, several_tokens(model, 60)))  # (L, N)
    thresholds, here = [], torch.ones(60, dtype=torch.bool)
    for score in seen[:-1]:
        thresholds.append(threshold_between(score[here], 0.5))
        here &= score < thresholds[-1]
    return thresholds


def warmed_up(compiled: Compiled, model: MultiExitModel) -> None:
    """Let every block meet every kind of batch: one row and three, with padding and without; as square as can be."""
    three = several_tokens(model, 3) if model.main_input_name == "pixel_values" else [THREE_TOKENS] * 3
    batches = [padded(model, rows, extra) for rows in (three, three[:1]) for extra in (0, 1)]
    if any(isinstance(part, (nn.Conv1d, nn.Conv2d)) for part in model.modules()):  # has a graph for 16 rows and more
        batches.append(padded(model, several_tokens(model, 17)))
    for batch in batches:
        run(compiled, MaxProb(), math.inf, batch)


def assert_equal(found: Answers, wanted: Answers) -> None:
    assert torch.equal(found.exit_layers, wanted.exit_layers)
    assert torch.equal(found.failed, wanted.failed)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5, equal_nan=True)


@dataclass(frozen=True)
class Warm:
    """A compiled model that has met every kind of batch."""

    model: MultiExitModel
    compiled: Compiled
    counting: Counting

    @classmethod
    def of(cls, model: MultiExitModel) -> Warm:
        counting = Counting()
        compiled = Compiled(model, counting)
        with torch.no_grad():
            warmed_up(compiled, model)
        return cls(model, compiled, counting)


@pytest.fixture(scope="module")
def warm_bert() -> Warm:
    return Warm.of(tiny_model("bert", pooling="mean", exit_layers=[1, 4]))


def assert_sizes_cost_no_graph(warm_model: Warm) -> int:
    """How many graphs there are in the end."""
    model, compiled, counting = warm_model.model, warm_model.compiled, warm_model.counting
    threshold = threshold_for(model)
    rows, left = several_tokens(model, sum(SIZES)), []
    with torch.no_grad():
        warm = counting.graphs
        for size in SIZES:
            chosen, rows = rows[:size], rows[size:]
            batch = padded(model, chosen, size % 3)
            found = run(compiled, MaxProb(), threshold, batch)
            assert_equal(found, run(model, MaxProb(), threshold, batch))
            left.append(found.exit_layers)
    assert torch.cat(left).unique().tolist() == model.layers
    assert counting.graphs == warm
    return counting.graphs


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPILED)
def test_once_every_kind_of_batch_was_there_no_size_is_compiled_again(family: str) -> None:
    graphs = assert_sizes_cost_no_graph(Warm.of(tiny_model(family, pooling="mean")))
    assert graphs <= LAYERS * (4 + 2)


@pytest.mark.slow
def test_no_size_is_compiled_again_and_a_block_has_four_graphs_and_an_exit_two(warm_bert: Warm) -> None:
    assert assert_sizes_cost_no_graph(warm_bert) == 2 * (4 + 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "exits",
    [
        {"bypass": Bypass(rank=4)},
        {"bypass": Bypass(rank=4, placement="ffn"), "exit_layers": [1, 3, 4]},
        {"certainty": True, "memory": 0.6, "head": "attention"},
        {"bypass": Bypass(rank=4), "memory": 0.6, "head": "pooler", "pooling": "mean"},
    ],
)
def test_nor_with_anything_else_that_a_model_may_have(exits: dict[str, Any]) -> None:
    assert_sizes_cost_no_graph(Warm.of(tiny_model("bert", **exits)))


@pytest.mark.slow
def test_a_model_deeper_than_torch_keeps_graphs_of_one_function_is_compiled_to_its_end() -> None:
    torch.manual_seed(0)
    model = MultiExitModel.from_backbone(CifarResNetConfig(depths=[10], hidden_sizes=[4]), 3).eval()
    counting, batch = Counting(), padded(model, rows_for(model, 4))
    with torch.no_grad():
        found = run(Compiled(model, counting), MaxProb(), math.inf, batch)
        assert_equal(found, run(model, MaxProb(), math.inf, batch))
    assert counting.graphs == 2 * 10


def test_new_weights_answer_at_once() -> None:
    model, counting = tiny_model("bert", exit_layers=[4]), Counting()
    compiled, batch = Compiled(model, counting), padded(model, several_tokens(model, 4), 1)
    with torch.no_grad():
        before = run(compiled, MaxProb(), math.inf, batch)
        graphs = counting.graphs
        model.heads.classifiers[-1].get_parameter("bias").add_(torch.tensor([1.0, 2.0, 3.0]))
        after = run(compiled, MaxProb(), math.inf, batch)
    torch.testing.assert_close(after.logits - before.logits, torch.tensor([1.0, 2.0, 3.0]).expand(4, 3))
    assert counting.graphs == graphs


def test_exits_that_are_not_read_are_not_compiled_and_exit_0_stays_eager() -> None:
    model, counting = tiny_model("bert", lexical=LexicalExit(buckets=61), exit_layers=[2, 4]), Counting()
    compiled, batch = Compiled(model, counting), padded(model, several_tokens(model, 6), 1)
    with torch.no_grad():
        for threshold, layer, graphs in ((-math.inf, 0, 0), (math.inf, 4, 3)):  # two blocks and the last exit
            found = run(compiled, MaxProb(), threshold, batch, exit_layers=(0, 4))
            assert_equal(found, run(model, MaxProb(), threshold, batch, exit_layers=(0, 4)))
            assert (found.exit_layers.unique().tolist(), counting.graphs) == ([layer], graphs)


@pytest.mark.slow
def test_a_nan_row_is_an_error_for_itself_alone(warm_bert: Warm) -> None:
    model = warm_bert.model
    rows = several_tokens(model, 6)
    threshold = threshold_for(model)
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight[39] = torch.nan  # no other row has this token
        rows[2]["input_ids"][0] = 39
        batch = padded(model, rows)
        found = run(warm_bert.compiled, MaxProb(), threshold, batch)
        assert_equal(found, run(model, MaxProb(), threshold, batch))
    assert found.failed.tolist() == [False, False, True, False, False, False]


@pytest.mark.slow
def test_in_bfloat16_a_compiled_model_says_what_the_eager_one_says_in_bfloat16() -> None:
    model = tiny_model("bert", exit_layers=[4]).to(torch.bfloat16)
    batch = padded(model, several_tokens(model, 9))
    with torch.inference_mode():
        found = run(Compiled(model, Counting()), MaxProb(), 0.5, batch)
        assert found.logits.dtype == torch.float32
        assert_equal(found, run(model, MaxProb(), 0.5, batch))


@pytest.mark.slow
def test_under_autocast_a_compiled_model_says_what_the_eager_one_says_there() -> None:
    model = tiny_model("bert", exit_layers=[2, 4])
    batch = padded(model, several_tokens(model, 9))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(Compiled(model, Counting()), MaxProb(), 0.5, batch)
        assert found.logits.dtype == torch.float32
        assert_equal(found, run(model, MaxProb(), 0.5, batch))


@pytest.mark.parametrize(
    ("family", "exits"), [("bert", {"token_exit": TokenExit(keep_ratio={1: 0.5})}), ("deberta", {})]
)
def test_what_torch_cannot_trace_is_refused_by_name(family: str, exits: dict[str, Any]) -> None:
    model = tiny_model(family, **exits)
    batch = padded(model, several_tokens(model, 4), 1)
    with torch.no_grad(), pytest.raises(UnsupportedBackbone, match=r"block_0: torch[.]compile cannot trace it"):
        run(Compiled(model, Counting()), MaxProb(), math.inf, batch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("family", ["bert", "modernbert", "vit"])
def test_compiled_by_inductor_the_answers_are_those_of_the_eager_model(family: str) -> None:
    model = tiny_model(family, pooling="mean")
    compiled, threshold = Compiled(model), threshold_for(model)
    with torch.inference_mode():
        for size in (12, 1, 5):
            batch = padded(model, several_tokens(model, size), 2)
            assert_equal(run(compiled, MaxProb(), threshold, batch), run(model, MaxProb(), threshold, batch))
