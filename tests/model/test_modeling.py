import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, BertModel, pipeline

from offramp.early_exit.loop import run
from offramp.errors import InvalidInput, UnknownName
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.model.config import MultiExitConfig
from offramp.model.lexical.config import LexicalExit
from offramp.model.loading import load_folder
from offramp.model.modeling import MultiExitModel
from offramp.policies.confidence import Entropy
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.operating_point import POINTS_FILE, Measured, OperatingPoint, write_points
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.models import (
    FAMILIES,
    LAYERS,
    TEXTS,
    balanced,
    encoder_config,
    padded,
    rows_for,
    save_folder,
    text_rows,
    texts,
    tiny_model,
)
from support.traces import crossed

ENTROPY = {"name": "entropy"}
NAMES = {0: "bad", 1: "fine", 2: "good"}
KEEPING = ("albert", "cifar_resnet", "mpnet")  # all that they computed, in training; so they do in transformers


def batch_of(model: MultiExitModel, count: int = 8) -> dict[str, Tensor]:
    return padded(model, rows_for(model, count), extra=2)


def point_at(model: MultiExitModel, quantile: float = 0.5) -> OperatingPoint:
    """At which some samples leave early and some do not."""
    seen = scores(Entropy(), record(model, text_rows(40)))[:-1]
    return OperatingPoint(ENTROPY, (seen.quantile(quantile).item(),) * (len(model.layers) - 1))


