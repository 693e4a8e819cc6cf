"""Which columns of a source hold texts and labels: those asked for, the others guessed by name."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offramp.data.label_names import LabelNames
from offramp.errors import DataError

# names of columns that are tried, best first
PAIR_NAMES = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("text", "text_pair"), ("text", "pair"),
)  # fmt: skip
TEXT_NAMES = (
    "text", "sentence", "sentence1", "premise", "question", "question1",
    "content", "review", "message", "body",
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "intent", "class", "category", "target", "score")

log = logging.getLogger("offramp")


@dataclass(frozen=True)
class Columns:
    """The columns to read; None is guessed from the names of the columns.

    Attributes:
        text: the text, or the first of a pair.
        pair: the second text of a pair.
        label: the label; several columns hold 0 or 1 for each label, or a number each.
        label_names: what the numbers 0, 1, ... of the label column stand for; or a mapping from what the column holds
            to names of classes; or as text, what `--label-names` takes.
        guessed: text and pair were guessed from another file: a second text where that has none is an error.
    """

    text: str | None = None
    pair: str | None = None
    label: str | tuple[str, ...] | None = None
    label_names: LabelNames | str | None = None
    guessed: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label columns; none are () ."""
        return (self.label,) if isinstance(self.label, str) else tuple(self.label or ())


GUESSED = Columns()


def choose_columns(
    columns: Columns, record: Mapping[str, Any], name: str, labelled: bool, own_labels: Sequence[str] = ()
) -> Columns:
    """Return the columns to read: those asked for, the others guessed from the first record.

    Args:
        columns: those asked for.
        record: the first one.
        name: of the source, for messages.
        labelled: refuse a record without a column of labels.
        own_labels: of a model with several labels; columns of these names hold 0 or 1 for each.

    Raises:
        DataError: a column that is not there, or none that can be guessed.
    """
    have = columns_in(record)
    for column in (columns.text, columns.pair, *columns.labels):
        if column is not None and column not in record:
            raise DataError(f'{name}: no column "{column}"; {have}')
    if len(set(columns.labels)) < len(columns.labels):
        raise DataError(f"{name}: a column is named twice for the labels: {', '.join(columns.labels)}")
    free = [column for column in record if column not in (columns.text, columns.pair)]
    labels = columns.labels or tuple(filter(None, [_first(LABEL_NAMES, free)]))
    if not labels and len(own_labels) > 1 and set(own_labels) <= set(free):
        labels = tuple(own_labels)
    if labelled and not labels:
        several = "several times for columns of 0 and 1, one a label"
        raise DataError(f"{name}: no column looks like the label, choose it with --label-column ({several}); {have}")
    free = [column for column in free if column not in labels]
    text, pair = columns.text, columns.pair
    if text is None and pair is None:
        text, pair = first_pair(free)
    strings = [column for column in free if isinstance(record[column], str)]
    text = text or _first(TEXT_NAMES, free) or (strings[0] if len(strings) == 1 else None)
    if text is None:
        raise DataError(f"{name}: no column looks like the text, choose it with --text-column; {have}")
    chosen = replace(
        columns, text=text, pair=pair, label=columns.label or (labels if len(labels) > 1 else next(iter(labels), None))
    )
    guessed = chosen != (columns if labelled else replace(columns, label=chosen.label))
    if guessed and (len(record) > 1 or str(text).lower() not in TEXT_NAMES):  # one column "text" is no guess
        parts = {"text": text, "pair": pair, "label": '", "'.join(labels)}.items()
        log.info("%s: %s", name, ", ".join(f'{part} from "{column}"' for part, column in parts if column))
    return chosen


def columns_in(record: Mapping[str, Any]) -> str:
    """Return the columns of a record for messages."""
    return "the columns are " + ", ".join(f'"{column}"' for column in record)


def _first(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """Return the column whose name comes first in `names`, ignoring case."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def first_pair(columns: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the first of the pairs in `PAIR_NAMES` of which both columns exist."""
    pairs = ((_first([text], columns), _first([pair], columns)) for text, pair in PAIR_NAMES)
    return next((pair for pair in pairs if all(pair)), (None, None))
