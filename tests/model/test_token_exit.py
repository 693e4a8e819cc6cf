"""Token exit: by hand, against attention as transformers' eager code has it, against a slow loop, in any company."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from offramp import TokenExit
from offramp.errors import InvalidInput, UnsupportedBackbone
from offramp.inference.record import record
from offramp.model.backbones.registry import load_backbone
from offramp.model.bypass import Bypass
from offramp.model.config import MultiExitConfig
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.class_attention import CLASS_ATTENTION, class_attention_row
from offramp.model.token_exit.selection import remaining_count, select
from support.models import ABSOLUTE, LAYERS, VOCABULARY, encoder_config, padded, tiny_model, token_rows
from support.traces import crossed

HALVES = TokenExit(keep_ratio={1: 0.5, 3: 0.6})
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean": {"pooling": "mean"},
    "attention": {"head": "attention", "pooling": "mean"},
    "gate and memory": {"head": "shared_pooler", "certainty": True, "memory": 0.9},
    "bypass of the first token": {"bypass": Bypass(rank=3)},
    "bypass of all tokens": {"bypass": Bypass(rank=3), "pooling": "mean"},
    "bypass of all tokens behind attention": {"bypass": Bypass(rank=3, placement="ffn"), "pooling": "mean"},
    "fewer exits": {"pooling": "mean", "exit_layers": [2, 4]},
}


def leaving(family: str = "bert", token_exit: TokenExit = HALVES, **exits: Any) -> MultiExitModel:
    """A model with token exit whose bypasses are awake."""
    model = tiny_model(family, token_exit=token_exit, **exits)
    with torch.no_grad():
        for branch in model.bypasses:
            branch.up.weight.normal_(std=0.3)
    return model


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_the_row_is_the_first_tokens_attention_without_its_own_column() -> None:
    # two heads; products of the first query with the keys: 0, ln 2, ln 5 and 0, 0, ln 2
    query = torch.tensor([1.0, 9, 9]).view(1, 1, 3, 1).expand(1, 2, 3, 1)
    key = torch.tensor([[0, math.log(2), math.log(5)], [0, 0, math.log(2)]]).view(1, 2, 3, 1)
    row = class_attention_row(query, key, None, 1.0)
    assert torch.allclose(row, torch.tensor([[(2 / 8 + 1 / 4) / 2, (5 / 8 + 2 / 4) / 2]]))
    mask = torch.tensor([True, True, False]).expand(1, 1, 3, 3)
    assert torch.allclose(class_attention_row(query, key, mask, 1.0), torch.tensor([[(2 / 3 + 1 / 2) / 2, 0.0]]))
    assert torch.allclose(class_attention_row(query, 2 * key, None, 0.5), row)


@pytest.mark.parametrize(
    ("count", "ratio", "expected"),
    [(10, 0.7, 7), (9, 0.7, 7), (3, 0.7, 3), (1, 0.7, 1), (0, 0.7, 0), (10, 1 - 0.7, 3), (7, 0.01, 1), (5, 1.0, 5)],
)
def test_kept_is_the_ceiling_of_the_exact_product_and_at_least_one(count: int, ratio: float, expected: int) -> None:
    assert remaining_count(torch.tensor([count]), ratio).tolist() == [expected]


def test_the_ceiling_is_that_of_exact_fractions() -> None:
    counts = torch.arange(1, 600)
    for percent in range(1, 101):
        exact = [max(1, -(-count * percent // 100)) for count in counts.tolist()]
        assert remaining_count(counts, percent / 100).tolist() == exact


SCORES = torch.tensor([[0.1, 0.4, 0.05, 0.2], [0.3, 0.1, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
STATES = torch.tensor([[1.0, 10, 100, 1000, 10000], [1, 10, 100, 7, 7], [1, 10, 7, 7, 7]]).unsqueeze(-1)


def test_the_best_stay_in_their_order_and_the_others_become_one_token_at_the_end() -> None:
    chosen = select(SCORES, MASK, 0.5, "weighted_sum")
    found = chosen(STATES).squeeze(-1)
    # 2 of 4 stay (0.4 and 0.2); 0.1 * 10 + 0.05 * 1000 = 51. 1 of 2 stays; 0.1 * 100 = 10. 1 of 1 stays, alone
    assert torch.allclose(found[0], torch.tensor([1.0, 100, 10000, 51]))
    assert torch.allclose(found[1, :3], torch.tensor([1.0, 10, 10]))
    assert found[2, :2].tolist() == [1, 10]
    assert chosen.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    # the fusion token's memory is the mean of theirs: (0.1 + 0.05) / 2
    assert torch.allclose(chosen.scores[0], torch.tensor([0.4, 0.2, 0.075]))
    assert torch.allclose(chosen.scores[1, :2], torch.tensor([0.3, 0.1]))
    assert chosen.scores[2, 0].item() == pytest.approx(0.2)


def test_a_weighted_mean_divides_by_the_weights() -> None:
    found = select(SCORES, MASK, 0.5, "weighted_mean")(STATES).squeeze(-1)
    assert found[0, 3].item() == pytest.approx(51 / 0.15)
    assert found[1, 2].item() == pytest.approx(100)


def test_without_fusion_those_who_leave_are_gone() -> None:
    chosen = select(SCORES, MASK, 0.5, "none")
    assert chosen.mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert chosen(STATES)[0].flatten().tolist() == [1, 100, 10000]
    assert torch.allclose(chosen.scores[0], torch.tensor([0.4, 0.2]))


def test_of_equal_tokens_the_earlier_stay() -> None:
    chosen = select(torch.full((1, 4), 0.25), torch.ones(1, 5), 0.5, "none")
    assert chosen.columns.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("lengths", [[1], [2], [3], [1, 2, 3], [4, 4]])
def test_where_all_tokens_stay_nothing_is_selected(lengths: list[int]) -> None:
    mask = (torch.arange(4) < torch.tensor(lengths)[:, None]).long()  # ceil(0.7 * 3) = 3
    assert select(torch.rand(len(lengths), 3), mask, 0.7, "weighted_sum") is None


def test_scores_that_are_nan_spoil_their_own_sample_alone() -> None:
    sick = SCORES.clone()
    sick[1] = torch.nan
    found, expected = select(sick, MASK, 0.5, "weighted_sum"), select(SCORES, MASK, 0.5, "weighted_sum")
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found(STATES)[[0, 2]], expected(STATES)[[0, 2]])
    assert torch.equal(found.scores[[0, 2]], expected.scores[[0, 2]])


# --- the setting ------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_paper() -> None:
    assert TokenExit().to_data() == {
        "keep_ratio": {4: 0.7, 7: 0.7, 10: 0.7},
        "beta": 0.5,
        "fusion": "weighted_sum",
    }


def test_keeping_is_one_minus_leaving() -> None:
    setting = TokenExit.from_exit_ratio(0.7, beta=[1, 0.5], fusion="none")
    assert list(setting.keep_ratio) == [4, 7, 10]
    assert setting.keep_ratio[7] == pytest.approx(0.3)
    assert (setting.beta, setting.fusion) == ((1, 0.5), "none")
    assert TokenExit.from_exit_ratio({2: 0.25}).keep_ratio == {2: 0.75}


def test_a_sequence_is_one_share_a_layer() -> None:
    assert TokenExit(keep_ratio=[1.0, 0.5]).keep_ratio == {1: 1.0, 2: 0.5}


def test_a_setting_survives_json() -> None:
    setting = TokenExit(keep_ratio={2: 0.5}, beta=(1, 0.5, 0.5, 0.5), fusion="none")
    assert TokenExit(**json.loads(json.dumps(setting.to_data()))) == setting


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep_ratio": {}}, "above 0 and at most 1"),
        ({"keep_ratio": {2: 0}}, "above 0 and at most 1"),
        ({"keep_ratio": {2: 1.1}}, "above 0 and at most 1"),
        ({"keep_ratio": {2: math.nan}}, "above 0 and at most 1"),
        ({"keep_ratio": {0: 0.5}}, "whole numbers from 1, got 0"),
        ({"keep_ratio": {2.5: 0.5}}, "whole numbers from 1, got 2.5"),
        ({"keep_ratio": {"two": 0.5}}, "whole numbers from 1, got 'two'"),
        ({"beta": 1.5}, "from 0 to 1, got 1.5"),
        ({"beta": (0.5, -1)}, "from 0 to 1"),
        ({"fusion": "sum"}, "weighted_sum, weighted_mean, none; got 'sum'"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        TokenExit(**wrong)


def test_a_schedule_must_fit_the_models_depth() -> None:
    with pytest.raises(InvalidInput, match="token exit at layer 10, but the model has 4"):
        tiny_model(token_exit=TokenExit())
    with pytest.raises(InvalidInput, match="one for each of the 4 layers, got 2"):
        tiny_model(token_exit=TokenExit(keep_ratio={1: 0.5}, beta=(0.5, 0.5)))


def test_a_family_with_relative_positions_or_whole_layers_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_backbone("bert")
    monkeypatch.setattr(family, "absolute_positions", False)
    with pytest.raises(UnsupportedBackbone, match=r"positions that only the embedding adds; bert does not have them"):
        leaving()
    monkeypatch.setattr(family, "absolute_positions", True)
    monkeypatch.setattr(family, "has_halves", False)
    with pytest.raises(UnsupportedBackbone, match=r"layers that run in halves; bert does not have them"):
        leaving()


def test_a_layer_is_asked_only_if_a_selection_remembers_it() -> None:
    always = TokenExit(keep_ratio={2: 0.5, 4: 0.5})
    assert [always.needs_attention(layer) for layer in range(1, 7)] == [True, True, True, True, False, False]
    # a beta of 1 forgets: layers 1 and 3 are never heard of again
    forgetful = TokenExit(keep_ratio={2: 0.5, 5: 0.5}, beta=(0.5, 1, 0.5, 1, 0.5, 0.5))
    assert [forgetful.needs_attention(layer) for layer in range(1, 7)] == [False, True, False, True, True, False]


# --- the row, in the encoders -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", ABSOLUTE)
def test_the_row_is_that_of_eager_attention(family: str) -> None:
    model = leaving(family, TokenExit(keep_ratio={4: 1.0}))
    eager = AutoModel.from_config(encoder_config(family), attn_implementation="eager").eval()
    eager.load_state_dict(model.backbone.state_dict(), strict=False)
    batch = padded(model, token_rows(9), extra=2)
    weights = eager(**batch, output_attentions=True).attentions  # (B, H, T, T) of each layer
    inner = len(weights) // LAYERS  # ALBERT tells of each layer inside a layer
    carry = model.embed(batch)
    for number in range(LAYERS):
        _, class_attention = model._encoder_view.attention_half(number, carry)
        expected = weights[inner * (number + 1) - 1][:, :, 0, 1:].mean(dim=1)
        assert (class_attention() - expected).abs().max() < 1e-6
        carry = model._encoder_view.block(number, carry)


@torch.no_grad()
def test_the_row_knows_no_dropout() -> None:
    model = leaving(token_exit=TokenExit(keep_ratio={1: 0.5}))
    carry = model.embed(padded(model, token_rows(5)))
    expected = model._encoder_view.attention_half(0, carry)[1]()
    assert torch.equal(model.train()._encoder_view.attention_half(0, carry)[1](), expected)


def test_only_a_model_with_token_exit_has_the_implementation_and_it_stays(tmp_path: Path) -> None:
    assert tiny_model().backbone.config._attn_implementation == "sdpa"
    model = leaving()
    model.save_pretrained(tmp_path)
    assert CLASS_ATTENTION not in (tmp_path / "config.json").read_text()
    back = MultiExitModel.from_pretrained(tmp_path)
    for each in (model, copy.deepcopy(model), back, MultiExitModel.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        assert each.backbone.config._attn_implementation == CLASS_ATTENTION
    assert back.config.token_exit == model.config.token_exit == HALVES.to_data()
    batch = padded(model, token_rows(8))
    assert torch.equal(back.eval()(**batch).exit_logits, model(**batch).exit_logits)
    assert torch.equal(copy.deepcopy(model)(**batch).exit_logits, model(**batch).exit_logits)


def test_a_configuration_comes_back_the_same() -> None:
    config = MultiExitConfig(encoder_config(), token_exit=HALVES)
    again = MultiExitConfig(**json.loads(json.dumps(config.to_dict())))
    assert again.token_exit == config.token_exit == HALVES.to_data()
    assert again.to_dict() == config.to_dict()


@torch.no_grad()
def test_behind_the_schedule_layers_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = leaving(token_exit=TokenExit(keep_ratio={2: 0.5})), []
    attention_half = type(model._encoder_view).attention_half
    monkeypatch.setattr(
        type(model._encoder_view),
        "attention_half",
        lambda self, number, carry: calls.append(number) or attention_half(self, number, carry),
    )
    monkeypatch.setattr(
        "offramp.model.token_exit.class_attention.class_attention_row",
        lambda *arguments: calls.append("row") or class_attention_row(*arguments),
    )
    model.all_exits(padded(model, token_rows(4)))
    assert calls == [0, "row", 1, "row"]


# --- against a slow loop ----------------------------------------------------------------------------------------------


def slowly(model: MultiExitModel, setting: TokenExit, ids: list[int]) -> Tensor:
    """Logits (L, C) of one text by a BERT with linear exits and mean pooling: no batch, no mask, eager attention."""
    bert, heads = model.backbone, bert_heads(model)
    states = bert.embeddings(input_ids=torch.tensor([ids]))[0]  # (n, D)
    memory: list[float] = []
    said = []
    for number, layer in enumerate(bert.encoder.layer, start=1):
        attended, row = attention_by_hand(layer, states, heads)
        beta = setting.beta if isinstance(setting.beta, float) else setting.beta[number - 1]
        memory = [(1 - beta) * old + beta * new for old, new in zip(memory, row, strict=True)] if memory else row
        if number in setting.keep_ratio:
            others = len(row)
            keep = max(1, math.ceil(round(setting.keep_ratio[number] * others, 6))) if others else 0
            if keep < others:
                best = sorted(range(others), key=lambda token: -memory[token])[:keep]
                out = [token for token in range(others) if token not in best]
                tokens = [attended[0], *(attended[1 + token] for token in sorted(best))]
                weight = sum(memory[token] for token in out)
                fusion = sum(memory[token] * attended[1 + token] for token in out)
                after = [memory[token] for token in sorted(best)]
                if setting.fusion != "none":
                    tokens.append(fusion / weight if setting.fusion == "weighted_mean" else fusion)
                    after.append(sum(memory[token] for token in out) / len(out))
                attended, memory = torch.stack(tokens), after
        states = layer.output.LayerNorm(layer.output.dense(layer.intermediate(attended)) + attended)
        said.append(model.heads.classifiers[number - 1](states.mean(dim=0)))
    return torch.stack(said)


def bert_heads(model: MultiExitModel) -> int:
    heads: int = model.config.backbone.num_attention_heads
    return heads


def attention_by_hand(layer: Any, states: Tensor, heads: int) -> tuple[Tensor, list[float]]:
    """States behind attention and norm, (n, D); the first token's mean attention to the others."""
    inner = layer.attention.self
    query, key, value = (part(states).chunk(heads, dim=-1) for part in (inner.query, inner.key, inner.value))
    weights = [F.softmax(q @ k.T / math.sqrt(q.shape[-1]), dim=-1) for q, k in zip(query, key, strict=True)]
    mixed = torch.cat([w @ v for w, v in zip(weights, value, strict=True)], dim=-1)
    attended = layer.attention.output.LayerNorm(layer.attention.output.dense(mixed) + states)
    return attended, (sum(w[0, 1:] for w in weights) / heads).tolist()


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["weighted_sum", "weighted_mean", "none"])
@pytest.mark.parametrize(
    ("keep", "beta"),
    [
        ({1: 0.5, 3: 0.6}, 0.5),
        ({2: 0.3, 4: 0.5}, 0.3),
        ({1: 0.8, 2: 0.8, 3: 0.8, 4: 0.8}, 0.5),
        ({1: 0.01}, 0.5),
        ({2: 0.5, 4: 0.5}, (1.0, 1.0, 0.5, 0.25)),
    ],
)
def test_a_batch_says_what_a_slow_loop_over_each_text_says(keep: dict[int, float], beta: Any, fusion: str) -> None:
    setting = TokenExit(keep_ratio=keep, beta=beta, fusion=fusion)
    model, rows = leaving(token_exit=setting, pooling="mean"), token_rows(24, longest=20)
    expected = torch.stack([slowly(model, setting, row["input_ids"]) for row in rows], dim=1)
    found = model(**padded(model, rows, extra=3)).exit_logits
    assert torch.allclose(found, expected, atol=1e-5)


