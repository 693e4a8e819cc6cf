"""Records of Hugging Face data sets: on the hub, in a folder of files, or saved by `save_to_disk`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offramp.data.records import Record, Source
from offramp.errors import DataError, one_line


def open_data_set(source: str, name: str, split: str) -> Source:
    """Open one split of a data set, memory-mapped.

    Args:
        source: the data set in messages.
        name: a folder, NAMESPACE/NAME, NAME/CONFIG or NAMESPACE/NAME/CONFIG.
        split: as `datasets` names it.

    Raises:
        DataError: it cannot be loaded.
    """
    folder = Path(name)
    saved = folder.is_dir() and any((folder / file).exists() for file in ("state.json", "dataset_dict.json"))
    data = _saved(source, name, split) if saved else _load(source, name, split)
    named = ((column, _class_names(feature)) for column, feature in data.features.items())
    return Source(source, _records(source, data), {column: names for column, names in named if names})


def csv_files(folder: str, split: str) -> list[str]:
    """Return the files of a split of a folder where all are csv or tsv and no card describes them; else [].

    `datasets` reads such files as pandas guesses: it loses the classes "NA" and "None", and turns "01" into 1.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(folder)
        files = {str(name): files for name, files in (builder.config.data_files or {}).items()}.get(split, ())
    except Exception:  # loading it says what is wrong
        return []
    named = all(file.lower().removesuffix(".gz").endswith((".csv", ".tsv")) for file in files)
    described = datasets.info.DatasetInfosDict.from_directory(folder)
    return [] if described or not named else [str(file) for file in files]


def _records(source: str, data: Any) -> Iterator[Record]:
    number = 0
    try:
        for number, values in enumerate(data, start=1):
            yield Record(f"{source}, row {number}", number, values)
    except Exception as error:  # decoding a row can fail in any way
        yield Record(f"{source}, row {number + 1}", number + 1, None, f"cannot be read: {one_line(error)}", broken=True)


def _saved(source: str, folder: str, split: str) -> Any:
    """Load what `save_to_disk` wrote: one split of several, or the only one."""
    import datasets

    try:
        data = datasets.load_from_disk(folder)
    except Exception as error:  # a folder can be damaged in any way
        raise DataError(f"{source}: cannot load this data set: {one_line(error)}") from error
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise DataError(f"{source}: no split {split!r}; expected one of {', '.join(data)}")
    return data[split]


def _load(source: str, name: str, split: str) -> Any:
    """Load a folder, NAMESPACE/NAME or else NAME/CONFIG, or NAMESPACE/NAME/CONFIG."""
    import datasets

    head, _, last = name.rpartition("/")
    candidates = [(name, None), (head, last)]
    if not head or Path(name).is_dir():
        candidates = [(name, None)]
    elif "/" in head:
        candidates = [(head, last)]
    reasons = []
    for path, config in candidates:
        try:
            return datasets.load_dataset(path, config, split=split)
        except (FileNotFoundError, ConnectionError) as error:  # offline, the next may still be cached
            reasons.append(one_line(error))
        except Exception as error:  # a data set can fail in any way
            reasons.append(one_line(error))
            break
    ways = f"; {name}:SPLIT chooses another" if reasons[-1].startswith("Unknown split") else ""
    raise DataError(f"{source}: cannot load this data set: {'; '.join(reasons).rstrip('.')}{ways}")


def _class_names(feature: Any) -> tuple[str, ...]:
    """Return the names of a column's classes, or of the classes in its lists; () where it has none."""
    feature = getattr(feature, "feature", feature)  # List; Sequence before datasets 4
    return tuple(getattr(feature, "names", None) or ())
