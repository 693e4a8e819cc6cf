"""A layer in two halves, with token exit and a bypass as arguments."""

import pytest
import torch

from offramp.model.bypass import Bypass, BypassBranch
from offramp.model.layers import run_halves, scale_gradient
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.types.carry import Carry
from support.models import FAMILIES, LAYERS, WHOLE, WIDTH, padded, tiny_model, token_rows


def first_carry(model: MultiExitModel) -> Carry:
    return model.embed(padded(model, token_rows(7), extra=2))


def random_branch(placement: str) -> BypassBranch:
    torch.manual_seed(3)
    branch = BypassBranch(Bypass(rank=4, placement=placement), WIDTH, 1e-12)
    torch.nn.init.normal_(branch.up.weight)
    return branch.eval()


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WHOLE])
def test_two_halves_are_the_layer(family: str) -> None:
    model = tiny_model(family)
    carry = first_carry(model)
    for number in range(LAYERS):
        halves = run_halves(model._encoder_view, number, carry)
        carry = model._encoder_view.block(number, carry)
        assert torch.allclose(halves.hidden, carry.hidden, atol=1e-6)
        assert halves.exit_input is None


@torch.no_grad()
@pytest.mark.parametrize("placement", ["block", "ffn"])
def test_a_bypass_of_the_first_token_is_the_first_column_of_that_of_all(placement: str) -> None:
    setting = TokenExit(keep_ratio={1: 0.5})
    model, branch = tiny_model(token_exit=setting), random_branch(placement)
    carry, encoder = first_carry(model), model._encoder_view

    every = run_halves(encoder, 0, carry, token_exit=setting, bypass=branch)
    first = run_halves(encoder, 0, carry, token_exit=setting, bypass=branch, first_token_only=True)
    plain = run_halves(encoder, 0, carry, token_exit=setting)

    assert every.hidden.shape[1] < carry.hidden.shape[1]
    assert every.exit_input is not None
    assert first.exit_input is not None
    assert every.exit_input.shape == every.hidden.shape
    assert torch.allclose(first.exit_input, every.exit_input[:, :1], atol=1e-6)
    for other in (first, every):
        assert torch.equal(other.hidden, plain.hidden)


def test_a_branch_starts_at_the_tokens_that_stay() -> None:
    layer_input, attended = torch.rand(2, 5, WIDTH), torch.rand(2, 3, WIDTH)
    block, ffn = random_branch("block"), random_branch("ffn")
    assert block.source(layer_input, attended, None) is layer_input
    assert torch.equal(block.source(layer_input, attended, lambda states: states[:, :3]), layer_input[:, :3])
    assert ffn.source(layer_input, attended, lambda states: states[:, :3]) is attended


def test_a_scaled_gradient_keeps_the_values() -> None:
    hidden, exit_input = (torch.rand(2, 3, 4, requires_grad=True) for _ in range(2))
    scaled = scale_gradient(Carry(hidden, exit_input=exit_input), 0.25)
    assert torch.allclose(scaled.hidden, hidden)
    assert scaled.exit_input is not None
    (scaled.hidden.sum() + scaled.exit_input.sum()).backward()
    assert hidden.grad is not None
    assert exit_input.grad is not None
    assert hidden.grad.eq(0.25).all()
    assert exit_input.grad.eq(0.25).all()
