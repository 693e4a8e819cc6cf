"""Multiply-accumulates: by hand, and against PyTorch's counter on real modules."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from offramp import TokenExit
from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.inference.record import record
from offramp.model.backbones.registry import load_backbone
from offramp.model.bypass import Bypass
from offramp.model.config import MultiExitConfig
from offramp.model.flops import encoder_macs, lengths, macs, macs_ratio, plain_macs
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from offramp.policies.replay import replay
from support.models import ABSOLUTE, LAYERS, encoder_config, padded, tiny_model, token_rows
from support.traces import crossed

HALVES = TokenExit(keep_ratio={1: 0.5, 3: 0.3})
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pooler and gate": {"head": "pooler", "certainty": True},
    "attention": {"head": "attention", "pooling": "mean"},
    "tokens leave": {"pooling": "mean", "token_exit": HALVES},
    "tokens leave for good": {"token_exit": TokenExit(keep_ratio={2: 0.5}, fusion="none")},
    "one beta a layer": {"token_exit": TokenExit(keep_ratio={3: 0.5}, beta=(0.5, 1, 0.5, 0.5))},
    "bypass of the first token": {"bypass": Bypass(rank=3), "token_exit": HALVES},
    "bypass of all tokens": {"bypass": Bypass(rank=3), "pooling": "mean", "token_exit": HALVES},
    "bypass of all tokens behind attention": {
        "bypass": Bypass(rank=3, placement="ffn"),
        "pooling": "mean",
        "token_exit": HALVES,
    },
    "gate alone": {"certainty": True},
    "gate behind attention": {"head": "attention", "certainty": True},
    "memory": {"memory": 0.9, "head": "pooler", "pooling": "mean"},
    "memory and gate behind attention": {"memory": 0.9, "certainty": True, "head": "attention", "pooling": "mean"},
    "bypass alone": {"bypass": Bypass(rank=3)},
    "everything": {
        "head": "pooler",
        "pooling": "mean",
        "certainty": True,
        "memory": 0.9,
        "exit_layers": [1, 3, 4],
        "bypass": Bypass(rank=2),
        "token_exit": HALVES,
    },
    "fewer exits": {"head": "shared_pooler", "exit_layers": [2, 4], "token_exit": HALVES},
}


def bert(**exits: Any) -> MultiExitConfig:
    """Two layers, D = 4, D_ff = 8, two classes."""
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
    return MultiExitConfig(BertConfig(**sizes), num_labels=2, **exits)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_layer_and_its_exit() -> None:
    # 3 tokens: 4 * 3 * 16 + 2 * 9 * 4 + 2 * 3 * 4 * 8 = 192 + 72 + 192 = 456; an exit 4 * 2 = 8
    # 1 token: 64 + 8 + 64 = 136
    assert encoder_macs(bert(), [3, 1]).tolist() == [[464, 144], [928, 288]]


def test_an_exit_counts_where_it_is_asked_and_there_alone() -> None:
    assert encoder_macs(bert(exit_layers=[2]), [3]).tolist() == [[920]]
    assert encoder_macs(bert(head="pooler"), [3]).tolist() == [[480], [960]]  # 16 more each
    assert encoder_macs(bert(certainty=True), [3]).tolist() == [[468], [936]]  # 4 more each
    assert encoder_macs(bert(pooling="mean"), [3]).tolist() == [[476], [952]]  # 3 * 4 more each
    assert encoder_macs(bert(bypass=Bypass(rank=1)), [3]).tolist() == [[472], [944]]  # 2 * 1 * 4 more each


def test_tokens_that_leave_save_the_feed_forward_half_already() -> None:
    config = bert(token_exit=TokenExit(keep_ratio={1: 0.5}))
    # 5 tokens, of 4 stay 2, one is made: 4 in all.
    # Layer 1: 4 * 5 * 16 + 2 * 25 * 4 + 2 * 4 * 4 * 8 = 320 + 200 + 256, the row 5 * 4, its mean over 2
    # heads 5 * 2, the fusion 5 * 4, the exit 8
    # Layer 2: 4 * 4 * 16 + 2 * 16 * 4 + 256 = 640, the exit 8
    assert encoder_macs(config, [5]).tolist() == [[834], [1482]]
    assert plain_macs(config, [5]).tolist() == [2 * (320 + 200 + 320) + 8]
    none = bert(token_exit=TokenExit(keep_ratio={1: 0.5}, fusion="none"))
    assert encoder_macs(none, [5])[0].tolist() == [320 + 200 + 3 * 64 + 20 + 10 + 8]


def test_who_loses_no_token_pays_for_the_look_alone() -> None:
    config = bert(token_exit=TokenExit(keep_ratio={1: 0.7}))
    assert (encoder_macs(config, [3, 1]) - encoder_macs(bert(), [3, 1])).tolist() == [[18, 6], [18, 6]]  # 4 + 2 a token


def test_lengths_before_and_behind_the_selection() -> None:
    seen = lengths(TokenExit(keep_ratio={1: 0.7}), 1, torch.tensor([128, 11, 4, 3, 2, 1]))
    assert seen.attention.tolist() == [128, 11, 4, 3, 2, 1]
    # ceil(88.9) + 2, 7 + 2, ceil(2.1) = 3 = all, ...
    assert seen.feed_forward.tolist() == [91, 9, 4, 3, 2, 1]


def test_padded_counts_everybody_as_long() -> None:
    assert torch.equal(encoder_macs(bert(), [3, 1], padded=3), encoder_macs(bert(), [3, 3]))
    assert torch.equal(plain_macs(bert(), [3, 1], padded=3), plain_macs(bert(), [3, 3]))
    with pytest.raises(InvalidInput, match="padded to 3 tokens, but a sample has 5"):
        encoder_macs(bert(), [5, 1], padded=3)


def test_the_ratio_is_one_of_sums() -> None:
    # plain: 920 and 280; one left at exit 1 and one at exit 2: 464 + 288
    exits = torch.tensor([1, 2])
    assert macs_ratio(bert(), [3, 1], exits) == pytest.approx((920 + 280) / (464 + 288))
    assert macs_ratio(bert(exit_layers=[2]), [3, 1], torch.tensor([2, 2])) == 1
    assert macs_ratio(bert(), [3, 1], exits, padded=3) == pytest.approx(1840 / (464 + 928))


def test_the_papers_schedule_at_length_128() -> None:
    """Token exit alone on BERT-base: keeping 0.7 is 1.5 times cheaper; the tables' 2.43 is near what 0.3 gives."""
    for keep, ratio in ((0.7, 1.5), (0.3, 2.5)):
        config = MultiExitConfig(
            BertConfig(), exit_layers=[12], token_exit=TokenExit(keep_ratio=dict.fromkeys((4, 7, 10), keep))
        )
        assert macs_ratio(config, [20], torch.tensor([12]), padded=128) == pytest.approx(ratio, abs=0.05)


