"""A model with an exit before the first layer: its encoder is trained, saved and answers as without it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, pipeline

from offramp.errors import InvalidInput
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.model.bypass import Bypass
from offramp.model.card import save_points
from offramp.model.exits import renew_lexical
from offramp.model.lexical.config import LexicalExit
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from offramp.model.points import load_points
from offramp.policies.replay import replay
from offramp.types.graph_file import GraphSource
from offramp.types.model_content import ModelContent
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, read_points
from offramp.types.problem_types import MULTI_LABEL
from offramp.types.trace import Trace
from support.models import (
    LAYERS,
    encoder_config,
    fill_lexical,
    padded,
    save_folder,
    text_rows,
    texts,
    tiny_model,
    token_rows,
)
from support.traces import fitted

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
LEXICAL = LexicalExit(buckets=61)
EXITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gate, memory, bypasses": {"certainty": True, "memory": 0.5, "bypass": Bypass(rank=2), "head": "pooler"},
    "some layers, three labels": {"exit_layers": [2, 4], "problem_type": MULTI_LABEL},
    "regression": {"num_labels": 1},
}


def with_and_without(**exits: Any) -> tuple[MultiExitModel, MultiExitModel]:
    return tiny_model(lexical=LEXICAL, **exits), tiny_model(**exits)


def encoder_of(model: MultiExitModel) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("lexical_exit.")}


@torch.no_grad()
@pytest.mark.parametrize("exits", EXITS.values(), ids=EXITS)
def test_it_comes_before_exits_that_answer_as_without_it(exits: dict[str, Any]) -> None:
    model, plain = with_and_without(**exits)
    inputs = padded(model, token_rows(6))
    assert model.layers == [0, *plain.layers]
    out, before = model(**inputs), plain(**inputs)
    first = model.lexical_exit(inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(out.exit_logits, torch.cat((first[None], before.exit_logits)))
    assert torch.equal(out.logits, before.logits)
    assert torch.equal(model.all_exits(inputs).logits, out.exit_logits)
    assert torch.equal(model.lexical(inputs).logits, first)
    assert model.lexical(inputs).layer == 0
    if exits.get("certainty"):
        own = model.lexical_exit.certainty(first)
        assert torch.equal(out.exit_certainty, torch.cat((own[None], before.exit_certainty)))
        assert torch.equal(model.lexical(inputs).certainty, own)
    else:
        assert out.exit_certainty is model.lexical(inputs).certainty is None


@torch.no_grad()
def test_blocks_and_exits_are_counted_behind_it() -> None:
    model, plain = with_and_without(memory=0.5)
    inputs = padded(model, token_rows(3))
    carry, other = model.embed(inputs), plain.embed(inputs)
    for number in range(LAYERS):
        carry, other = model.block(number + 1, carry), plain.block(number, other)
        out = model.exit(number + 1, carry)
        assert torch.equal(out.logits, plain.exit(number, other).logits)
        assert out.layer == number + 1
    for run in (model.block, model.exit):
        with pytest.raises(InvalidInput, match="exit 0 lies before the first layer"):
            run(0, carry)
    with pytest.raises(InvalidInput, match="no exit before the first layer"):
        plain.lexical(inputs)


@pytest.mark.parametrize("exits", EXITS.values(), ids=EXITS)
def test_losses_and_gradients_are_those_without_it(exits: dict[str, Any]) -> None:
    labels = torch.zeros(4, 3) if "problem_type" in exits else torch.tensor([0, 1, 2, 0])
    gradients = []
    for model in with_and_without(**exits):
        model.train()
        torch.manual_seed(3)
        out = model(**padded(model, token_rows(4)), labels=labels, branch_scales=[0.5] * len(model.config.exit_layers))
        assert out.logits_by_exit.shape[1] == len(model.config.exit_layers)
        out.loss.backward()
        gradients.append([out.loss, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, two) if one is not None else two is None for one, two in zip(*gradients, strict=True))
    evaluated = [
        model.eval()(**padded(model, token_rows(4)), labels=labels).loss for model in with_and_without(**exits)
    ]
    assert torch.equal(*evaluated)


def test_it_draws_no_random_numbers_and_has_no_parameters() -> None:
    torch.manual_seed(0)
    model = MultiExitModel.from_backbone(encoder_config(), lexical=LexicalExit())
    after = torch.rand(3)
    torch.manual_seed(0)
    plain = MultiExitModel.from_backbone(encoder_config())
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(value, encoder_of(model)[name]) for name, value in plain.state_dict().items())
    assert [name for name, _ in model.named_parameters() if "lexical" in name] == []


@torch.no_grad()
def test_as_long_as_it_is_not_fitted_nothing_answers_with_it() -> None:
    model = MultiExitModel.from_backbone(encoder_config(), 3, lexical=LEXICAL).eval()
    inputs = padded(model, token_rows(2))
    assert model(**inputs).exit_logits[0].eq(0).all()
    assert model.all_exits(inputs).logits[0].eq(0).all()
    for run in (lambda: model.lexical(inputs), lambda: record(model, token_rows(2))):
        with pytest.raises(InvalidInput, match="the exit before the first layer is not fitted; "):
            run()


@torch.no_grad()
def test_it_reads_token_ids_alone() -> None:
    model = tiny_model(lexical=LEXICAL)
    embedded = {"inputs_embeds": torch.randn(2, 5, 16)}
    with pytest.raises(InvalidInput, match="reads input_ids; got inputs_embeds"):
        model(**embedded)
    assert model.train()(**embedded).logits_by_exit.shape == (2, LAYERS, 3)
    with pytest.raises(InvalidInput, match="a lexical exit reads tokens, and a vit encoder has none"):
        tiny_model("vit", lexical=LEXICAL)


@torch.no_grad()
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("rank", [None, 2])
def test_it_is_saved_and_loaded_with_the_model(rank: int | None, shards: dict[str, str], tmp_path: Path) -> None:
    model = tiny_model(lexical=LexicalExit(buckets=61, rank=rank))
    model.lexical_exit.scales[0] = 2.0**-30  # float16 has no such number
    inputs = padded(model, token_rows(5))
    model.save_pretrained(tmp_path, **shards)
    for kind in (MultiExitModel, AutoModelForSequenceClassification):
        again = kind.from_pretrained(tmp_path)
        assert torch.equal(again(**inputs).exit_logits, model(**inputs).exit_logits)
        assert torch.equal(again.lexical_exit.fitted_rows, model.lexical_exit.fitted_rows)
    exact = model.lexical(inputs).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.lexical(inputs).logits, exact)
        assert torch.equal(model(**inputs).exit_logits[0], exact)
    loaded = [MultiExitModel.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    for half in (*loaded, again.half()):
        assert torch.equal(half.lexical(inputs).logits, exact)
        buffers = zip(half.lexical_exit.buffers(), model.lexical_exit.buffers(), strict=True)
        assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in buffers)
        half.save_pretrained(tmp_path / "half")
        assert torch.equal(MultiExitModel.from_pretrained(tmp_path / "half").lexical(inputs).logits, exact)


def test_loaded_for_other_outputs_it_is_not_fitted(tmp_path: Path) -> None:
    tiny_model(lexical=LEXICAL).save_pretrained(tmp_path)
    model, loading = MultiExitModel.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert ("lexical_exit.bias", (3,), (5,)) in loading["mismatched_keys"]
    assert model(**padded(model, token_rows(2))).exit_logits.shape == (5, 2, 5)  # the encoder's exits start anew
    assert model.eval().all_exits(padded(model, token_rows(2))).logits[0].eq(0).all()
    with pytest.raises(InvalidInput, match="is not fitted; "):
        record(model, token_rows(2))
    fill_lexical(model).save_pretrained(tmp_path)
    assert record(MultiExitModel.from_pretrained(tmp_path), token_rows(2)).logits.shape == (5, 2, 5)


@torch.no_grad()
def test_new_words_leave_it_as_it_is(tmp_path: Path) -> None:
    model = tiny_model(lexical=LEXICAL)
    inputs = padded(model, token_rows(4))
    before = model.lexical(inputs).logits
    model.resize_token_embeddings(45)
    model.save_pretrained(tmp_path)
    again = MultiExitModel.from_pretrained(tmp_path)
    assert torch.equal(again.lexical(inputs).logits, before)
    assert again.lexical({"input_ids": torch.tensor([[2, 44, 3]])}).logits.isfinite().all()
    with pytest.raises(InvalidInput, match="45"):
        again.lexical({"input_ids": torch.tensor([[2, 45, 3]])})


@torch.no_grad()
def test_a_pipeline_answers_at_full_depth_as_without_it(tmp_path: Path) -> None:
    folders = [save_folder(tmp_path / str(number), model) for number, model in enumerate(with_and_without())]
    answers, plain = (pipeline("text-classification", str(folder), device="cpu")(texts(3)) for folder in folders)
    assert answers == plain


@torch.no_grad()
def test_hidden_states_are_those_without_it() -> None:
    model, plain = with_and_without()
    inputs = padded(model, token_rows(3))
    states, others = (each(**inputs, output_hidden_states=True).hidden_states for each in (model, plain))
    assert all(torch.equal(one, two) for one, two in zip(states, others, strict=True))


# Training on from a model with exits.


@torch.no_grad()
def test_a_fitted_one_goes_on_where_its_form_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(lexical=LEXICAL)
    inputs = padded(model, text_rows(4))
    again = MultiExitModel.from_backbone(model, lexical=LexicalExit(**model.config.lexical)).eval()
    assert torch.equal(again(**inputs).exit_logits, model(**inputs).exit_logits)
    fresh = MultiExitModel.from_backbone(encoder_config(), 3, lexical=LexicalExit(**model.config.lexical))
    assert fresh.config.lexical["fitted_rows"] == len(fresh.lexical_exit.fitted_rows) == 0
    assert again.config.lexical == model.config.lexical
    again.lexical_exit.table.zero_()
    assert model.lexical_exit.table.any()
    caplog.clear()
    assert MultiExitModel.from_backbone(model).lexical_exit is None
    other = MultiExitModel.from_backbone(model, lexical=LexicalExit(buckets=67))
    assert len(other.lexical_exit.fitted_rows) == 0
    assert caplog.messages == [
        "the exits go on from their weights; but the exit before the first layer is left out",
        "the exits go on from their weights; but the exit before the first layer starts anew",
    ]


# Operating points.

READING = OperatingPoint({"name": "margin"}, (0.4, math.inf, 0.2), exit_layers=(0, 1, 3, 4))
BEHIND = OperatingPoint({"name": "entropy"}, (0.3, math.inf, 0.5))


@torch.no_grad()
def test_at_a_point_samples_leave_before_the_first_layer_as_in_a_replay() -> None:
    model, plain = with_and_without(pooling="mean")
    inputs = padded(model, token_rows(40))
    trace = Trace(model(**inputs).exit_logits, layers=model.layers)
    model.set_operating_point(READING)
    answers, expected = model(**inputs), replay(trace.select(READING.exit_layers), READING.policy, READING.thresholds)
    assert answers.exit_layers.unique().tolist() == [0, 3, 4]
    assert torch.equal(answers.exit_layers, expected.exit_layers)
    assert torch.allclose(answers.logits, expected.logits, atol=1e-5)
    for each in (model, plain):  # a point of the time before
        each.set_operating_point(BEHIND)
    answers, before = model(**inputs), plain(**inputs)
    assert torch.equal(answers.logits, before.logits)
    assert torch.equal(answers.exit_layers, before.exit_layers)
    model.lexical_exit.fitted_rows = torch.zeros(0, dtype=torch.int64)
    model.set_operating_point(BEHIND)
    with pytest.raises(InvalidInput, match="is not fitted; "):
        model.set_operating_point(READING)


def test_a_policy_with_numbers_for_other_exits_than_the_point_reads_is_refused() -> None:
    model = tiny_model(lexical=LEXICAL)
    for parameters in ({"name": "margin", "lines": [[0.0, 1.0]] * 5}, fitted("consistency", exits=5)):
        model.set_operating_point(OperatingPoint(parameters, (0.5,) * 4))
        some = OperatingPoint(parameters, (0.5,) * 3, exit_layers=(0, 2, 3, 4))
        for take in (model.set_operating_point, TorchEngine(model).check):
            with pytest.raises(InvalidInput, match="for 5 exits, "):
                take(some)


@torch.no_grad()
def test_points_are_of_the_exits_that_they_read(tmp_path: Path) -> None:
    """A point that does not read the exit before the first layer outlives its coming, changing and going."""
    save_folder(tmp_path, tiny_model())
    save_points({"behind": BEHIND}, tmp_path)
    model = MultiExitModel.from_pretrained(tmp_path)
    renew_lexical(model, LEXICAL)
    fill_lexical(model)
    model.set_operating_point("behind")
    model.operating_points["reading"] = READING
    model.save_pretrained(tmp_path)
    assert set(load_points(tmp_path)) == {"behind", "reading"}
    assert read_points(tmp_path / POINTS_FILE)["reading"].fingerprint.exit_layers == (0, 1, 3, 4)

    again = MultiExitModel.from_pretrained(tmp_path)
    again.set_operating_point("reading")
    again.lexical_exit.bias += 1
    again.set_operating_point("behind")
    with pytest.raises(InvalidInput, match="the weights have changed since operating point 'reading' was loaded"):
        again.set_operating_point("reading")
    again.save_pretrained(tmp_path)
    assert set(load_points(tmp_path)) == {"behind"}

    model.operating_points["reading"] = READING
    model.save_pretrained(tmp_path)
    MultiExitModel.from_backbone(model).save_pretrained(tmp_path)  # without it
    assert set(load_points(tmp_path)) == {"behind"}


def test_a_setting_of_the_exit_counts_where_it_is_read(tmp_path: Path) -> None:
    save_folder(tmp_path, tiny_model(lexical=LEXICAL))
    save_points({"behind": BEHIND, "reading": READING}, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["lexical"]["ngrams"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert set(load_points(tmp_path)) == {"behind"}


def test_a_graph_without_it_is_not_stale_where_it_comes_or_changes(tmp_path: Path) -> None:
    folders = [save_folder(tmp_path / name, model) for name, model in zip("ab", with_and_without(), strict=True)]
    (tmp_path / "data").write_bytes(b"0" * 8)
    having, lacking = (ModelContent(folder) for folder in folders)
    behind = GraphSource.of(lacking, tmp_path / "data", [(0, 8)], [1, 2, 3, 4])
    assert [behind.difference(content, [1, 2, 3, 4], whole) for content in (having, lacking) for whole in (0, 1)] == [
        None
    ] * 4
    reading = GraphSource.of(having, tmp_path / "data", [(0, 8)], [0, 1, 2, 3, 4])
    assert reading.difference(having, [0, 1, 2, 3, 4]) is None
    model = fill_lexical(MultiExitModel.from_pretrained(folders[0]), seed=1)
    model.save_pretrained(folders[0])
    changed = ModelContent(folders[0])
    assert reading.difference(changed, [0, 1, 2, 3, 4]) == "of other weights than those beside it"
    assert behind.difference(changed, [1, 2, 3, 4]) is None


def test_weights_without_it_are_refused_for_a_configuration_with_it_and_the_reverse(tmp_path: Path) -> None:
    folders = [save_folder(tmp_path / name, model) for name, model in zip("ab", with_and_without(), strict=True)]
    configs = [(folder / "config.json").read_text() for folder in folders]
    for folder, config in zip(folders, reversed(configs), strict=True):
        (folder / "config.json").write_text(config)
    with pytest.raises(InvalidInput, match=r"its weights have lexical_exit\..*, and config.json means a model without"):
        load_model(folders[0])
    with pytest.raises(InvalidInput, match=r"its weights have no lexical_exit\."):
        load_model(folders[1])
