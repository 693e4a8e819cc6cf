"""What does `offramp predict --ray` lose on two nodes, when one of them is killed, and against no cluster at all?

    python benchmarks/ray_nodes.py --model clinc --runs runs/ray

Two nodes of one core each on this machine (`ray.cluster_utils.Cluster`), and a folder of `--rows` made rows (seeded):
half of them in eight csv files, half in one packed csv. Three questions:

1. A node is killed half-way: are the answers those of one process, to the byte (an int8 graph)?
2. Rows a second on two cores, against `offramp predict --input` with two workers, in turn, `--rounds` each. "Steady" is
   of the last three quarters on two nodes, and without the time of sixteen rows in one process; the other rate holds
   the start of nodes and actors, or of the process.
3. What does a bundle cost that asks for no work, by the number of rows in it?

What was measured lies under `--runs` and is not measured again; remove `state.json` there to begin anew. Writes
`benchmarks/results/ray_nodes.json` and `.md`. Eight minutes on two idle cores; `--rows 4000 --rounds 1` is a try.
"""

from __future__ import annotations

import argparse
import filecmp
import gzip
import importlib.metadata
import json
import logging
import os
import pickle
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from ray.data import ActorPoolStrategy, DataContext

from machine import as_lines, provenance
from offramp.cluster.ray_folder import on_cluster
from offramp.inference.folder_job.answered import AnsweredBlock
from offramp.inference.folder_job.blocks import FileRead
from offramp.inference.folder_job.identity import identity_of
from offramp.inference.folder_job.job import FolderJob, run_job
from offramp.inference.predictor import Predictor
from resumable import load_state, save_state

RESULTS = Path(__file__).parent / "results"
FILES, SEED, ENGINE = 8, 0, "onnx-int8"
BUNDLE_ROWS, BUNDLES = (256, 2048, 16384), 400
_WORDS = (
    "a about account add alarm am balance bank bill book can card change check close could do find flight for have "
    "help how i in is it know like me money my need new next not of on order pay please set should show tell that the "
    "there time to today tomorrow transfer trip what when where which why will with would you your"
)
WORDS = tuple(_WORDS.split(" "))


@dataclass
class Clock:
    """When answers came.

    Attributes:
        most: rows that are to come.
        rows: so far.
        first: rows of the first quarter, and when they were there.
    """

    most: int
    rows: int = 0
    first: tuple[int, float] = (0, 0.0)
    began: float = field(default_factory=time.perf_counter)

    def add(self, rows: int) -> None:
        """Count rows."""
        self.rows += rows
        if not self.first[0] and self.rows >= self.most // 4:
            self.first = (self.rows, time.perf_counter())

    def rates(self) -> dict[str, float]:
        """Return rows a second, of the last three quarters and with the start."""
        now = time.perf_counter()
        steady = (self.rows - self.first[0]) / (now - self.first[1])
        return {"steady": steady, "with_start": self.rows / (now - self.began)}