# --- in any company ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("family", "choice"), crossed(ABSOLUTE, CHOICES, ("mean", "gate and memory")))
def test_padding_company_and_order_change_nothing(family: str, choice: str) -> None:
    model, rows = leaving(family, **CHOICES[choice]), token_rows(17)
    alone = torch.cat([model(**padded(model, [row])).exit_logits for row in rows], dim=1)
    together = model(**padded(model, rows, extra=5)).exit_logits
    backwards = model(**padded(model, rows[::-1])).exit_logits.flip(1)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(backwards, alone, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("family", "choice"), crossed(ABSOLUTE, CHOICES, ("mean", "gate and memory")))
def test_keeping_all_is_no_token_exit(family: str, choice: str) -> None:
    all_stay = TokenExit(keep_ratio={1: 1.0, 3: 1.0})
    model, plain = leaving(family, all_stay, **CHOICES[choice]), tiny_model(family, **CHOICES[choice])
    plain.load_state_dict(model.state_dict())
    batch = padded(model, token_rows(12))
    assert torch.allclose(model(**batch).exit_logits, plain(**batch).exit_logits, atol=1e-6)


@torch.no_grad()
def test_tokens_really_leave() -> None:
    model, lengths = leaving(pooling="mean"), []
    carry = model.embed(padded(model, [row for row in token_rows(40) if len(row["input_ids"]) == 11][:1]))
    for exit in range(LAYERS):
        carry = model.block(exit, carry)
        lengths.append(carry.hidden.shape[1])
        assert carry.mask.shape == carry.hidden.shape[:2]
        assert carry.attention is None or carry.attention.shape[-2:] == (lengths[-1], lengths[-1])
    # 10 beside the first: 5 and a fusion token; ceil(0.6 * 6) = 4 and one
    assert lengths == [7, 7, 6, 6]
    assert carry.token_importance is None


