"""Does a folder job that is killed at any moment lose a row, or answer one twice?

    python benchmarks/job_kills.py --model MODEL
    python benchmarks/job_kills.py --model MODEL --ray

A model folder with an int8 graph answers synthetic files: csv, jsonl, tsv, parquet, plain and packed, in folders of
folders. After one run to the end, each trial starts with an empty output, kills the whole process group (SIGKILL) at a
random, seeded moment of that run's length, and calls the command again until it ends well, with more kills on the way
in every third trial. Then each file of answers must be, byte for byte, that of the run that nobody stopped; so no row
is lost, none is there twice, and all are in order.

With `--ray` the command runs on a local Ray cluster of its own, and the processes of that cluster must be gone after a
kill of the command. In every third trial one process of the cluster is killed in place of it (an actor or a read task),
which the command must survive by itself.

Trials that are done are in `--runs`, and are not repeated. Writes `benchmarks/results/job_kills.json` and `.md`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from machine import as_lines, provenance
from offramp.types.whole_file import UNFINISHED
from resumable import load_state, save_state

TRIALS, ROWS, FILES, SEED = 30, 60_000, 12, 0
TEXT = "where is my card please transfer money to the bank account what time is my flight book a restaurant"
KINDS = ("csv", "jsonl.gz", "tsv", "parquet", "csv.gz", "jsonl")
RESULTS = Path(__file__).parent / "results"
GONE_S = 60.0
"""How long the processes of a Ray cluster may live after its driver."""


def write_files(folder: Path, rows: int) -> None:
    """Write synthetic texts, in files of very different lengths."""
    draw = random.Random(SEED)
    for number, share in enumerate([0.4, *[0.6 / (FILES - 1)] * (FILES - 1)]):
        texts = [" ".join(draw.choices(TEXT.split(), k=draw.randint(2, 16))) for _ in range(round(rows * share))]
        kind = KINDS[number % len(KINDS)]
        path = folder / f"{number % 3}" / f"part-{number:02}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table({"text": texts}), path)
            continue
        lines = [json.dumps({"text": text}) for text in texts] if "jsonl" in kind else ["text", *texts]
        data = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(data, mtime=0) if kind.endswith("gz") else data)


@dataclass(frozen=True)
class Job:
    """The command, and where it reads and writes."""

    model: Path
    folder: Path
    ray: bool

    @property
    def output(self) -> Path:
        """Return the folder of the answers."""
        return self.folder / "answers"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command as the leader of a process group."""
        options = ["--engine", "onnx-int8", "--operating-point", "full", *(["--ray"] if self.ray else [])]
        files = ["--input", str(self.folder / "texts"), "--output", str(self.output)]
        command = [sys.executable, "-m", "offramp", "predict", str(self.model), *options, *files]
        log = (self.folder / "log").open("ab")
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def answers(self) -> dict[str, str]:
        """Return the digest of every file that has its name."""
        paths = sorted(path for path in self.output.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {str(path.relative_to(self.output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def rows(self) -> int:
        """Return the lines of all answers."""
        return sum(len((self.output / name).read_bytes().splitlines()) for name in self.answers())

    def left(self) -> list[str]:
        """Return unfinished files."""
        return [path.name for path in self.output.rglob(f"{UNFINISHED}*")]


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that a command has started, those of its Ray cluster too."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[str]:
    """Return the names of the processes that still run."""
    names = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                names.append(" ".join(process.cmdline())[:60])
        except psutil.NoSuchProcess:
            continue
    return names


def killed_command(job: Job, after_s: float) -> dict[str, Any] | None:
    """Kill the command after some seconds; None where it ended before."""
    process = job.start()
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        children = family(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        while alive(children) and time.monotonic() - began < GONE_S:
            time.sleep(0.2)
        gone_s = round(time.monotonic() - began, 1)
        result = {"kill": "command", "after_s": after_s, "rows_then": finished_rows(job)}
        return {**result, "children": len(children), "gone_s": gone_s, "left": alive(children)}
    return None


def killed_worker(job: Job, after_s: float, draw: random.Random) -> dict[str, Any] | None:
    """Kill a process of the cluster that works for the command after some seconds, and wait for the command's end."""
    process = job.start()
    try:
        process.wait(after_s)
        return None
    except subprocess.TimeoutExpired:
        pass
    workers = [(name, one) for one in family(process) for name in [_worker(one)] if name]
    name, victim = draw.choice(workers) if workers else ("", None)
    if victim is not None:
        victim.kill()
    code = process.wait()
    return {"kill": name or "none", "after_s": after_s, "rows_then": finished_rows(job), "exit_code": code}


def _worker(process: psutil.Process) -> str:
    """Return what an actor or a read task of the job is called; "" for all other processes."""
    try:
        title = process.cmdline()[0] if process.cmdline() else ""
    except (psutil.NoSuchProcess, IndexError):
        return ""
    return title if title.startswith(("ray::MapWorker", "ray::Read")) else ""


def finished_rows(job: Job) -> int:
    """Return the rows of the files that are complete."""
    return job.rows() if job.output.exists() else 0


def trial(job: Job, number: int, seconds: float, expected: dict[str, str]) -> dict[str, Any]:
    """Kill once or several times at random moments, and run to the end.

    Raises:
        SystemExit: the answers are others, or a run that nobody kills fails.
    """
    draw = random.Random(f"{SEED} {number} {job.ray}")
    shutil.rmtree(job.output, ignore_errors=True)
    kills: list[dict[str, Any]] = []
    begin = time.monotonic()
    worker = job.ray and number % 3 == 2
    for _ in range(3 if number % 3 == 1 else 1):
        after_s = round(draw.uniform(0, seconds), 2)
        kill = killed_worker(job, after_s, draw) if worker else killed_command(job, after_s)
        kills += [kill] if kill else []
    survived = worker and bool(kills) and kills[0]["exit_code"] == 0 and job.answers() == expected
    code = 0 if survived else job.start().wait()
    right = job.answers() == expected and not job.left() and code == 0
    if not right:
        different = [name for name, digest in expected.items() if job.answers().get(name) != digest]
        raise SystemExit(f"trial {number}: code {code}, other answers in {different}, left {job.left()}, kills {kills}")
    if worker and kills and not survived:
        raise SystemExit(f"trial {number}: the command did not survive {kills}")
    return {"kills": kills, "rows": job.rows(), "seconds": round(time.monotonic() - begin, 1)}


def run_trials(job: Job, state_file: Path, rows: int, trials: int) -> dict[str, Any]:
    """Run the trials that are missing."""
    if not (job.folder / "texts").exists():
        write_files(job.folder / "unnamed", rows)
        (job.folder / "unnamed").rename(job.folder / "texts")
    state = load_state(state_file, {"trials": []})
    if "expected" not in state:
        shutil.rmtree(job.output, ignore_errors=True)
        begin = time.monotonic()
        if job.start().wait():
            raise SystemExit((job.folder / "log").read_text())
        seconds = time.monotonic() - begin
        state |= {"expected": job.answers(), "rows": job.rows(), "seconds": round(seconds, 1), "about": provenance()}
        save_state(state_file, state)
        print(f"one run: {state['rows']:,} rows, {seconds:.1f} s", flush=True)
    for number in range(len(state["trials"]), trials):
        done = trial(job, number, state["seconds"], state["expected"])
        state["trials"].append(done)
        save_state(state_file, state)
        words = ", ".join(f"{kill['kill']} after {kill['after_s']} s" for kill in done["kills"]) or "ended before"
        print(f"{number + 1} of {trials}: {words}; {done['rows']:,} rows, all right", flush=True)
    return state


def all_kills(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the kills of all trials."""
    for one in state["trials"]:
        yield from one["kills"]


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["# Folder jobs that are killed at random moments", ""]
    for name, state in results.items():
        kills = [kill for kill in all_kills(state) if kill["kill"] != "none"]
        commands = [kill for kill in kills if kill["kill"] == "command"]
        between = [kill for kill in commands if 0 < kill["rows_then"] < state["rows"]]
        lines += [
            f"## {name}: {len(state['trials'])} trials, {len(kills)} kills, no row lost, none twice",
            "",
            as_lines(state["about"]),
            f"{state['rows']:,} rows in {FILES} files; one run takes {state['seconds']} s. All answers of every trial",
            "are byte for byte those of the run that nobody stopped.",
            "",
            f"Kills of the command: {len(commands)}, of which {len(between)} came when some files were complete.",
        ]
        if others := [kill for kill in kills if kill["kill"] != "command"]:
            kinds = sorted({kill["kill"] for kill in others})
            lines.append(
                f"Kills of one process of the cluster: {len(others)} ({', '.join(kinds)}); the command went on."
            )
        if name == "Ray" and commands:
            slowest = max(kill["gone_s"] for kill in commands)
            left = sum(bool(kill["left"]) for kill in commands)
            lines.append(f"The cluster's processes ended by themselves, at most {slowest} s later ({left} did not).")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder with an int8 graph")
    parser.add_argument("--runs", type=Path, default=Path("runs/job_kills"), help="where files and trials go")
    parser.add_argument("--ray", action="store_true", help="on a local Ray cluster")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--trials", type=int, default=TRIALS)
    options = parser.parse_args()
    names = {False: "one machine", True: "Ray"}
    files = {ray: options.runs / f"{'ray' if ray else 'here'}.json" for ray in names}
    job = Job(options.model, options.runs / ("ray" if options.ray else "here"), options.ray)
    job.folder.mkdir(parents=True, exist_ok=True)
    run_trials(job, files[options.ray], options.rows, options.trials)
    results = {name: load_state(files[ray], {}) for ray, name in names.items() if files[ray].exists()}
    (RESULTS / "job_kills.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "job_kills.md").write_text(page(results))


if __name__ == "__main__":
    main()
