"""The files of a folder on a Ray cluster: `offramp predict --input DIR --output DIR --ray [ADDRESS]`.

Read tasks make bundles of some thousand rows of the files, so that one long file, packed or not, is work for all
actors; actors answer them; the driver gets them back in order. Read tasks ask for no core: they take a hundredth to a
tenth of the actors' time, and start where actors hold every core.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import pyarrow as pa

from offramp.cluster.actors import NEEDS_RAY, BundleAnswerer, Loading
from offramp.cluster.ray_data import cores_by_node
from offramp.data.batching import Cuts
from offramp.errors import InvalidInput, OfframpError
from offramp.inference.folder_job.answered import AnsweredBlock
from offramp.inference.folder_job.blocks import BLOCK_ROWS, FileRead, RowBlock, read_blocks
from offramp.inference.folder_job.job import Answering
from offramp.inference.predictor import Predictor
from offramp.inference.workers import cores

try:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource, TaskPoolStrategy
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask
except ImportError:
    raise InvalidInput(NEEDS_RAY) from None

GROUP_BYTES, GROUP_FILES = 1 << 24, 1000
"""Small files are read together: a read task has so many bytes, or files, at most, or one file."""
ACTORS_PER_READER = 8
"""How many actors one read task keeps at work, at least."""
ROW_A_BLOCK = 1
"""Bytes of a Ray block at most: fewer than a row has, so that each row, which is a bundle, is a block of its own."""
STORE_BYTES = 1 << 29
"""Of the object store of a cluster that is started here; blocks in flight are some hundred kilobytes each."""


@contextmanager
def on_cluster(
    address: str,
    folder: str | os.PathLike[str],
    predictor: Predictor,
    batch_size: int | None,
    top_k: int | None,
    actors: int | None = None,
    threads: int = 1,
) -> Iterator[Answering]:
    """Connect to a cluster, and return what answers files there; see `offramp.inference.folder_job.job.run_job`.

    Args:
        address: "auto" (of this node), or such as "10.0.0.1:6379"; "" = a cluster on this machine, which is started
            and stopped; or, where this process is connected to one, that one.
        folder: of the model; all nodes need it, and the files of the job, under the same paths.
        predictor: loaded from there.
        batch_size: see `Predictor.__call__`.
        top_k: likewise.
        actors: None = as many as the cluster has cores for.
        threads: of an actor, which asks for as many cores.

    Raises:
        InvalidInput: there is no cluster at the address, or none of its nodes has so many cores.
        OfframpError: an actor cannot load the model, or the cluster is lost.
    """
    loading = Loading.of(folder, predictor, threads, batch_size, top_k)
    connected = ray.is_initialized()
    if not connected:
        _connect(address)
    try:
        nodes = cores_by_node()
        if threads > max(nodes):
            raise InvalidInput(f"--threads {threads}: no node of the cluster has so many cores; at most {max(nodes)}")
        pool = actors or sum(count // threads for count in nodes)

        def answer(reads: Sequence[FileRead]) -> Generator[AnsweredBlock, None, None]:
            return _answered(reads, loading, pool)

        yield answer
    finally:
        if not connected:
            ray.shutdown()


def _connect(address: str) -> None:
    _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data warns of its own actors, in every job
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _stderr_closed():
            if address:
                ray.init(address, **quiet)
            else:
                # "local": without an address Ray takes a cluster of RAY_ADDRESS, or one that runs here
                ray.init("local", num_cpus=cores(), object_store_memory=STORE_BYTES, include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"--ray {address}: no Ray cluster answers there ({str(error).splitlines()[0]})") from None


def _check_address(address: str) -> None:
    """Refuse an address that no cluster answers, for which Ray itself waits for minutes."""
    if address in ("", "auto", "local"):
        return
    if address.startswith("ray://"):
        raise InvalidInput(f"--ray {address}: Ray Client is not supported; run it on a node, with the address auto")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise InvalidInput(f"--ray {address}: an address is auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"--ray {address}: no Ray cluster answers there ({error})") from None


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Drop what Ray's own code prints as it connects; its errors are exceptions."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _answered(reads: Sequence[FileRead], loading: Loading, actors: int) -> Generator[AnsweredBlock, None, None]:
    """Yield answered blocks in the order of the files and of their rows."""
    # nodes work in folders of their own
    reads = [replace(read, shard=replace(read.shard, path=os.path.abspath(read.shard.path))) for read in reads]
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = ROW_A_BLOCK
    context.enable_progress_bars = False
    with DataContext.current(context):
        readers = TaskPoolStrategy(size=1 + actors // ACTORS_PER_READER)
        answers = ray.data.read_datasource(_Bundles(reads), num_cpus=0, compute=readers).map_batches(
            BundleAnswerer,
            fn_constructor_args=(loading,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=actors),
            num_cpus=loading.threads,
        )
    cuts = Cuts()
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
            for bundle in batch.to_pylist():
                cuts.add(bundle["cut"], bundle["texts"], bundle["limit"] or cuts.limit)
                yield from pickle.loads(bundle["answers"])
    except ray.exceptions.RayError as error:
        raise OfframpError(_reason(error)) from error
    finally:
        cuts.log()


@final
class _Bundles(Datasource):
    """Files as rows of a Ray Dataset: each row is a bundle, a pickled list of `RowBlock`."""

    def __init__(self, reads: Sequence[FileRead]) -> None:
        super().__init__()
        self._reads = reads

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: it is not known."""
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        """Return a task for each long file, and for short ones that follow one another."""
        return [_read_task(group) for group in groups(self._reads)]


def groups(reads: Sequence[FileRead]) -> list[list[tuple[int, FileRead]]]:
    """Return files with their numbers, in groups of which each is one read task."""
    grouped: list[list[tuple[int, FileRead]]] = []
    room = 0
    for number, read in enumerate(reads):
        size = max(_size(read), GROUP_BYTES // GROUP_FILES)
        if size > room:
            grouped.append([])
            room = GROUP_BYTES
        grouped[-1].append((number, read))
        room -= size
    return grouped


def _size(read: FileRead) -> int:
    try:
        return os.path.getsize(read.shard.path)
    except OSError:  # reading it says so
        return 0


def _read_task(group: list[tuple[int, FileRead]]) -> ReadTask:
    size = sum(_size(read) for _, read in group)
    return ReadTask(
        lambda: bundles(group), BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
    )


def bundles(group: Sequence[tuple[int, FileRead]]) -> Iterator[pa.Table]:
    """Yield the rows of files in bundles of about BLOCK_ROWS, a table of one row each."""
    blocks: list[RowBlock] = []
    rows = 0
    for number, read in group:
        for block in read_blocks(number, read):
            blocks.append(block)
            rows += len(block.items) or 1
            if rows >= BLOCK_ROWS:
                yield _one_row(blocks)
                blocks, rows = [], 0
    if blocks:
        yield _one_row(blocks)


def _one_row(blocks: list[RowBlock]) -> pa.Table:
    return pa.table({"bundle": [pickle.dumps(blocks)]})


def _reason(error: Exception) -> str:
    """Return what an error of Ray is about: the last line of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("offramp.errors.")]
    return (own or lines or [type(error).__name__])[-1].partition(": ")[2] or lines[-1]
