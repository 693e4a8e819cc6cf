from collections import Counter

import pytest
import torch

from offramp.early_exit.loop import run
from offramp.errors import InvalidInput
from offramp.model.heads import Heads
from offramp.model.modeling import MultiExitModel
from offramp.policies.confidence import Entropy
from offramp.training.fit import default_arguments
from offramp.training.objectives.distillation import SelfDistillation
from offramp.training.objectives.equilibrium import GradientEquilibrium
from offramp.training.objectives.joint import Joint
from offramp.training.objectives.staged import TwoStage
from offramp.training.trainer import ExitTrainer
from support.models import LAYERS, padded, tiny_model, token_rows


def test_an_exit_says_part_of_what_it_said_so_far() -> None:
    plain, model = tiny_model(), tiny_model(memory=0.75)
    assert model.load_state_dict(plain.state_dict())
    batch = padded(model, token_rows(6))
    own, found = plain(**batch).exit_logits, model(**batch).exit_logits
    memory_logits = own[0]
    assert torch.equal(found[0], memory_logits)
    for exit in range(1, LAYERS):
        memory_logits = 0.25 * memory_logits + 0.75 * own[exit]
        assert torch.allclose(found[exit], memory_logits, atol=1e-6)
    assert torch.equal(model(**batch).logits, found[-1])


def test_a_memory_of_one_is_none() -> None:
    plain, model = tiny_model(), tiny_model(memory=1.0)
    batch = padded(model, token_rows(6))
    assert torch.equal(model(**batch).logits_by_exit, plain(**batch).logits_by_exit)


def test_an_exit_reads_its_state_once_for_memory_and_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate gets what the exit's last map got; both are those of a model without memory."""
    plain, model = tiny_model(certainty=True), tiny_model(certainty=True, memory=0.75)
    assert model.load_state_dict(plain.state_dict())
    batch = padded(model, token_rows(6))
    expected, calls = plain(**batch), Counter()
    read = Heads.features
    monkeypatch.setattr(Heads, "features", lambda self, exit, *args: calls.update([exit]) or read(self, exit, *args))
    found = model(**batch)
    assert calls == dict.fromkeys(range(LAYERS), 1)
    assert torch.equal(found.certainty_by_exit, expected.certainty_by_exit)
    assert torch.equal(found.logits_by_exit[:, 0], expected.logits_by_exit[:, 0])
    answers = run(model, Entropy(), 2.0, batch)  # no row leaves before the last exit
    assert calls == dict.fromkeys(range(LAYERS), 2)
    assert torch.equal(answers.logits, found.logits)


@pytest.mark.parametrize("memory", [0, -0.5, 1.5])
def test_a_memory_out_of_its_range_is_refused(memory: float) -> None:
    with pytest.raises(InvalidInput, match="memory must be above 0 and at most 1"):
        tiny_model(memory=memory)


def test_the_memory_is_saved_with_the_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(memory=0.9)
    model.save_pretrained(folder)
    back = MultiExitModel.from_pretrained(folder)
    batch = padded(model, token_rows(6))
    assert torch.equal(back(**batch).logits_by_exit, model(**batch).logits_by_exit)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (TwoStage(), "TwoStage freezes the last exit, and memory"),
        (TwoStage(freeze=True), "TwoStage freezes the last exit, and memory"),
        (SelfDistillation(), "SelfDistillation freezes the last exit, and memory"),
        (GradientEquilibrium(), "GradientEquilibrium scales what each exit sends back, and memory"),
    ],
)
def test_objectives_that_a_memory_would_upset_are_refused(
    objective: object, message: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = default_arguments(tmp_path_factory.mktemp("run"), eval_strategy="no")
    with pytest.raises(InvalidInput, match=message):
        ExitTrainer(tiny_model(memory=0.9), settings, objective=objective)
    ExitTrainer(tiny_model(memory=0.9), settings, objective=Joint())
