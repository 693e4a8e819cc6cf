"""Decisions are taken in float32, whether the weights are bfloat16 or autocast makes the products so."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.early_exit.loop import run
from offramp.inference.record import record
from offramp.model.bypass import Bypass
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.confidence import MaxProb
from offramp.policies.registry import load_policy
from offramp.policies.replay import run_policy
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace
from support.models import FAMILIES, IMAGES, LAYERS, VOCABULARY, padded, rows_for, tiny_model
from support.traces import PLAIN_CASES, first_exits

Way = Callable[[MultiExitModel], AbstractContextManager[Any]]


def in_weights(model: MultiExitModel) -> AbstractContextManager[Any]:
    model.to(torch.bfloat16)
    return nullcontext()


def by_autocast(model: MultiExitModel) -> AbstractContextManager[Any]:
    return torch.autocast(model.device.type, dtype=torch.bfloat16)


WAYS = pytest.mark.parametrize("way", [in_weights, by_autocast])


class Noted(Policy):
    """Another policy, with all that it was given and all that it said."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.given: list[ExitOutput] = []
        self.said: list[Step] = []

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        step = self.policy.step(exit, out, memory)
        self.given.append(out)
        self.said.append(step)
        return step

    def trace(self) -> Trace:
        certain = [out.certainty for out in self.given if out.certainty is not None]
        logits = torch.stack([out.logits for out in self.given])
        return Trace(logits, None, torch.stack(certain) if certain else None, problem_type=self.given[0].problem_type)


def at_full_depth(model: MultiExitModel, policy: Policy, way: Way, batch: Mapping[str, Tensor]) -> Noted:
    noted = Noted(policy)
    with torch.inference_mode(), way(model):
        answers = run(model, noted, torch.inf, batch)
    assert len(noted.said) == len(model.layers)
    assert answers.logits.dtype == torch.float32
    return noted


def assert_all_float32(noted: Noted) -> None:
    for out, step in zip(noted.given, noted.said, strict=True):
        seen = [out.logits, out.certainty, step.score, step.logits, *step.memory]
        assert {part.dtype for part in seen if part is not None and part.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(("data", "problem_type"), PLAIN_CASES)
def test_every_policy_scores_in_float32_what_the_exits_said(data: Mapping[str, Any], problem_type: str) -> None:
    """A replay outside of autocast, from logits in float32, comes to the very same scores and answers."""
    outputs = 1 if problem_type == REGRESSION else 3
    model = tiny_model("bert", outputs, problem_type=problem_type, certainty=True)
    policy, batch = load_policy(first_exits(data, LAYERS)), padded(model, rows_for(model, 9))
    for way in (by_autocast, in_weights):  # which changes the model
        noted = at_full_depth(model, policy, way, batch)
        assert_all_float32(noted)
        score, logits = run_policy(policy, noted.trace())
        assert torch.equal(torch.stack([step.score for step in noted.said]), score), way
        assert torch.equal(torch.stack([step.logits for step in noted.said]), logits), way


@WAYS
@pytest.mark.parametrize(
    "exits",
    [
        *({"head": head, "certainty": True} for head in ("attention", "pooler", "shared_pooler")),
        {"bypass": Bypass(rank=4), "memory": 0.6},
        {"token_exit": TokenExit(keep_ratio={1: 0.6, 3: 0.5}), "memory": 0.9},
    ],
)
def test_exits_speak_float32_whatever_they_read(exits: dict[str, Any], way: Way) -> None:
    model = tiny_model("bert", pooling="mean", **exits)
    assert_all_float32(at_full_depth(model, MaxProb(), way, padded(model, rows_for(model, 9))))


NAN_CASES = [
    (family, way)
    for family in FAMILIES
    for way in (in_weights, by_autocast)
    if (family, way) != ("deberta", by_autocast)  # transformers' own code fails there: its mask value overflows
]


@pytest.mark.parametrize(("family", "way"), NAN_CASES)
def test_a_nan_row_is_an_error_for_itself_alone(family: str, way: Way) -> None:
    model = tiny_model(family, pooling="mean")
    rows = rows_for(model, 8)
    with torch.inference_mode(), way(model):
        well = run(model, MaxProb(), torch.inf, padded(model, rows))
        if family in IMAGES:
            rows[2]["pixel_values"][0, 0, 0] = torch.nan
        else:
            rows[2]["input_ids"][0] = VOCABULARY - 1
            model.backbone.get_input_embeddings().weight[VOCABULARY - 1] = torch.nan
        found = run(model, MaxProb(), torch.inf, padded(model, rows))
    others = torch.arange(8) != 2
    assert torch.equal(found.failed, ~others)
    assert found.exit_layers.tolist() == [1 if row == 2 else LAYERS for row in range(8)]
    torch.testing.assert_close(found.logits[others], well.logits[others], rtol=0, atol=0.1)


def test_a_model_loaded_in_bfloat16_runs_in_it(tmp_path: Path) -> None:
    saved = tiny_model("bert")
    saved.save_pretrained(tmp_path)
    model = MultiExitModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    batch = padded(model, rows_for(model, 9))
    with torch.inference_mode():
        found = run(model, MaxProb(), 0.5, batch)
        wanted = run(saved.to(torch.bfloat16), MaxProb(), 0.5, batch)
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.exit_layers, wanted.exit_layers)


@pytest.mark.parametrize(("way", "name"), [(in_weights, "torch-bfloat16"), (by_autocast, "torch-autocast-bfloat16")])
def test_a_trace_names_the_precision_that_it_was_recorded_in(way: Way, name: str) -> None:
    model = tiny_model("bert")
    with way(model):
        trace = record(model, rows_for(model, 3))
    assert trace.provenance["engine"] == name
    assert trace.logits.dtype == torch.float32
