"""What the parts of a batch job cost on one core of this machine: reading, answering, writing, and Ray itself."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from offramp.data.columns import Columns
from offramp.data.examples import read_rows
from offramp.inference.choose_engine import BATCH_ROWS
from offramp.inference.predictor import Predictor

FORMATS = ("csv", "jsonl", "parquet", "csv.gz", "jsonl.gz")
BLOCKS = (64, 512, 2048, 8192)
READ_ROWS, ANSWER_ROWS, RAY_SECONDS = 100_000, 4096, 2.0
TEXT = "text"


def texts_of(source: str, count: int) -> list[str]:
    """Return real texts of a source, over and over."""
    texts = [str(row.text) for row in read_rows(source, labelled=False)]
    return [texts[number % len(texts)] for number in range(count)]


# --- reading ----------------------------------------------------------------------------------------------------------


def write_files(folder: Path, texts: Sequence[str]) -> dict[str, Path]:
    """Write the same rows in each format; return the files by format."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"rows.{name}" for name in FORMATS}
    with files["csv"].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([TEXT])
        writer.writerows([text] for text in texts)
    files["jsonl"].write_text("".join(json.dumps({TEXT: text}) + "\n" for text in texts), encoding="utf-8")
    parquet.write_table(pyarrow.table({TEXT: list(texts)}), files["parquet"])
    for name in ("csv", "jsonl"):
        with gzip.open(files[f"{name}.gz"], "wb", compresslevel=6) as packed:
            packed.write(files[name].read_bytes())
    return files


def read_seconds(file: Path) -> float:
    """Return the processor's seconds of reading a row of a file, as read tasks do."""
    began = time.process_time()
    count = sum(1 for _ in read_rows(str(file), Columns(TEXT), labelled=False))
    return (time.process_time() - began) / count


# --- answering and writing --------------------------------------------------------------------------------------------


def load_seconds(folder: Path, engine: str, point: str) -> tuple[Predictor, float]:
    """Return a predictor of one thread, and the seconds of loading it and of its first answer."""
    began = time.perf_counter()
    predictor = Predictor.load(folder, engine, None if point == "full" else point, 1, 1, BATCH_ROWS)
    predictor(["a first text"])
    return predictor, time.perf_counter() - began


def answer_seconds(predictor: Predictor, texts: Sequence[str]) -> tuple[float, float]:
    """Return the processor's seconds of a row: of its answer, and of its line of JSON."""
    began = time.process_time()
    answers = list(predictor.stream(texts))
    answered = time.process_time()
    lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
    return (answered - began) / len(lines), (time.process_time() - answered) / len(lines)