@pytest.mark.parametrize("tokens", [[], [3, 0], [[3]]])
def test_samples_without_tokens_have_no_cost(tokens: Any) -> None:
    with pytest.raises(InvalidInput, match="number of tokens of each sample"):
        encoder_macs(bert(), tokens)


def test_other_layers_than_these_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_backbone("bert"), "absolute_positions", False)
    with pytest.raises(UnsupportedBackbone, match="the cost formulas are not for the layers of bert"):
        encoder_macs(bert(), [3])


# --- against PyTorch's counter ----------------------------------------------------------------------------------------


def counted(model: MultiExitModel, batch: dict[str, Tensor]) -> list[float]:
    """MACs up to each exit as PyTorch counts them, the embedding left out.

    It counts two for each, and sees matrix products alone: no norms, activations, softmax, sums. It does not see the
    fused kernels that the CPU has for attention and for `nn.MultiheadAttention` in eval mode, hence plain ones here.
    """
    carry, total, found = model.embed(batch), 0, []
    for exit in range(len(model.layers)):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            carry = model.block(exit, carry)
            model.exit(exit, carry)
        total += counter.get_total_flops()
        found.append(total / 2)
    return found


@pytest.mark.parametrize(
    ("family", "choice"), [*crossed(ABSOLUTE, CHOICES, ("plain", "everything")), ("mpnet", "plain")]
)
def test_pytorch_counts_the_same(family: str, choice: str) -> None:
    model = tiny_model(family, **CHOICES[choice]).train()
    for length in (11, 3, 1):
        row = {"input_ids": [6] * length, "attention_mask": [1] * length}
        assert encoder_macs(model.config, [length])[:, 0].tolist() == counted(model, padded(model, [row]))