@torch.no_grad()
def test_a_nan_sample_does_not_touch_its_neighbours() -> None:
    model, rows = leaving(pooling="mean"), token_rows(12)
    expected = model(**padded(model, rows)).exit_logits
    model.backbone.get_input_embeddings().weight[VOCABULARY - 1] = torch.nan
    for number in (2, 7):
        rows[number]["input_ids"][-1] = VOCABULARY - 1
    found = model(**padded(model, rows)).exit_logits
    well = [number for number in range(12) if number not in (2, 7)]
    assert found[:, [2, 7]].isnan().all()
    assert torch.allclose(found[:, well], expected[:, well], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", ABSOLUTE)
def test_texts_of_one_two_and_three_tokens_answer(family: str) -> None:
    rows = [{"input_ids": [6] * length, "attention_mask": [1] * length} for length in (1, 2, 3)]
    for fusion in ("weighted_sum", "weighted_mean", "none"):
        model = leaving(family, TokenExit(keep_ratio={1: 0.1, 2: 0.1, 4: 0.1}, fusion=fusion), pooling="mean")
        together = model(**padded(model, rows)).exit_logits
        alone = torch.cat([model(**padded(model, [row])).exit_logits for row in rows], dim=1)
        assert together.isfinite().all()
        assert torch.allclose(together, alone, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ABSOLUTE)
def test_bfloat16_and_autocast_answer_like_float32(family: str) -> None:
    model, batch = leaving(family, pooling="mean"), padded(tiny_model(family), token_rows(12))
    exact = model(**batch).exit_logits
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**batch).exit_logits
    rough = model.to(torch.bfloat16)(**batch).exit_logits
    for found in (mixed, rough):
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert (found - exact).abs().median() < 0.1


