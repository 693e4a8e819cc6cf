"""The texts that a predictor takes: containers and items are checked, and one text's fault stays its own."""

from __future__ import annotations

import io
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from offramp.data.batching import Tokens, encode
from offramp.data.file_tokenizer import FileTokenizer
from offramp.data.rows import Text
from offramp.errors import InvalidInput, OfframpError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")

PAIR_KEYS = ("text", "text_pair")
"""The keys of a dict that stands for a text or a pair, as in transformers' pipelines."""


def read_texts(texts: Iterable[Text | Mapping[str, Any]]) -> Iterator[Text]:
    """Return an iterator over texts and pairs; the container is checked at once, an item when it comes.

    Args:
        texts: texts, pairs, or dicts of "text" and perhaps "text_pair".

    Raises:
        InvalidInput: something that is no list of texts; from the iterator, an item that is no text and no pair.
    """
    if (fault := _container_fault(texts)) is not None:
        raise InvalidInput(f"a predictor takes a list of texts, got {fault}")
    try:
        items = enumerate(texts)
    except TypeError as error:  # a column of Spark
        raise InvalidInput(
            f"a predictor takes a list of texts, got {type(texts).__name__}: {one_line(error)}"
        ) from None
    return (_to_text(item, index) for index, item in items)


def _container_fault(texts: object) -> str | None:
    """Return what was given in place of a list of texts, and what would be right; None for a list of texts."""
    if type(texts) is list:
        return None
    kind = type(texts).__name__
    if isinstance(texts, str):
        return "one text; give [text]"
    if isinstance(texts, (bytes, bytearray, memoryview)):
        return f"{kind}; decode it, and give a list"
    if isinstance(texts, Mapping):
        return (
            f'the mapping {kind} with the keys {_listed(texts)}; give a list, such as [{{"text": ...}}] or data["text"]'
        )
    axes = _of_class(texts, "ndim")
    columns = _of_class(texts, "column_names", "columns")  # of pandas, polars, pyarrow, datasets, Spark
    if columns is not None and axes != 1:  # a column of Dask has columns too
        return f'the table {kind} with the columns {_listed(columns)}; give one of them, such as table["text"]'
    if isinstance(texts, io.IOBase):
        return r'an open file; give its lines without their ends, such as (line.rstrip("\n") for line in file)'
    if isinstance(texts, (set, frozenset)):
        return f"a {kind}, which has no order"
    if hasattr(type(texts), "to_pylist"):
        return f"the Arrow array {kind}; give array.to_pylist()"
    if axes not in (None, 1):
        return f"the array {kind} of {axes} axes; give one axis of texts, or array.tolist() for pairs"
    if isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(part, str) for part in texts):
        return "a tuple of two texts; give [(a, b)] for one pair, [a, b] for two texts"
    return None if isinstance(texts, Iterable) else f"{kind}: {reprlib.repr(texts)}"


def _of_class(texts: object, *names: str) -> Any:
    """Return the first attribute that the class has; a Series has its index's names besides, a column of Spark any."""
    return next((getattr(texts, name) for name in names if hasattr(type(texts), name)), None)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(reprlib.repr(name) for name in names)


def _to_text(item: object, index: int) -> Text:
    if isinstance(item, str):
        return item
    parts = item
    if isinstance(item, Mapping) and "text" in item and all(key in PAIR_KEYS for key in item):
        parts = item["text"] if item.get("text_pair") is None else (item["text"], item["text_pair"])
        named = not isinstance(item["text"], str)  # a list of texts is no pair here
    else:
        named = getattr(item, "_fields", PAIR_KEYS) != PAIR_KEYS  # a row of a table, such as (text, label)
    if isinstance(parts, str):
        return parts
    if (
        not named
        and isinstance(parts, (tuple, list))
        and len(parts) == 2
        and all(isinstance(part, str) for part in parts)
    ):
        return (parts[0], parts[1])
    raise InvalidInput(
        f"item {index} must be a text or a pair of texts, got {reprlib.repr(item)} ({type(item).__name__})"
    )


