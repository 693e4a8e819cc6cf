import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import UnknownName
from offramp.heads import HEADS, POOLINGS, Heads, pool
from offramp.model import MultiExitModel
from tiny import encoder_config

EXITS, WIDTH, CLASSES = 3, 8, 4


def heads(head: str = "linear", pooling: str = "first", dropout: float = 0.0) -> Heads:
    torch.manual_seed(0)
    return Heads(head, pooling, [WIDTH] * EXITS, CLASSES, dropout)


def states() -> tuple[Tensor, Tensor]:
    """(5, 6, D) hidden states, (5, 6) mask."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([6, 3, 1, 4, 6])
    return torch.randn(5, 6, WIDTH, generator=generator), (torch.arange(6) < lengths[:, None]).long()


def linear(layer: torch.nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def pooled_by_hand(pooling: str) -> NDArray[np.float32]:
    hidden, mask = (part.numpy() for part in states())
    if pooling == "first":
        return hidden[:, 0]
    return np.stack([row[real == 1].mean(axis=0) for row, real in zip(hidden, mask, strict=True)])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("exit", range(EXITS))
def test_linear_is_one_map_an_exit(exit: int, pooling: str) -> None:
    module = heads("linear", pooling)
    expected = linear(module.classifiers[exit], pooled_by_hand(pooling))
    assert np.allclose(module(exit, *states()).detach().numpy(), expected, atol=1e-6)
    assert len(module.poolers) == 0


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("exit", range(EXITS))
def test_pooler_is_one_tanh_an_exit(exit: int, pooling: str) -> None:
    module = heads("pooler", pooling)
    read = np.tanh(linear(module.poolers[exit], pooled_by_hand(pooling)))
    expected = linear(module.classifiers[exit], read)
    assert np.allclose(module(exit, *states()).detach().numpy(), expected, atol=1e-6)
    assert len(module.poolers) == EXITS


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("exit", range(EXITS))
def test_shared_pooler_is_one_tanh_for_all_exits(exit: int, pooling: str) -> None:
    module = heads("shared_pooler", pooling)
    (pooler,) = module.poolers
    expected = linear(module.classifiers[exit], np.tanh(linear(pooler, pooled_by_hand(pooling))))
    assert np.allclose(module(exit, *states()).detach().numpy(), expected, atol=1e-6)


def test_mean_does_not_see_padding() -> None:
    hidden, mask = states()
    disturbed = torch.where(mask.bool().unsqueeze(-1), hidden, 1e6)
    assert torch.equal(pool(disturbed, mask, "mean"), pool(hidden, mask, "mean"))


def test_mean_without_a_mask_takes_all_tokens() -> None:
    hidden, _ = states()
    assert torch.allclose(pool(hidden, None, "mean"), hidden.mean(dim=1))


def test_mean_of_no_tokens_is_zero_rather_than_nan() -> None:
    hidden, mask = states()
    assert pool(hidden, torch.zeros_like(mask), "mean").eq(0).all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("head", HEADS)
def test_logits_are_float32_whatever_the_weights(head: str, pooling: str) -> None:
    hidden, mask = states()
    module = heads(head, pooling).to(torch.bfloat16)
    logits = module(0, hidden.to(torch.bfloat16), mask)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, heads(head, pooling)(0, hidden, mask), atol=0.05)


def test_dropout_is_in_force_in_training_only() -> None:
    module = heads(dropout=0.5)
    assert not torch.equal(module(0, *states()), module(0, *states()))
    module.eval()
    assert torch.equal(module(0, *states()), module(0, *states()))


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="attention, linear, pooler, shared_pooler; got 'liner'"):
        heads("liner")
    with pytest.raises(UnknownName, match="first, mean; got 'max'"):
        heads(pooling="max")
    with pytest.raises(UnknownName, match="'liner'"):
        MultiExitModel.from_backbone(encoder_config(), 3, head="liner")