def test_another_attention_implementation_is_named_as_the_fault() -> None:
    model = leaving()
    model.set_attn_implementation("sdpa")
    with pytest.raises(InvalidInput, match=f"token exit needs the attention implementation '{CLASS_ATTENTION}'"):
        model(**padded(model, token_rows(2)))


# --- training ---------------------------------------------------------------------------------------------------------


def gradients(model: MultiExitModel, **given: Any) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(**padded(model, token_rows(8)), labels=torch.arange(8) % 3, **given).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("family", "choice"),
    crossed(ABSOLUTE, [name for name in CHOICES if name != "gate and memory"], ("mean", "bypass of all tokens")),
)
def test_training_reaches_all_parameters(family: str, choice: str) -> None:
    found = gradients(leaving(family, **CHOICES[choice]).train())
    unreached = {name for name, grad in found.items() if grad is None or not grad.any()}
    # keys' biases shift all products of a query alike, which softmax does not see; and with a bypass nobody reads the
    # last layer's own norm
    nobodys = [name for name in found if "key.bias" in name or "k_lin.bias" in name]
    if "bypass" in choice:
        nobodys += [
            name for name in found if name.startswith("backbone.") and ".3.output" in name and "norm." in name.lower()
        ]
    assert unreached <= set(nobodys)


