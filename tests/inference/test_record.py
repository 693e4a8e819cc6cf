import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor

from offramp.bench.cost_table import measure_costs
from offramp.data.columns import Columns
from offramp.data.examples import Examples
from offramp.errors import DataError, InvalidInput, UnknownName
from offramp.inference.onnx.metadata import weights_digest
from offramp.inference.predictor import Predictor
from offramp.inference.record import read_for, record
from offramp.model.config import MultiExitConfig
from offramp.model.flops import macs
from offramp.model.lexical.config import LexicalExit
from offramp.model.lexical.fitted_rows import token_hashes
from offramp.model.modeling import MultiExitModel
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import Answers, ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.models import (
    FAMILIES,
    LAYERS,
    TEXTS,
    padded,
    rows_for,
    save_folder,
    text_rows,
    texts,
    tiny_model,
    tiny_tokenizer,
    token_rows,
)

NAMES = {0: "bad", 1: "fine", 2: "good"}


@dataclass(frozen=True)
class TokenCounts:
    """An engine of neither class: at exit `i` the first class has the number of tokens, all others `i`."""

    config: MultiExitConfig
    name: str = "counts-float32"
    layers: Sequence[int] = tuple(range(1, LAYERS + 1))

    def check(self, point: OperatingPoint | None) -> None:
        """Run every point."""

    def answer(self, inputs: Mapping[str, Tensor], point: OperatingPoint | None) -> Answers:
        logits, rows = self.all_exits(inputs).logits[0], len(inputs["input_ids"])
        return Answers(logits, torch.ones(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.bool))

    def all_exits(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        tokens = inputs["attention_mask"].sum(dim=-1).float()  # (B,)
        exits = torch.arange(float(LAYERS)).view(LAYERS, 1, 1).repeat(1, len(tokens), self.config.num_labels)
        exits[..., 0] = tokens
        return ExitOutput(exits, problem_type=self.config.problem_type)


def test_an_engine_of_any_class_records_answers_and_is_timed() -> None:
    engine, rows = TokenCounts(tiny_model(id2label=NAMES).config), token_rows(5)
    trace = record(engine, rows)
    assert trace.logits[2].tolist() == [[len(row["input_ids"]), 2, 2] for row in rows]
    assert trace.provenance == {"engine": "counts-float32"}
    assert [answer["label"] for answer in Predictor(engine, tiny_tokenizer())(texts(3))] == ["bad"] * 3
    assert measure_costs(engine, rows, rounds=1).engine == "counts-float32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("model"), tiny_model(id2label=NAMES, pooling="mean"))


@torch.no_grad()
def alone(model: MultiExitModel, rows: list[dict[str, Any]]) -> Tensor:
    """(L, N, C), one row at a time."""
    return torch.cat([model(**padded(model, [row])).exit_logits for row in rows], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_holds_what_every_exit_says_in_the_order_of_the_rows(family: str) -> None:
    model = tiny_model(family, exit_layers=[1, 3, 4])
    rows = rows_for(model, 20)
    trace = record(model, rows, batch_size=6)
    assert trace.logits.shape == (3, 20, 3)
    assert torch.allclose(trace.logits, alone(model, rows), atol=1e-5)
    assert trace.layer_numbers == [1, 3, 4]
    tokens = [len(row["input_ids"]) for row in rows] if family in TEXTS else None
    assert (None if trace.tokens is None else trace.tokens.tolist()) == tokens
    assert trace.problem_type == SINGLE_LABEL
    assert trace.labels is None


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_does_not_change_a_trace(batch_size: int) -> None:
    model, rows = tiny_model(pooling="mean"), token_rows(20)
    assert torch.allclose(record(model, rows, batch_size=batch_size).logits, record(model, rows).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["label", "labels"])
def test_labels_of_token_rows_keep_their_order(name: str) -> None:
    rows = [{**row, name: number % 3} for number, row in enumerate(token_rows(20))]
    assert record(tiny_model(), rows, batch_size=4).labels.tolist() == [number % 3 for number in range(20)]


def test_token_rows_may_be_a_data_set_or_tensors() -> None:
    model = tiny_model()
    rows = [{**row, "labels": number % 3, "idx": number} for number, row in enumerate(token_rows(9))]
    expected = record(model, rows)
    tensors = [{**row, "input_ids": torch.tensor(row["input_ids"])} for row in rows]
    for dataset in (Dataset.from_list(rows), Dataset.from_list(rows).with_format("torch"), tensors):
        trace = record(model, dataset)
        assert torch.equal(trace.logits, expected.logits)
        assert torch.equal(trace.labels, expected.labels)


@pytest.mark.parametrize(
    ("problem", "outputs", "label"),
    [(MULTI_LABEL, 3, [1.0, 0.0, 1.0]), (REGRESSION, 1, 0.5), (REGRESSION, 2, [0.5, 2.0])],
)
def test_a_trace_knows_its_kind_of_problem(problem: str, outputs: int, label: Any) -> None:
    model = tiny_model(num_labels=outputs, problem_type=problem)
    trace = record(model, [{**row, "labels": label} for row in token_rows(4)])
    assert trace.problem_type == problem
    assert trace.labels.tolist() == [label] * 4


def test_rows_without_a_mask_are_padded_with_one() -> None:
    model, rows = tiny_model(pooling="mean"), token_rows(8)
    bare = [{"input_ids": row["input_ids"]} for row in rows]
    assert torch.allclose(record(model, bare).logits, record(model, rows).logits, atol=1e-6)
    assert torch.equal(record(model, bare).tokens, record(model, rows).tokens)


def test_padding_does_not_count_as_tokens() -> None:
    row = {"input_ids": [6, 7, 8, 0, 0], "attention_mask": [1, 1, 1, 0, 0]}
    assert record(tiny_model(), [row]).tokens.tolist() == [3]


@pytest.mark.parametrize("source", ["model", "folder"])
def test_a_trace_knows_the_costs_of_its_rows_and_which_fitted_the_lexical_exit(source: str, tmp_path: Path) -> None:
    model, rows = tiny_model(lexical=LexicalExit()), token_rows(6)
    padded_row = {"input_ids": [*rows[1]["input_ids"], 0], "attention_mask": [1] * len(rows[1]["input_ids"]) + [0]}
    model.lexical_exit.fitted_rows = torch.unique(token_hashes([rows[1]["input_ids"], rows[4]["input_ids"]]))
    model.config.lexical = {**model.config.lexical, "fitted_rows": 2}
    recorded = record(model if source == "model" else save_folder(tmp_path, model), [*rows, padded_row])
    assert recorded.layer_numbers == [0, *range(1, LAYERS + 1)]
    assert recorded.fit_rows.tolist() == [False, True, False, False, True, False, True]
    torch.testing.assert_close(recorded.macs, macs(model.config, recorded.tokens).float())
    saved = tmp_path / "trace.safetensors"
    recorded.save(saved)
    assert torch.equal(Trace.load(saved).fit_rows, recorded.fit_rows)
    without = record(tiny_model("deberta"), rows)
    assert (without.macs, without.fit_rows) == (None, None)  # its layers have other formulas


def test_a_folder_answers_examples(folder: Path) -> None:
    examples = Examples(texts(20), [number % 3 for number in range(20)], tuple(NAMES.values()), SINGLE_LABEL)
    trace = record(folder, examples, batch_size=6)
    expected = alone(MultiExitModel.from_pretrained(folder), text_rows(20))
    assert torch.allclose(trace.logits, expected, atol=1e-5)
    assert trace.labels.tolist() == examples.labels


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    path = tmp_path / "reviews.csv"
    path.write_text("review,mood\nthe cat sat,good\na dog ran on the mat,bad\nfine,fine\nvery awful,bad\n")
    return str(path)


def test_a_folder_reads_a_file_by_the_models_class_names(folder: Path, reviews: str) -> None:
    trace = record(folder, reviews, columns=Columns(label="mood"))
    assert trace.labels.tolist() == [2, 0, 1, 0]
    assert trace.logits.shape == (LAYERS, 4, 3)


def test_a_trace_says_where_it_is_from(folder: Path, reviews: str) -> None:
    trace = record(folder, reviews, columns=Columns(label="mood"))
    assert trace.provenance == {"engine": "torch-float32", "data": "reviews.csv", "weights": weights_digest(folder)}
    rough = tiny_model().to(torch.bfloat16)
    assert record(rough, token_rows(2)).provenance["engine"] == "torch-bfloat16"


def test_a_data_set_with_the_models_classes_in_another_order_is_read_by_name() -> None:
    model = tiny_model(id2label=NAMES)
    for names, expected in ((["good", "bad", "fine"], [2, 0, 1]), (["bad", "fine", "good"], [0, 1, 2])):
        rows = Dataset.from_list([{**row, "label": number} for number, row in enumerate(token_rows(3))])
        trace = record(model, rows.cast_column("label", ClassLabel(names=names)))
        assert trace.labels is not None
        assert trace.labels.tolist() == expected


def test_values_of_another_width_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    path.write_text('{"text": "a cat", "label": [1.5]}\n{"text": "a dog", "label": [2]}\n')
    model = tiny_model(num_labels=3, problem_type=REGRESSION)
    with pytest.raises(DataError, match=r"the labels have 1 numbers a row, the model answers 3"):
        read_for(model.config, str(path))


def test_a_label_that_the_model_does_not_have_is_refused_with_its_place(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\nfine,good\nfine,great\n")
    with pytest.raises(
        DataError, match=r"reviews\.csv, line 3: unknown label 'great'; expected one of 'bad', 'fine', 'good'"
    ):
        record(folder, str(path))


def test_read_for_reads_in_the_models_task(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine", "label": 0.5}\n{"text": "good", "label": 2}\n')
    examples = read_for(tiny_model(num_labels=1).config, str(path))
    assert (examples.labels, examples.problem_type) == ([0.5, 2.0], REGRESSION)
    path.write_text('{"text": "fine", "label": ["good", "bad"]}\n{"text": "good", "label": []}\n')
    examples = read_for(tiny_model(id2label=NAMES, problem_type=MULTI_LABEL).config, str(path))
    assert (examples.labels, examples.problem_type) == ([[1, 0, 1], [0, 0, 0]], MULTI_LABEL)


def test_long_texts_are_cut_to_what_the_model_can_read(folder: Path) -> None:
    examples = Examples(["the cat " * 200], [0], tuple(NAMES.values()), SINGLE_LABEL)
    assert record(folder, examples).logits.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_recording_runs_without_dropout_and_leaves_the_model_as_it_was(training: bool) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    expected = record(model, token_rows(5)).logits
    model.train(training)
    assert torch.equal(record(model, token_rows(5)).logits, expected)
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_an_operating_point_does_not_shorten_a_trace() -> None:
    model = tiny_model()
    expected = record(model, token_rows(5)).logits
    model.set_operating_point(OperatingPoint({"name": "fixed"}, (1.0,) * (LAYERS - 1)))
    assert torch.equal(record(model, token_rows(5)).logits, expected)


def test_samples_that_turn_to_nan_are_recorded_as_nan() -> None:
    model, rows = tiny_model(), token_rows(6)
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight[39] = torch.nan
    rows[4]["input_ids"][0] = 39
    broken = ~record(model, rows).logits.isfinite().all(dim=-1)
    assert broken.tolist() == [[False, False, False, False, True, False]] * LAYERS


def test_what_cannot_be_recorded_is_refused(folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(UnknownName, match="unknown engine 'onxx'; known: auto, torch, onnx, onnx-int8"):
        record(model, token_rows(2), engine="onxx")
    with pytest.raises(InvalidInput, match="no rows"):
        record(model, [])
    with pytest.raises(DataError, match="rows must be mappings with input_ids"):
        record(model, [{"text": "fine", "label": 1}])
    examples = Examples(["fine"], [1], tuple(NAMES.values()), SINGLE_LABEL)
    with pytest.raises(InvalidInput, match="texts need a tokenizer"):
        record(model, examples)
    with pytest.raises(DataError, match="no such file"):
        record(folder, str(tmp_path / "none.csv"))
    with pytest.raises(InvalidInput, match="no model can be loaded from there"):
        record(tmp_path / "none", token_rows(2))


def test_rows_of_which_some_have_no_label_are_refused() -> None:
    rows = token_rows(4)
    rows[0]["label"] = rows[1]["label"] = 1
    with pytest.raises(DataError, match="row 2 has no label"):
        record(tiny_model(), rows)


def test_texts_in_place_of_rows_are_told_apart() -> None:
    with pytest.raises(DataError, match="rows must be mappings with input_ids, got 'the cat'"):
        record(tiny_model(), ["the cat"])


class OneOfTwo:
    """A process group of two, whose processes run one after the other: what each sends is kept for the next."""

    def __init__(self, sent: dict[int, list[Any]], number: int) -> None:
        self.sent, self.number = sent, number

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return 2


@pytest.mark.parametrize("count", [1, 7, 40])
def test_two_processes_record_the_trace_of_one_each_a_share_of_the_batches(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(parts: list[Any], part: Any, group: OneOfTwo) -> None:
        sent = group.sent.setdefault(group.number, [])
        sent.append(part)
        parts[:] = [group.sent[number][len(sent) - 1] if number in group.sent else part for number in (0, 1)]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    model, sent = tiny_model(certainty=True), {}
    rows = token_rows(count)
    second, first = (record(model, rows, batch_size=3, group=OneOfTwo(sent, number)) for number in (1, 0))  # type: ignore[arg-type]
    alone = record(model, rows, batch_size=3)
    assert torch.equal(first.logits, alone.logits)
    assert torch.equal(first.certainty, alone.certainty)
    assert torch.equal(first.tokens, alone.tokens)
    assert torch.equal(first.macs, alone.macs)
    shares = [set(sent[number][0][0]) for number in (0, 1)]
    assert shares[0] | shares[1] == set(range(count))
    assert not shares[0] & shares[1]
    assert len(second) == count