def write_seconds(line: str, rows: int, file: Path) -> float:
    """Return the processor's seconds a block in which the driver unpacks lines and writes them."""
    packed = pickle.dumps(line * rows)
    count = max(2_000_000 // (rows * len(line)), 20)
    began = time.process_time()
    with file.open("ab") as out:
        for _ in range(count):
            out.write(pickle.loads(packed).encode())
            out.flush()
    seconds = (time.process_time() - began) / count
    file.unlink()
    return seconds


# --- Ray --------------------------------------------------------------------------------------------------------------


class Echo:
    """An actor that answers each block with as much text, and adds the processor's seconds of its process so far."""

    def __call__(self, table: Any) -> Any:
        """Return a table of one row."""
        import pyarrow

        rows = pickle.loads(table["block"][0].as_py())
        answers = pickle.dumps("".join(text + "\n" for text in rows))
        return pyarrow.table({"answers": [answers], "busy": [time.process_time()]})


def ray_seconds(block: list[str], count: int) -> dict[str, float]:
    """Return seconds a block: by the clock, and of the processor in the driver and in the one actor.

    Read task, actor and driver are connected as in a batch job: a block is a row of a table, and order is kept. What
    the read task and Ray's own processes compute is in the clock's time only.
    """
    import pyarrow
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    class Blocks(Datasource):
        """The same block many times."""

        def estimate_inmemory_data_size(self) -> int | None:
            """Return None."""
            return None

        def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
            """Return one read task."""

            def blocks() -> Iterator[Any]:
                for _ in range(count):
                    yield pyarrow.table({"block": [pickle.dumps(block)]})

            return [ReadTask(blocks, BlockMetadata(count, None, None, None))]

    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    with DataContext.current(context):
        echoed = ray.data.read_datasource(Blocks(), num_cpus=0).map_batches(
            Echo, batch_size=None, batch_format="pyarrow", compute=ActorPoolStrategy(size=1), num_cpus=1
        )
    began = busy = 0.0
    actor: list[float] = []
    for table in echoed.iter_batches(batch_size=None, batch_format="pyarrow"):
        if not actor:
            began, busy = time.perf_counter(), time.process_time()
        pickle.loads(table["answers"][0].as_py())
        actor.append(table["busy"][0].as_py())
    clock, busy, blocks = time.perf_counter() - began, time.process_time() - busy, len(actor) - 1
    return {"clock": clock / blocks, "driver": busy / blocks, "actor": (actor[-1] - actor[0]) / blocks}


def start_ray(folder: Path) -> float:
    """Start a cluster of two cores on this machine; return the seconds until one of its workers answers."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    began = time.perf_counter()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder), logging_level="ERROR")
    ray.get(ray.remote(lambda: None).remote())
    return time.perf_counter() - began


# --- all of it --------------------------------------------------------------------------------------------------------


def measure(model: Path, engine: str, source: str, rounds: int, figures: dict[str, Any]) -> Iterator[str]:
    """Add every figure of every round, in seconds, to those that are there; yield the name of each new part.

    Args:
        model: a folder with a point "default".
        engine: that runs it.
        source: of real texts.
        rounds: how often each part is measured.
        figures: what is there, and what is missing.
    """
    texts = texts_of(source, READ_ROWS)
    with TemporaryDirectory(prefix="scaling") as folder:
        if "read" not in figures:
            files = write_files(Path(folder), texts)
            figures["read"] = {name: [read_seconds(file) for _ in range(rounds)] for name, file in files.items()}
            yield "read"
        for point in ("full", "default"):
            if point not in figures.setdefault("points", {}):
                figures["points"][point] = one_point(model, engine, point, texts[:ANSWER_ROWS], rounds)
                yield point
        if "write" not in figures:
            line = figures["points"]["default"]["line"]
            lines = {str(rows): (line, rows, Path(folder) / "lines") for rows in BLOCKS}
            figures["write"] = {rows: [write_seconds(*some) for _ in range(rounds)] for rows, some in lines.items()}
            yield "write"
        if "ray" not in figures:
            figures["ray_start"], figures["ray"] = on_ray(texts, rounds, Path(folder) / "ray")
            yield "ray"


def on_ray(texts: Sequence[str], rounds: int, folder: Path) -> tuple[float, dict[str, Any]]:
    """Return the seconds of starting Ray, and its figures with blocks of each size."""
    import ray

    seconds = start_ray(folder)
    try:
        return seconds, {str(rows): ray_rounds(list(texts[:rows]), rounds) for rows in BLOCKS}
    finally:
        ray.shutdown()


def one_point(model: Path, engine: str, point: str, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return the figures of answering at an operating point, and a line of an answer."""
    found: dict[str, Any] = {"load": [], "answer": [], "json": []}
    for _ in range(rounds):
        predictor, seconds = load_seconds(model, engine, point)
        found["load"].append(seconds)
        answer, line = answer_seconds(predictor, texts)
        found["answer"].append(answer)
        found["json"].append(line)
    return {**found, "line": json.dumps(predictor([texts[0]])[0]) + "\n"}


def ray_rounds(block: list[str], rounds: int) -> dict[str, list[float]]:
    """Return the figures of Ray with such blocks; each round takes some RAY_SECONDS."""
    count = 50
    first = ray_seconds(block, count)
    count = max(int(RAY_SECONDS / first["clock"]), count)
    every = [ray_seconds(block, count) for _ in range(rounds)]
    return {name: [figures[name] for figures in every] for name in first}
