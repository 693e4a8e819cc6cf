"""A Ray Dataset answered on a cluster: the predictor in actors of one core each, rows in their order.

The read tasks of a Dataset ask for a core each; actors leave it to them (see `cores_of_an_actor`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from offramp.cluster.actors import NEEDS_RAY, Loading, TableAnswerer, answer_types, beside
from offramp.data.columns import Columns, choose_columns
from offramp.errors import InvalidInput
from offramp.inference.choose_engine import BATCH_ROWS
from offramp.inference.folder_job.blocks import BLOCK_ROWS
from offramp.inference.load_engine import AUTO
from offramp.inference.predictor import Predictor
from offramp.types.operating_point import DEFAULT, OperatingPoint

try:
    import ray
    from ray.data import ActorPoolStrategy, Dataset, Schema
except ImportError:
    raise InvalidInput(NEEDS_RAY) from None

_TEXT_TYPES = ("string", "large_string", "string_view", "object")
"""Types of columns that may hold texts, where no name says which does."""


def predict(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    engine: str = AUTO,
    operating_point: OperatingPoint | str | None = DEFAULT,
    top_k: int | None = 0,
    batch_size: int | None = None,
    actors: int | None = None,
    allow_other_engine: bool = False,
) -> Dataset:
    """Answer the texts of a Ray Dataset on all cores of the cluster.

    Args:
        dataset: one text, or pair of texts, a row.
        folder: of the model, which every node has under this path (shared storage, or an image); or a hub name.
        text_column: of the text, or of a pair's first; None = guessed as for files.
        pair_column: of a pair's second text.
        engine: see `offramp.Predictor.load`; chosen once, for all nodes.
        operating_point: likewise.
        top_k: how many labels "scores" holds; None = all, 0 = no "scores".
        batch_size: of a batch of texts; None as for `offramp.Predictor.__call__`.
        actors: how many, of one thread each; None = as many as the cluster has cores now.
        allow_other_engine: see `offramp.Predictor.load`.

    Returns:
        The dataset, in its order, with the columns of `offramp.Predictor.__call__` beside its own: "label" and "score"
        ("value"; "labels"), "exit_layer", and "error", which is null where a row has an answer; "scores" is a map. A
        column of the dataset that has such a name is called "input_label" and so on. It is computed when it is read;
        of two models in one pipeline, let the first end (`.materialize()`), since each takes the cores.

    Raises:
        InvalidInput: the predictor cannot be loaded.
        DataError: no column looks like the text, or a column "input_label" is in the way.

    Example:
        >>> dataset = ray.data.read_parquet("messages")  # doctest: +SKIP
        >>> predict(dataset, "model").write_parquet("answers")  # doctest: +SKIP
    """
    predictor = Predictor.load(folder, engine, operating_point, 1, 1, batch_size or BATCH_ROWS, allow_other_engine)
    schema = dataset.schema()
    if schema is None:  # it is empty
        return dataset
    columns = _columns(schema, text_column, pair_column)
    config = predictor.engine.config
    beside(schema.names, list(answer_types(config.problem_type, config.num_labels, top_k)))
    nodes = cores_by_node()
    answered = dataset.repartition(target_num_rows_per_block=BLOCK_ROWS, strict=True).map_batches(
        TableAnswerer,
        fn_constructor_args=(Loading.of(folder, predictor, 1, batch_size, top_k), columns),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors or sum(nodes)),
        num_cpus=cores_of_an_actor(nodes),
    )
    answered.context.execution_options.preserve_order = True
    return answered


def _columns(schema: Schema, text: str | None, pair: str | None) -> Columns:
    """Return the columns of the texts, guessed by their names and types as for files."""
    types = zip(schema.names, schema.types, strict=True)
    record = {name: "" if str(kind) in _TEXT_TYPES else None for name, kind in types}
    chosen = choose_columns(Columns(text, pair), record, "the dataset", labelled=False)
    return Columns(chosen.text, chosen.pair)


def cores_of_an_actor(nodes: Sequence[int]) -> float:
    """Return how many cores an actor asks for, so that read tasks of one core each always find one.

    There is an actor for each core. Where they are spread evenly, every node keeps a core free; also after one node is
    lost and its actors have moved to the others. Ray counts cores where actors and tasks begin, and does not bind them.

    Args:
        nodes: cores of each node.

    Example:
        >>> cores_of_an_actor([2]), cores_of_an_actor([16, 16, 16, 16])
        (0.5, 0.703125)
    """
    others = 1 - 1 / len(nodes) if len(nodes) > 1 else 1.0
    return (1 - 1 / min(nodes)) * others


def cores_by_node() -> list[int]:
    """Return the cores of each node that lives; this process is connected to its cluster if it was not."""
    if not ray.is_initialized():
        ray.init()
    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [count for count in counts if count] or [1]