def test_the_memory_learns_through_the_fusion_token() -> None:
    """With values that are all alike attention mixes nothing, so a query can only be felt through the scores."""
    found = {}
    for fusion in ("weighted_sum", "none"):
        model = leaving(token_exit=TokenExit(keep_ratio={1: 0.3}, fusion=fusion), pooling="mean").train()
        nn.init.zeros_(model.backbone.encoder.layer[0].attention.self.value.weight)
        found[fusion] = gradients(model)["backbone.encoder.layer.0.attention.self.query.weight"].abs().max()
    assert found["weighted_sum"] > 1e-3
    assert found["none"] < 1e-6


@pytest.mark.parametrize("choice", CHOICES)
def test_gradient_checkpointing_changes_no_gradient(choice: str) -> None:
    model = leaving(**CHOICES[choice]).train()
    expected = gradients(model)
    model.activation_checkpointing_enable()
    found = gradients(model)
    for name, grad in expected.items():
        assert (grad is None) == (found[name] is None)
        assert grad is None or torch.allclose(found[name], grad, atol=1e-6), name


def test_shares_of_the_gradient_are_taken_of_the_memory_too() -> None:
    """Nothing of a loss at the second exit comes down to layer 1 where the first exit takes the whole share."""
    model = leaving(token_exit=TokenExit(keep_ratio={2: 0.5}), pooling="mean").train()
    nn.init.zeros_(model.heads.classifiers[0].weight)  # so the first exit sends nothing down itself
    found = gradients(model, branch_scales=[1.0, 0.5, 0.5, 0.5])
    assert not found["backbone.encoder.layer.0.attention.self.query.weight"].any()
    assert found["backbone.encoder.layer.1.attention.self.query.weight"].any()


def test_a_trace_is_that_of_the_model(tmp_path: Path) -> None:
    model, rows = leaving(pooling="mean"), token_rows(20)
    trace = record(model, rows, batch_size=7)
    assert torch.allclose(trace.logits, record(model, rows, batch_size=1).logits, atol=1e-5)
    assert trace.tokens.tolist() == [len(row["input_ids"]) for row in rows]
