"""What runs in Ray's actors: a predictor, loaded once, that answers bundles of files' rows or blocks of a Dataset."""

from __future__ import annotations

import os
import pickle
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import pyarrow as pa

from offramp.data.batching import Cuts
from offramp.data.columns import Columns
from offramp.data.records import Record, Source
from offramp.data.rows import Text, rows_of
from offramp.errors import DataError, InvalidInput, OfframpError, one_line
from offramp.inference.answers import Answer
from offramp.inference.choose_engine import BATCH_ROWS, name_of
from offramp.inference.folder_job.answered import answer_blocks
from offramp.inference.folder_job.identity import model_digest
from offramp.inference.pipeline import Fault
from offramp.inference.predictor import Predictor
from offramp.inference.stream import SteadySource
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

NEEDS_RAY = "Ray is not installed: pip install 'offramp[ray]'"


@final
@dataclass(frozen=True)
class Loading:
    """How an actor loads its predictor: the one that the driver has loaded.

    Attributes:
        folder: of the model, which every node has under this path; or a hub name.
        digest: of the files that answer.
        engine: a name of ENGINES.
        point: policy and thresholds; None = full depth.
        threads: of an actor.
        batch_size: of all calls; None = what costs measured there say, else 32.
        top_k: see `Predictor.__call__`.
    """

    folder: str
    digest: str
    engine: str
    point: OperatingPoint | None
    threads: int
    batch_size: int | None
    top_k: int | None

    @classmethod
    def of(
        cls,
        folder: str | os.PathLike[str],
        predictor: Predictor,
        threads: int,
        batch_size: int | None,
        top_k: int | None,
    ) -> Loading:
        """Return how to load a predictor again.

        Raises:
            InvalidInput: its engine is none of offramp's.
        """
        path = os.path.abspath(folder) if os.path.isdir(folder) else os.fspath(folder)
        engine = name_of(predictor.engine.name)
        if engine is None:
            raise InvalidInput(f"the engine {predictor.engine.name} cannot be loaded on other nodes")
        return cls(path, model_digest(path, engine), engine, predictor.point, threads, batch_size, top_k)

    def load(self) -> Predictor:
        """Return the predictor.

        Raises:
            OfframpError: the model cannot be loaded on this node, or is another one.
        """
        node, rows = platform.node(), self.batch_size or BATCH_ROWS
        try:  # the driver has checked that its engine may run the point
            predictor = Predictor.load(self.folder, self.engine, self.point, self.threads, 1, rows, True)
            digest = model_digest(self.folder, self.engine)
        except (OfframpError, OSError) as error:
            raise OfframpError(f"node {node}: {one_line(error)}; all nodes need the model at one path") from None
        if digest != self.digest:
            raise OfframpError(f"node {node}: {self.folder} holds another model than the node where the job began")
        return predictor


@final
class BundleAnswerer:
    """Answers bundles of row blocks, one a Ray block: pickled lists of `RowBlock` become lists of `AnsweredBlock`."""

    def __init__(self, loading: Loading) -> None:
        self._loading, self._predictor = loading, loading.load()

    def __call__(self, bundles: pa.Table) -> pa.Table:
        """Return the answers of each bundle, pickled, with a count of the texts that were cut."""
        cuts = Cuts()
        with cuts.counted():
            answers = [self._answered(bundle.as_py()) for bundle in bundles["bundle"]]
        counts = {name: [value] + [0] * (len(answers) - 1) for name, value in asdict(cuts).items()}
        return pa.table({"answers": pa.array(answers, pa.binary()), **counts})

    def _answered(self, bundle: bytes) -> bytes:
        how = self._loading
        return pickle.dumps(list(answer_blocks(self._predictor, pickle.loads(bundle), how.batch_size, how.top_k)))


@final
class TableAnswerer:
    """Answers the texts of Arrow tables, and returns the tables with the answers as further columns.

    Attributes:
        columns: of the texts.
    """

    def __init__(self, loading: Loading, columns: Columns) -> None:
        self.columns = columns
        self._loading, self._predictor = loading, loading.load()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with the answers to its rows."""
        answers: list[Answer] = []
        how = self._loading
        for some in self._predictor.answer_source(SteadySource(self._items(table)), how.batch_size, how.top_k):
            answers += some
        config = self._predictor.engine.config
        types = answer_types(config.problem_type, config.num_labels, how.top_k)
        answered = table.rename_columns(beside(table.column_names, list(types)))
        for name, kind in types.items():
            answered = answered.append_column(name, pa.array([_cell(answer.get(name)) for answer in answers], kind))
        return answered.combine_chunks()  # pyarrow, which writes parquet for Ray, may write chunks in another order

    def _items(self, table: pa.Table) -> Iterator[Text | Fault]:
        if not table.num_rows:
            return
        used = table.select([name for name in (self.columns.text, self.columns.pair) if name is not None])
        rows = ({name: _none_if_nan(value) for name, value in row.items()} for row in used.to_pylist())
        records = (Record("", number, values) for number, values in enumerate(rows, start=1))
        for row in rows_of(Source("the dataset", records), self.columns, labelled=False, lenient=True):
            yield row.text if row.error is None else Fault(row.error)


def answer_types(problem_type: str, outputs: int, top_k: int | None) -> dict[str, pa.DataType]:
    """Return the types of the columns of answers; a row without an answer has its "error" and nulls.

    Args:
        problem_type: of the model.
        outputs: of the model.
        top_k: 0 = no "scores".
    """
    if problem_type == REGRESSION:
        first = {"value": pa.float64() if outputs == 1 else pa.list_(pa.float64())}
    elif problem_type == MULTI_LABEL:
        first = {"labels": pa.list_(pa.string())}
    else:
        first = {"label": pa.string(), "score": pa.float64()}
    scores = {} if top_k == 0 else {"scores": pa.map_(pa.string(), pa.float64())}
    return {**first, **scores, "exit_layer": pa.int64(), "error": pa.string()}


def beside(names: Sequence[str], answers: Sequence[str]) -> list[str]:
    """Return the names that the columns of a dataset have beside those of answers.

    Raises:
        DataError: such a name is taken.
    """
    renamed = [f"input_{name}" if name in answers else name for name in names]
    for name, new in zip(names, renamed, strict=True):
        if new != name and new in names:
            raise DataError(f'the dataset: its column "{name}" has the name of an answer, and "{new}" is taken too')
    return renamed


def _none_if_nan(value: Any) -> Any:
    """Return None for NaN, which is what pandas puts where a text is missing."""
    return None if isinstance(value, float) and value != value else value


def _cell(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else value