@pytest.mark.parametrize(
    ("head", "certainty"),
    [("linear", False), ("linear", True), ("pooler", False), ("pooler", True), ("attention", False)],
)
def test_a_fine_tuned_models_own_head_counts(head: str, certainty: bool) -> None:
    config = MultiExitConfig(encoder_config(), head, "mean", own_head="tanh", certainty=certainty, num_labels=3)
    model = MultiExitModel(config).train()
    row = {"input_ids": [6] * 5, "attention_mask": [1] * 5}
    assert encoder_macs(model.config, [5])[:, 0].tolist() == counted(model, padded(model, [row]))


# --- with an exit before the first layer ------------------------------------------------------------------------------


def test_an_exit_before_the_first_layer_and_exits_that_are_not_read() -> None:
    config = bert(lexical=LexicalExit(ngrams=2))
    # 3 tokens: 2 n-grams each, of 2 outputs and a norm: 3 * 2 * 3 = 18; 1 token: 6. The layers as above
    assert macs(config, [3, 1]).tolist() == [[18, 6], [18 + 464, 6 + 144], [18 + 928, 6 + 288]]
    assert macs(config, [3, 1], [2]).tolist() == [[920, 280]]
    assert macs(config, [3], [0, 2]).tolist() == [[18], [18 + 920]]
    factored = bert(lexical=LexicalExit(ngrams=1, rank=1))  # 3 * (1 + 1) and 1 * 2
    assert macs(factored, [3])[0].tolist() == [8]
    assert torch.equal(encoder_macs(config, [3, 1]), encoder_macs(bert(), [3, 1]))
    assert macs_ratio(config, [3], torch.tensor([1])) == macs_ratio(bert(), [3], torch.tensor([1]))
    with pytest.raises(InvalidInput, match=r"no exits at layers \[0\]; it has them at \[1, 2\]"):
        macs(bert(), [3], [0, 2])


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", ["albert", "bert", "electra, projected", "mpnet"])
def test_pytorch_counts_the_same_before_the_first_layer(family: str, rank: int | None) -> None:
    model = tiny_model(family, lexical=LexicalExit(rank=rank)).train()
    row = {"input_ids": [6] * 5, "attention_mask": [1] * 5}
    batch, found = padded(model, [row]), []
    for part in (lambda batch: model.lexical_exit(batch["input_ids"]), model.embed):
        with FlopCounterMode(display=False) as counter:
            part(batch)
        found.append(counter.get_total_flops() / 2)
    lexical, *behind = macs(model.config, [5])[:, 0].tolist()
    assert lexical == found[0]
    assert behind == (encoder_macs(model.config, [5])[:, 0] + sum(found)).tolist()


# --- of a trace -------------------------------------------------------------------------------------------------------


def test_the_cost_of_a_run_follows_from_its_trace() -> None:
    model, rows = tiny_model(pooling="mean", token_exit=HALVES), token_rows(20)
    trace = record(model, rows)
    answers = replay(trace, "fixed", 2.0)
    table = encoder_macs(model.config, trace.tokens)
    assert table.shape == (LAYERS, 20)
    expected = plain_macs(model.config, trace.tokens).sum() / table[1].sum()
    assert macs_ratio(model.config, trace.tokens, answers.exit_layers) == pytest.approx(expected.item())
    assert macs_ratio(model.config, trace.tokens, torch.full((20,), LAYERS)) > 1