def named_model() -> MultiExitModel:
    return balanced(tiny_model(id2label=NAMES, pooling="mean"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with two operating points; "default" lets about half of the samples leave early."""
    path = tmp_path_factory.mktemp("model")
    model = named_model()
    save_folder(path, model)
    measured = Measured("accuracy", 0.8, 0.81, 0.97, 2.5, LAYERS, 40)
    default = point_at(model)
    points = {"default": OperatingPoint(ENTROPY, default.thresholds, {"max_drop": 0.01}, measured)}
    write_points(points | {"first": OperatingPoint(ENTROPY, (-math.inf,) * 3)}, path / POINTS_FILE)
    return path


# What a forward pass gives.


def test_logits_are_the_last_exits() -> None:
    model = tiny_model()
    out = model(**batch_of(model))
    assert out.logits.shape == (8, 3)
    assert torch.equal(out.logits, out.exit_logits[-1])
    assert out.loss is None
    assert out.exit_layers is None


def test_exit_logits_are_a_view_with_the_exits_in_front() -> None:
    model = tiny_model()
    out = model(**batch_of(model))
    assert out.logits_by_exit.shape == (8, LAYERS, 3)
    assert out.exit_logits.shape == (LAYERS, 8, 3)
    assert out.exit_logits.data_ptr() == out.logits_by_exit.data_ptr()
    for exit in range(LAYERS):
        for sample in range(8):
            assert torch.equal(out.exit_logits[exit, sample], out.logits_by_exit[sample, exit])


def test_exits_say_in_exit_logits_what_they_say_to_the_engine() -> None:
    model = tiny_model()
    batch = batch_of(model)
    carry = model.embed(batch)
    for exit, logits in enumerate(model(**batch).exit_logits):
        carry = model.block(exit, carry)
        assert torch.allclose(model.exit(exit, carry).logits, logits, atol=1e-6)


@pytest.mark.parametrize(
    ("problem", "outputs", "labels"),
    [
        (SINGLE_LABEL, 3, torch.tensor([0, 2, 1, 1])),
        (MULTI_LABEL, 3, torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]])),
        (REGRESSION, 1, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        (REGRESSION, 2, torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, 2.0], [0.0, 1.0]])),
    ],
)
def test_the_loss_is_weighted_by_depth(problem: str, outputs: int, labels: Tensor) -> None:
    model = tiny_model(num_labels=outputs, problem_type=problem)
    out = model(**batch_of(model, 4), labels=labels)
    task = {SINGLE_LABEL: F.cross_entropy, MULTI_LABEL: F.binary_cross_entropy_with_logits, REGRESSION: F.mse_loss}
    by_hand = [task[problem](logits.squeeze(-1), labels).item() for logits in out.exit_logits]
    expected = sum(exit * loss for exit, loss in enumerate(by_hand, start=1)) / 10
    assert out.loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_tuple_holds_what_there_is() -> None:
    model = tiny_model()
    batch = batch_of(model)
    out = model(**batch)
    logits, by_exit = model(**batch, return_dict=False)
    assert torch.equal(logits, out.logits)
    assert torch.equal(by_exit, out.logits_by_exit)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"num_labels": 3}, SINGLE_LABEL),
        ({"num_labels": 1}, REGRESSION),
        ({}, SINGLE_LABEL),
        ({"id2label": NAMES}, SINGLE_LABEL),
    ],
)
def test_the_problem_follows_from_the_number_of_outputs(given: dict[str, Any], problem: str) -> None:
    model = MultiExitModel.from_backbone(encoder_config(), **given)
    assert model.config.problem_type == problem
    assert model.config.num_labels == given.get("num_labels", len(given.get("id2label", "ab")))


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_runs_and_answers_in_float32(family: str) -> None:
    model = tiny_model(family)
    batch = batch_of(model)
    exact = model(**batch).logits_by_exit
    rough = model.to(torch.bfloat16)(**batch).logits_by_exit
    assert rough.dtype == torch.float32
    assert torch.allclose(rough, exact, atol=0.5)
    assert not torch.equal(rough, exact)


# Arguments that are refused.


@pytest.mark.parametrize("layers", [[1, 2, 3], [2, 2, 4], [3, 1, 4], [0, 4], [1, 5], [-1, 4]])
def test_exit_layers_must_rise_to_the_last_layer(layers: list[int]) -> None:
    with pytest.raises(InvalidInput, match=r"exit_layers must rise from 1 .* last layer, 4; got"):
        tiny_model(exit_layers=layers)


def test_the_last_layer_alone_is_the_plain_classifier() -> None:
    model = tiny_model(exit_layers=[4])
    out = model(**batch_of(model))
    assert out.exit_logits.shape == (1, 8, 3)
    answers = run(model, Entropy(), math.inf, batch_of(model))
    assert torch.equal(answers.logits, out.logits)


def test_num_labels_and_id2label_must_agree() -> None:
    with pytest.raises(InvalidInput, match="num_labels is 2, but id2label names 3"):
        tiny_model(num_labels=2, id2label=NAMES)
    model = tiny_model(num_labels=3, id2label=NAMES)
    assert model.config.id2label == NAMES
    assert model.config.label2id == {"bad": 0, "fine": 1, "good": 2}


def test_an_unknown_problem_type_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"problem_type must be one of .*; got 'ranking'"):
        tiny_model(problem_type="ranking")


# A model folder.


def test_a_saved_model_comes_back_the_same(folder: Path) -> None:
    model, back = named_model(), MultiExitModel.from_pretrained(folder)
    batch = batch_of(model)
    assert not back.training
    assert torch.equal(back(**batch).logits_by_exit, model(**batch).logits_by_exit)
    for name in ("head", "pooling", "exit_layers", "problem_type", "id2label", "pad_token_id", "exit_dropout"):
        assert getattr(back.config, name) == getattr(model.config, name), name
    kept = [each.config.backbone.to_dict() | {"dtype": None} for each in (back, model)]  # the model's own dtype counts
    assert kept[0] == kept[1]


HEADED = [
    case
    for case in crossed(FAMILIES, ("linear", "pooler", "shared_pooler"), ("linear",))
    if case.values != ("cifar_resnet", "shared_pooler")  # its exits have several widths
]


@pytest.mark.parametrize(("family", "head"), HEADED)
def test_every_encoder_and_head_comes_back_the_same(family: str, head: str, tmp_path: Path) -> None:
    lexical = LexicalExit(buckets=61) if family in TEXTS else None
    model = tiny_model(family, head=head, exit_layers=[1, 2, 4], lexical=lexical)
    model.save_pretrained(tmp_path)
    back = MultiExitModel.from_pretrained(tmp_path)
    batch = batch_of(model)
    assert torch.equal(back(**batch).logits_by_exit, model(**batch).logits_by_exit)
    assert back.layers == ([0, 1, 2, 4] if family in TEXTS else [1, 2, 4])


def test_the_dtype_comes_back(tmp_path: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    back = MultiExitModel.from_pretrained(tmp_path)
    assert back.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in back.parameters()} == {torch.bfloat16}


def test_a_live_models_dtype_is_kept() -> None:
    model = MultiExitModel.from_backbone(BertModel(encoder_config()).to(torch.bfloat16), 3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_folder_holds_only_what_cannot_run_code(folder: Path) -> None:
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json", ".md"}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert all(name.split(".")[0] in ("backbone", "heads") for name in file.keys())  # noqa: SIM118 - not a dict


def test_operating_points_go_with_the_model(folder: Path, tmp_path: Path) -> None:
    model = MultiExitModel.from_pretrained(folder)
    assert list(model.operating_points) == ["default", "first"]
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / POINTS_FILE).read_text())
    assert all(point.pop("fingerprint")["exit_layers"] == model.layers for point in saved["points"].values())
    assert saved == json.loads((folder / POINTS_FILE).read_text())
    assert MultiExitModel.from_pretrained(tmp_path).operating_points == model.operating_points


def test_a_model_without_points_writes_no_file_of_points(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    assert not (tmp_path / POINTS_FILE).exists()
    assert MultiExitModel.from_pretrained(tmp_path).operating_points == {}


def test_the_card_says_what_the_model_is(folder: Path, tmp_path: Path) -> None:
    MultiExitModel.from_pretrained(folder).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: offramp\npipeline_tag: text-classification\n")
    for part in ("bert encoder", "4 layers", "after layers 1, 2, 3, 4", "`linear`", "`mean`", "bad, fine, good"):
        assert part in card
    assert "| default | entropy | accuracy 0.8000 | accuracy 0.8100 | 2.50 of 4 | 38% |" in card
    assert "| first | entropy | not measured | | | |" in card
    assert "None yet; `offramp calibrate` makes them." in (folder / "README.md").read_text()


def test_a_card_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_load_folder_says_what_is_wrong_with_a_folder(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_folder(folder)
    assert (model.config.num_labels, tokenizer.pad_token) == (3, "[PAD]")
    with pytest.raises(InvalidInput, match="no model can be loaded from there"):
        load_folder(tmp_path)
    encoder_config().save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=r"a bert model without exits; `offramp train` puts exits on it"):
        load_folder(tmp_path)


# Leaving early inside transformers.


def test_a_point_makes_forward_leave_as_replay_does(folder: Path) -> None:
    model = MultiExitModel.from_pretrained(folder)
    rows = text_rows(40)
    trace = record(model, rows)
    model.set_operating_point("default")
    with torch.no_grad():
        out = model(**padded(model, rows))
    expected = replay(trace, load_policy("entropy"), model.operating_point.thresholds)
    near = (scores(Entropy(), trace)[:-1] - model.operating_point.thresholds[0]).abs().amin(dim=0) < 1e-5
    assert torch.equal(out.exit_layers[~near], expected.exit_layers[~near])
    assert torch.allclose(out.logits[~near], expected.logits[~near], atol=1e-4)
    assert len(out.exit_layers.unique()) > 1
    assert out.exit_logits is None


def test_a_point_may_be_a_name_a_point_or_none(folder: Path) -> None:
    model = MultiExitModel.from_pretrained(folder)
    batch = batch_of(model)
    model.set_operating_point("first")
    assert model(**batch).exit_layers.tolist() == [1] * 8
    model.set_operating_point(OperatingPoint({"name": "fixed"}, (2.0,) * 3))
    assert model(**batch).exit_layers.tolist() == [2] * 8
    model.set_operating_point(None)
    assert model.operating_point is None
    assert model(**batch).exit_layers is None


def test_an_unknown_point_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(UnknownName, match="'slow'; there are: default, first"):
        MultiExitModel.from_pretrained(folder).set_operating_point("slow")
    with pytest.raises(UnknownName, match="there are: none; `offramp calibrate` makes them"):
        tiny_model().set_operating_point("slow")


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_point_for_another_number_of_exits_is_refused(count: int) -> None:
    model = tiny_model()
    with pytest.raises(InvalidInput, match=f"4 exits take 1 or 3 thresholds .* got {count}"):
        model.set_operating_point(OperatingPoint(ENTROPY, (0.5,) * count))
    assert model.operating_point is None


def test_a_point_with_an_unknown_policy_is_refused_when_it_is_set() -> None:
    with pytest.raises(UnknownName, match="'entropie'; did you mean 'entropy'"):
        tiny_model().set_operating_point(OperatingPoint({"name": "entropie"}, (0.5,) * 3))


def test_in_training_and_with_labels_every_exit_answers_whatever_point_is_set() -> None:
    model = tiny_model()
    batch = batch_of(model)
    model.set_operating_point(OperatingPoint(ENTROPY, (-math.inf,) * 3))
    with_labels = model(**batch, labels=torch.zeros(8, dtype=torch.long))
    assert with_labels.exit_layers is None
    assert with_labels.loss is not None
    assert model.train()(**batch).exit_logits.shape == (LAYERS, 8, 3)
    assert model.eval()(**batch).exit_layers.tolist() == [1] * 8


def test_auto_class_loads_a_model_with_exits(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(model, MultiExitModel)
    assert isinstance(AutoConfig.from_pretrained(folder), MultiExitConfig)


@pytest.mark.parametrize("point", [None, "default"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_pipeline_answers_as_the_predictor_does(folder: Path, batch_size: int, point: str | None) -> None:
    sentences = texts(20)
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    classify.model.set_operating_point(point)
    answers = classify(sentences, batch_size=batch_size)

    expected = Predictor.load(folder, operating_point=point)(sentences)

    assert [each["label"] for each in answers] == [each["label"] for each in expected]
    assert [each["score"] for each in answers] == pytest.approx([each["score"] for each in expected], abs=1e-4)
    assert len({each["label"] for each in expected}) > 1
    assert (len({each["exit_layer"] for each in expected}) == 1) == (point is None)


# A model among others.


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in KEEPING])
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    plain = tiny_model(family).train()
    saving = copy.deepcopy(plain)
    saving.activation_checkpointing_enable()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    for model in (plain, saving):
        torch.manual_seed(4)  # the same dropout
        model(**batch_of(model), labels=labels).loss.backward()
    pairs = zip(plain.named_parameters(), saving.parameters(), strict=True)
    for (name, expected), found in pairs:
        assert torch.allclose(found.grad, expected.grad, atol=1e-7), name


def test_gradient_checkpointing_really_runs_layers_again() -> None:
    model = tiny_model().train()
    calls = []
    model.backbone.encoder.layer[1].attention.register_forward_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable()
    model(**batch_of(model), labels=torch.zeros(8, dtype=torch.long)).loss.backward()
    assert len(calls) == 2


@pytest.mark.parametrize("family", KEEPING)
def test_gradient_checkpointing_is_refused_where_transformers_has_none(family: str) -> None:
    with pytest.raises(ValueError, match="not compatible with gradient checkpointing"):
        tiny_model(family).activation_checkpointing_enable()


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_copy_is_a_model_of_its_own(family: str) -> None:
    model = tiny_model(family)
    model.set_operating_point(OperatingPoint(ENTROPY, (-math.inf,) * 3))
    batch = batch_of(model)
    before = model(**batch).logits
    other = copy.deepcopy(model)
    assert torch.equal(other(**batch).logits, before)

    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.set_operating_point(None)

    assert torch.equal(model(**batch).logits, before)
    assert other(**batch).logits_by_exit.eq(0).all()
    assert model.operating_point is not None


@pytest.mark.parametrize(
    "imports",
    [
        "import transformers, offramp",
        pytest.param("import offramp, transformers", marks=pytest.mark.slow),  # test_images does it in this order
        pytest.param(
            "from transformers import AutoModelForSequenceClassification; import offramp, transformers",
            marks=pytest.mark.slow,
        ),
        pytest.param("from offramp import MultiExitModel; import transformers", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_know_offramp_whoever_is_imported_first(imports: str, folder: Path) -> None:
    load = f"transformers.AutoModelForSequenceClassification.from_pretrained({str(folder)!r})"
    code = f"{imports}; print(type({load}).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "MultiExitModel\n", done.stderr


def test_import_offramp_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, offramp; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("layers", [[], [1.5, 4], [0, 4], [2, 2, 4], [1, 3]])
def test_exit_layers_that_make_no_sense_are_refused(layers: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="exit_layers must rise"):
        MultiExitModel.from_backbone(encoder_config(), exit_layers=layers)


@pytest.mark.parametrize("wrong", [{"num_labels": 0}, {"id2label": {}}, {"id2label": {1: "a", 2: "b"}}])
def test_outputs_without_a_number_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        MultiExitModel.from_backbone(encoder_config(), **wrong)


def test_an_attention_implementation_reaches_the_encoder(folder: Path) -> None:
    eager = MultiExitModel.from_pretrained(folder, attn_implementation="eager")
    assert eager.backbone.config._attn_implementation == "eager"


def test_a_live_encoders_configuration_is_not_shared() -> None:
    encoder = BertModel(encoder_config())
    model = MultiExitModel.from_backbone(encoder)
    model.config.backbone.pad_token_id = 7
    assert encoder.config.pad_token_id == 0


def test_points_come_along_even_if_the_folder_is_gone(folder: Path, tmp_path: Path) -> None:
    MultiExitModel.from_pretrained(folder).save_pretrained(tmp_path / "one")
    model = MultiExitModel.from_pretrained(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "moved")
    model.save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / POINTS_FILE).read_text() == (tmp_path / "moved" / POINTS_FILE).read_text()


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, 0.0), (0.3, 0.1)])
def test_exits_on_an_encoder_without_dropout_have_none(dropout: float, expected: float) -> None:
    for family, name in (("bert", "hidden_dropout_prob"), ("distilbert", "dropout")):
        model = MultiExitModel.from_backbone(encoder_config(family, **{name: dropout}), 3)
        assert model.config.exit_dropout == expected
        assert {module.p for module in model.heads.modules() if isinstance(module, torch.nn.Dropout)} == {expected}