def text_fault(text: Text) -> str | None:
    """Return the reason why no model can answer a text or a pair; None where it can."""
    for part in (text,) if isinstance(text, str) else text:
        if not part.strip():
            return "the text is blank" if part is text else "one text of the pair is blank"
        try:
            part.encode()
        except UnicodeEncodeError as error:
            return f"not a Unicode text: half of a character (a lone surrogate) at position {error.start}"
    return None


def encode_texts(
    tokenizer: PreTrainedTokenizerBase | FileTokenizer, texts: Sequence[Text], max_length: int, vocabulary: int
) -> tuple[dict[int, Tokens], dict[int, str]]:
    """Tokenize the texts that can be; return tokens and faults, both by the text's number.

    Args:
        tokenizer: the model's.
        texts: texts and pairs.
        max_length: of tokens, to which a text is cut.
        vocabulary: rows of the encoder's embedding.
    """
    faults = {number: fault for number, text in enumerate(texts) if (fault := text_fault(text)) is not None}
    readable = [number for number in range(len(texts)) if number not in faults]
    encoded, failed = in_halves(
        lambda numbers: encode(tokenizer, [texts[number] for number in numbers], max_length), readable
    )
    paired = {number: not isinstance(texts[number], str) for number in encoded}
    special = {pair: tokenizer.num_special_tokens_to_add(pair) for pair in set(paired.values())}
    unusable = {}
    for number, tokens in encoded.items():
        if (fault := _ids_fault(tokens, vocabulary, special[paired[number]])) is not None:
            unusable[number] = fault
    rows = {number: tokens for number, tokens in encoded.items() if number not in unusable}
    return rows, faults | failed | unusable


def _ids_fault(tokens: Tokens, vocabulary: int, special: int) -> str | None:
    """Return why a model cannot answer tokens, of which `special` are around every text; None where it can."""
    ids = tokens["input_ids"]
    if len(ids) <= special:
        return "the text has no tokens"
    if max(ids) >= vocabulary:
        return f"the tokenizer's token {max(ids)} is none of the model's {vocabulary}"
    return None


def in_halves(
    run: Callable[[Sequence[int]], Sequence[Result]], numbers: Sequence[int]
) -> tuple[dict[int, Result], dict[int, str]]:
    """Run on all rows at once; where that fails, on each half, down to the rows at fault (see `in_parts`).

    Args:
        run: returns one result for each row's number.
        numbers: of the rows.

    Returns:
        Results and faults, both by the row's number.
    """
    parts, faults = in_parts(lambda rows: dict(zip(rows, run(rows), strict=True)), numbers)
    return {number: result for part in parts for number, result in part.items()}, faults


def in_parts(run: Callable[[Sequence[int]], Result], numbers: Sequence[int]) -> tuple[list[Result], dict[int, str]]:
    """Run on all rows at once; where that fails, on each half, down to the rows at fault.

    Args:
        run: takes row numbers.
        numbers: of the rows.

    Returns:
        The results, one for each part, and faults by the row's number.

    Raises:
        MemoryError, OfframpError, torch.OutOfMemoryError: what no row is to blame for.
    """
    try:
        return [run(numbers)], {}
    except BaseException as error:
        if not _of_a_row(error):
            raise
        if len(numbers) == 1:
            return [], {numbers[0]: f"{type(error).__name__}: {one_line(error)}"}
    results: list[Result] = []
    faults: dict[int, str] = {}
    for half in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]):
        answered, failed = in_parts(run, half)
        results += answered
        faults |= failed
    return results, faults


def _of_a_row(error: BaseException) -> bool:
    """Return True for an error that a row may have caused; a panic of a tokenizer in Rust is no Exception.

    Torch's error of memory and the panic are known by their names, since nothing here needs to import them.
    """
    if isinstance(error, Exception):
        return not isinstance(error, (MemoryError, OfframpError)) and type(error).__name__ != "OutOfMemoryError"
    return type(error).__name__ == "PanicException"