def write_input(folder: Path, rows: int) -> Path:
    """Write the files, unless they are there."""
    source = folder / f"input-{rows}"
    if source.exists():
        return source
    unfinished = folder / "input-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    made = random.Random(SEED)
    for number in range(FILES):
        (unfinished / f"part{number}.csv").write_text(_csv(made, rows // 2 // FILES))
    with gzip.open(unfinished / "rest.csv.gz", "wt") as file:
        file.write(_csv(made, rows - rows // 2 // FILES * FILES))
    unfinished.rename(source)
    return source


def _csv(made: random.Random, rows: int) -> str:
    lines = (" ".join(made.choices(WORDS, k=made.randint(3, 14))) for _ in range(rows))
    return "text\n" + "".join(f"{line}\n" for line in lines)


def plain(model: Path, source: Path, output: Path) -> float:
    """Answer a folder in one process with two workers, and return the seconds."""
    shutil.rmtree(output, ignore_errors=True)
    command = ["predict", model, "--engine", ENGINE, "--input", source, "--output", output, "--workers", 2]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "offramp", *map(str, command)], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


@contextmanager
def two_nodes(temporary: str) -> Iterator[Cluster]:
    """Start two nodes of one core each."""
    settings = {"num_cpus": 1, "object_store_memory": 1 << 28}
    head = settings | {"include_dashboard": False, "temp_dir": temporary}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**settings)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def on_nodes(
    model: Path, source: Path, output: Path, temporary: str, half_way: Callable[[Cluster], None] | None = None
) -> dict[str, float]:
    """Answer a folder on two nodes, and return the rates; after half of the rows something may happen."""
    shutil.rmtree(output, ignore_errors=True)
    rows = int(source.name.partition("-")[2])
    predictor = Predictor.load(model, ENGINE, threads=1, workers=1)
    clock, happened = Clock(rows), half_way is None
    with two_nodes(temporary) as cluster, on_cluster("", model, predictor, None, 0) as answer:

        def timed(reads: Sequence[FileRead]) -> Generator[AnsweredBlock, None, None]:
            nonlocal happened
            for block in answer(reads):
                clock.add(block.tally.rows)
                if not happened and half_way is not None and clock.rows >= rows // 2:
                    happened = True
                    half_way(cluster)
                yield block

        run_job(FolderJob(source, output), identity_of(model, predictor, False), timed)
        return clock.rates()


def lose_a_node(cluster: Cluster) -> None:
    """Kill the node without the driver."""
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)


def differing(here: Path, there: Path) -> list[str]:
    """Return the names of files of answers that are not the same in both folders."""
    names = sorted(path.name for path in here.glob("*.jsonl"))
    assert names == sorted(path.name for path in there.glob("*.jsonl"))
    return [name for name in names if not filecmp.cmp(here / name, there / name, shallow=False)]


class Nothing:
    """An actor that answers bundles without work."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return as many bytes as came."""
        return pa.table({"answers": [pickle.dumps(pickle.loads(cell.as_py())) for cell in table["bundle"]]})


def bundle_seconds(rows: int, temporary: str) -> float:
    """Return the seconds of a bundle that asks for no work, on two nodes."""
    payload = pickle.dumps([" ".join(WORDS[:8])] * rows)

    def bundles(_: pa.Table) -> Iterator[pa.Table]:
        for _ in range(BUNDLES):
            yield pa.table({"bundle": [payload]})

    times = []
    with two_nodes(temporary):
        context = DataContext.get_current()
        context.execution_options.preserve_order, context.target_max_block_size = True, 1
        context.enable_progress_bars = False
        source = ray.data.range(1, override_num_blocks=1).map_batches(bundles, batch_format="pyarrow", num_cpus=0)
        answered = source.map_batches(
            Nothing, batch_size=None, batch_format="pyarrow", compute=ActorPoolStrategy(size=2), num_cpus=0
        )
        for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            pickle.loads(batch["answers"][0].as_py())
            times.append(time.perf_counter())
    return (times[-1] - times[0]) / (len(times) - 1)


def measure(options: argparse.Namespace, state: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure what the state lacks."""
    source, one = write_input(options.runs, options.rows), write_input(options.runs, 16)
    temporary = str(options.ray_temp)
    here, there = options.runs / "here", options.runs / "there"
    for number in range(len(state["plain"]), options.rounds):
        start = plain(options.model, one, options.runs / "one")
        seconds = plain(options.model, source, here)
        rates = on_nodes(options.model, source, there, temporary)
        state["plain"].append({"steady": options.rows / (seconds - start), "with_start": options.rows / seconds})
        state["ray"].append(rates | {"differing": differing(here, there)})
        save()
        print(f"round {number + 1}: {state['plain'][-1]} plain, {rates} on two nodes", flush=True)
    if "killed" not in state:
        rates = on_nodes(options.model, source, there, temporary, lose_a_node)
        state["killed"] = rates | {"differing": differing(here, there)}
        save()
        print(f"a node killed: {state['killed']}", flush=True)
    for rows in BUNDLE_ROWS:
        if str(rows) not in state["bundle_s"]:
            state["bundle_s"][str(rows)] = bundle_seconds(rows, temporary)
            save()
            print(f"a bundle of {rows}: {state['bundle_s'][str(rows)] * 1000:.1f} ms", flush=True)


def page(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "# A folder on two nodes of Ray",
        "",
        f"{as_lines(result['about'])} Ray {result['ray_version']}; {result['rows']:,} rows, {ENGINE}.",
        "",
        "| rows a second, two cores | steady | with the start |",
        "|---|---|---|",
    ]
    medians = {}
    for name, label in (("plain", "`offramp predict --input`, two workers"), ("ray", "two nodes of one core")):
        cells = []
        for kind in ("steady", "with_start"):
            rates = [run[kind] for run in result[name]]
            medians[name, kind] = statistics.median(rates)
            cells.append(f"{medians[name, kind]:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    ratios = [f"{medians['ray', kind] / medians['plain', kind]:.2f}" for kind in ("steady", "with_start")]
    lines += [f"| two nodes / one process | {' | '.join(ratios)} |", ""]
    differ = sum(len(run["differing"]) for run in result["ray"])
    lost = "the same, to the byte" if not result["killed"]["differing"] else "not the same"
    lines += [
        f"Medians of {len(result['ray'])} runs in turn, with the range. Files of answers that differ: {differ}. With a",
        f"node killed half-way all answers were there, and {lost}.",
        "",
        "| rows in a bundle | ms for a bundle without work, two nodes | µs for a row |",
        "|---|---|---|",
        *(f"| {rows} | {s * 1000:.1f} | {s / int(rows) * 1e6:.1f} |" for rows, s in result["bundle_s"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with an int8 graph")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--ray-temp", type=Path, default=Path("/tmp/ray"), help="of Ray; a short path")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    file = options.runs / "state.json"
    state = load_state(file, {"rows": options.rows, "plain": [], "ray": [], "bundle_s": {}})
    if state["rows"] != options.rows:
        sys.exit(f"{file} is of {state['rows']} rows; remove it, or take another --runs")
    measure(options, state, lambda: save_state(file, state))
    result = {"about": provenance(), "ray_version": importlib.metadata.version("ray"), **state}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "ray_nodes.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.results / "ray_nodes.md").write_text(page(result))


if __name__ == "__main__":
    main()
