"""What callers may give a predictor, and what one bad text does to the others: nothing."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from transformers import BatchEncoding

from offramp.data.batching import encode
from offramp.errors import InvalidInput
from offramp.inference.inputs import in_halves
from offramp.inference.predictor import Predictor
from offramp.inference.torch_engine import TorchEngine
from offramp.model.modeling import MultiExitModel
from support.models import tiny_model, tiny_tokenizer

COLUMNS = {"text": ["the cat", "a dog"], "label": [0, 1]}


class PanicException(BaseException):
    """Named as the panic of a Rust extension, which is no Exception."""


class SparkColumn:
    """A column of Spark: any attribute is a column, and it cannot be read."""

    def __getattr__(self, name: str) -> "SparkColumn":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __iter__(self) -> None:
        raise TypeError("[NOT_ITERABLE] Column is not iterable.")


class DaskColumn:
    """A column of Dask, which has columns."""

    ndim = 1
    columns = pd.Index(["text"])

    def __iter__(self) -> Iterator[str]:
        yield from COLUMNS["text"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(TorchEngine(tiny_model()), tiny_tokenizer())


# Containers.


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ("the cat", r"got one text; give \[text\]"),
        (np.str_("the cat"), r"got one text; give \[text\]"),
        (b"the cat", "got bytes; decode it"),
        (bytearray(b"the cat"), "got bytearray; decode it"),
        ({"text": "a", "text_pair": "b"}, r"got the mapping dict with the keys 'text', 'text_pair'; give a list"),
        (BatchEncoding({"input_ids": [[1]]}), "got the mapping BatchEncoding with the keys 'input_ids'"),
        (datasets.DatasetDict(), r"got the mapping DatasetDict .* data\[\"text\"\]"),
        (
            datasets.Dataset.from_dict(COLUMNS),
            r"the table Dataset with the columns 'text', 'label'; .* table\[\"text\"\]",
        ),
        (pd.DataFrame(COLUMNS), r"the table DataFrame with the columns 'text', 'label'; give one of them"),
        (pa.table(COLUMNS), "the table Table with the columns 'text', 'label'"),
        (pa.array(COLUMNS["text"]), r"the Arrow array StringArray; give array.to_pylist\(\)"),
        (pa.chunked_array([COLUMNS["text"]]), r"the Arrow array ChunkedArray; give array.to_pylist\(\)"),
        (pd.Series(COLUMNS["text"]).str, "got StringMethods: 'StringMethods' object is not iterable"),
        (SparkColumn(), r"got SparkColumn: \[NOT_ITERABLE\] Column is not iterable"),
        (io.StringIO("the cat\na dog\n"), "got an open file; give its lines without their ends"),
        (io.BytesIO(b"the cat\n"), "got an open file"),
        ({"the cat", "a dog"}, "got a set, which has no order"),
        (np.array([["the cat", "a dog"]]), r"the array ndarray of 2 axes; give one axis of texts, or array.tolist\(\)"),
        (np.array("the cat"), "the array ndarray of 0 axes"),
        (("the cat", "a dog"), r"a tuple of two texts; give \[\(a, b\)\] for one pair, \[a, b\] for two texts"),
        (None, "got NoneType: None"),
        (7, "got int: 7"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("ask", [Predictor.__call__, Predictor.stream])
def test_what_is_no_list_of_texts_is_refused_at_once(
    ask: Callable[..., object], container: Any, message: str, predictor: Predictor
) -> None:
    with pytest.raises(InvalidInput, match=f"^a predictor takes a list of texts, .*{message}"):
        ask(predictor, container)


@pytest.mark.parametrize(
    "container",
    [
        pd.Series(["the cat", "a dog"], index=[5, 3]),
        pd.Series(["the cat", "a dog"], index=["columns", "column_names"]),
        *(pd.Series(["the cat", "a dog"], dtype=kind) for kind in ("string", "category", pd.ArrowDtype(pa.string()))),
        DaskColumn(),
        np.array(["the cat", "a dog"]),
        np.array(["the cat", "a dog"], dtype=object),
        datasets.Dataset.from_dict(COLUMNS)["text"],
        {"the cat": 1, "a dog": 2}.keys(),
        [{"text": "the cat"}, {"text": "a dog", "text_pair": None}],
        iter(["the cat", "a dog"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_list_of_texts_is_taken(container: Iterable[Any], predictor: Predictor) -> None:
    assert predictor(container) == predictor(["the cat", "a dog"])


def test_a_dict_of_a_text_and_a_pair_is_the_pair(predictor: Predictor) -> None:
    pair = {"text": "the cat", "text_pair": "a dog"}
    assert predictor([pair]) == predictor([("the cat", "a dog")]) != predictor(["the cat"])


@pytest.mark.parametrize(
    "item",
    [
        next(pd.DataFrame({"text": ["the cat"], "label": ["a dog"]}).itertuples(index=False)),
        {"text": ["the cat", "a dog"]},
        {"text": ["the cat", "a dog"], "text_pair": None},
        {"text": "the cat", "label": "a dog"},
    ],
)
def test_a_row_or_columns_of_a_table_are_no_pair(item: Any, predictor: Predictor) -> None:
    with pytest.raises(InvalidInput, match=r"^item 0 must be a text or a pair of texts"):
        predictor([item])


@pytest.mark.parametrize("dtype", [object, "str", "string", "category", pd.ArrowDtype(pa.string())], ids=str)
def test_a_missing_cell_of_a_column_is_refused_with_its_place(dtype: Any, predictor: Predictor) -> None:
    column = pd.Series(["the cat", None], dtype=dtype)
    with pytest.raises(InvalidInput, match=r"^item 1 must be a text or a pair of texts, got (None|nan|<NA>) \(\w+\)$"):
        predictor(column)
    assert predictor(column.astype(object).fillna(""))[1] == {"error": "the text is blank"}


# One text's fault.


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ("", "the text is blank"),
        (" \t\n\u3000", "the text is blank"),
        ("the \ud83d cat", r"not a Unicode text: half of a character (a lone surrogate) at position 4"),
        (("the cat", ""), "one text of the pair is blank"),
        ("\0\u200b\ufeff", "the text has no tokens"),
        (("\u200b", "\0"), "the text has no tokens"),
        (("\udc80", "a dog"), r"not a Unicode text: half of a character (a lone surrogate) at position 0"),
    ],
)
def test_a_text_that_cannot_be_read_is_an_error_in_its_row(bad: Any, fault: str, predictor: Predictor) -> None:
    first, error, last = predictor(["the cat", bad, "a dog"])
    assert error == {"error": fault}
    assert [first, last] == predictor(["the cat", "a dog"])
    assert list(predictor.stream([bad])) == [error]


@pytest.mark.parametrize("error", [TypeError("TextEncodeInput\nmust be"), PanicException("byte index 3")])
def test_a_text_on_which_the_tokenizer_fails_leaves_the_others_theirs(
    error: BaseException, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(tokenizer: Any, texts: list[str], max_length: int) -> Any:
        if "bad" in texts:
            raise error
        return encode(tokenizer, texts, max_length)

    monkeypatch.setattr("offramp.inference.inputs.encode", failing)
    answers = predictor(["the cat", "bad", "a dog", "a tree"])
    assert answers[1] == {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    assert [answers[0], *answers[2:]] == predictor(["the cat", "a dog", "a tree"])


def test_tokens_that_the_model_does_not_have_are_an_error_in_their_row() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(40)])  # the embedding has no row for the last of them
    predictor = Predictor(TorchEngine(tiny_model()), tokenizer)
    answers = predictor(["the cat", "word39", "a dog", "on the mat"])
    assert answers[1] == {"error": "the tokenizer's token 64 is none of the model's 40"}
    assert [answers[0], *answers[2:]] == predictor(["the cat", "a dog", "on the mat"])


def test_a_row_on_which_the_engine_fails_leaves_the_others_theirs(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["the cat", "bad", "a dog", "a tree", "the mat"]
    expected, embed = predictor(texts), MultiExitModel.embed
    bad = predictor.tokenizer.convert_tokens_to_ids("bad")

    def failing(model: MultiExitModel, inputs: dict[str, torch.Tensor]) -> Any:
        if (inputs["input_ids"] == bad).any():
            raise RuntimeError("bad_alloc\nin the kernel")
        return embed(model, inputs)

    monkeypatch.setattr(MultiExitModel, "embed", failing)
    expected[1] = {"error": "RuntimeError: bad_alloc in the kernel"}
    for one, other in zip(predictor(texts), expected, strict=True):
        assert one == pytest.approx(other)


def test_a_text_without_any_tokens_is_an_error_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = lambda tokenizer, texts, max_length: [{"input_ids": [5] * 3 * (text != "nothing")} for text in texts]  # noqa: E731
    monkeypatch.setattr("offramp.inference.inputs.encode", bare)
    answers = Predictor(TorchEngine(tiny_model()), tiny_tokenizer())(["nothing", "the cat"])
    assert answers[0] == {"error": "the text has no tokens"}
    assert set(answers[1]) == {"label", "score", "exit_layer"}


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), InvalidInput("x"), KeyboardInterrupt()]
)
def test_what_no_row_is_to_blame_for_is_raised(error: BaseException) -> None:
    def fail(numbers: Any) -> Any:
        raise error

    with pytest.raises(type(error)):
        in_halves(fail, [1, 2])
