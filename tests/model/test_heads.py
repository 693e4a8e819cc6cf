import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InvalidInput, UnknownName
from offramp.model.heads import HEADS, POOLINGS, Heads, pool, pooling_weights_of
from offramp.model.modeling import MultiExitModel
from support.models import encoder_config

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


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("exit", "first_tanh"), [(0, True), (1, True), (2, True), (1, False)])
def test_attention_is_fastberts_narrow_self_attention(exit: int, first_tanh: bool, pooling: str) -> None:
    """A tanh, two heads of 64 over the real tokens, then a tanh and the classifier, sample by sample."""
    torch.manual_seed(0)
    module = Heads("attention", pooling, [WIDTH] * EXITS, CLASSES, 0.0, first_tanh=first_tanh)
    narrow, attention = module.attentions[exit], module.attentions[exit].attention
    hidden, mask = states()
    found = module(exit, hidden, mask).detach().numpy()
    weights, biases = attention.in_proj_weight.detach().numpy(), attention.in_proj_bias.detach().numpy()
    for sample in range(len(hidden)):
        rows = linear(narrow.down, hidden[sample][mask[sample] == 1].numpy())  # (T, 128)
        rows = np.tanh(rows) if first_tanh else rows
        query, key, value = np.split(rows @ weights.T + biases, 3, axis=-1)
        seen = []
        for part in (slice(0, 64), slice(64, 128)):
            score = query[:, part] @ key[:, part].T / 8
            share = np.exp(score) / np.exp(score).sum(axis=-1, keepdims=True)
            seen.append(share @ value[:, part])
        mixed = linear(attention.out_proj, np.concatenate(seen, axis=-1))
        read = np.tanh(linear(narrow.dense, mixed[0] if pooling == "first" else mixed.mean(axis=0)))
        assert np.allclose(found[sample], linear(module.classifiers[exit], read), atol=1e-5)


@pytest.mark.parametrize(
    ("head", "own_head", "poolers"),
    [
        ("linear", None, {}),
        ("linear", "gelu", {2: 0}),
        ("linear", "linear", {}),
        ("attention", "gelu", {2: 0}),
        ("shared_pooler", None, {0: 0, 1: 0, 2: 0}),
        ("shared_pooler", "relu", {0: 0, 1: 0, 2: 0}),
        ("shared_pooler", "linear", {0: 0, 1: 0}),
        ("pooler", "tanh", {0: 0, 1: 1, 2: 2}),
        ("pooler", "linear", {0: 0, 1: 1}),
    ],
)
def test_an_own_head_reads_the_first_token_through_its_own_pooler(
    head: str, own_head: str | None, poolers: dict[int, int]
) -> None:
    torch.manual_seed(0)
    module = Heads(head, "mean", [WIDTH] * EXITS, CLASSES, 0.0, own_head)
    assert module.pooler_of == poolers
    assert len(module.poolers) == len(set(poolers.values()))
    assert [module.reads_first_token(exit) for exit in range(EXITS)] == [False, False, own_head is not None]
    if own_head is not None:
        first = states()[0][:, 0]
        if 2 in poolers:
            pooled = module.poolers[poolers[2]](first)
            first = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}[own_head](pooled)
        assert torch.allclose(module(2, *states()), module.classifiers[2](first), atol=1e-6)


def test_exits_of_several_widths_have_poolers_of_their_own() -> None:
    module = Heads("pooler", "mean", [4, 4, 8], CLASSES, 0.0)
    assert [pooler.in_features for pooler in module.poolers] == [4, 4, 8]
    assert [classifier.in_features for classifier in module.classifiers] == [4, 4, 8]
    with pytest.raises(InvalidInput, match=r"widths \[4, 8\] cannot share a pooler"):
        Heads("shared_pooler", "mean", [4, 4, 8], CLASSES, 0.0)


def test_mean_does_not_see_padding() -> None:
    hidden, mask = states()
    disturbed = torch.where(mask.bool().unsqueeze(-1), hidden, 1e6)
    assert torch.equal(
        pool(disturbed, pooling_weights_of(mask), "mean"), pool(hidden, pooling_weights_of(mask), "mean")
    )


def test_mean_without_a_mask_takes_all_tokens() -> None:
    hidden, _ = states()
    assert torch.allclose(pool(hidden, None, "mean"), hidden.mean(dim=1))


def test_mean_of_no_tokens_is_zero_rather_than_nan() -> None:
    hidden, mask = states()
    assert pool(hidden, pooling_weights_of(torch.zeros_like(mask)), "mean").eq(0).all()


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
