"""Does the memory of a folder job grow with its rows?

    python benchmarks/job_memory.py
    python benchmarks/job_memory.py --rows 200000 --runs runs/short

Millions of short rows, seeded: one half in a single packed file, the other in packed files of 100,000 that hard links
name over and over; the job reads each as a file of its own, and the disk holds few of them. The model is tiny (2 layers
of width 16, random weights, in torch), so that ten million rows take minutes: what is measured is the job around it,
not an encoder's memory, which does not depend on the number of rows. The resident memory of the command and of all that
it starts is read every second; the median of the last tenth is compared with that of the first, once the model is
loaded.

Writes `benchmarks/results/job_memory.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from transformers import BertConfig, BertTokenizer

from machine import as_lines, provenance
from offramp.model.modeling import MultiExitModel

ROWS, FILE_ROWS, SHARDS, EVERY_S, SEED = 10_000_000, 100_000, 4, 1.0, 0
TEXT = "where is my card please transfer money to the bank account what time is my flight book a restaurant"
RESULTS = Path(__file__).parent / "results"


def write_model(folder: Path) -> None:
    """Write a tiny model with random weights."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(TEXT.split()))]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)
    MultiExitModel.from_backbone(config, num_labels=3).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=32).save_pretrained(
        folder
    )


def write_files(folder: Path, rows: int) -> None:
    """Write packed files of texts, a few of them under many names, and a long one that is made of them."""
    folder.mkdir(parents=True)
    draw = random.Random(SEED)
    files = -(-rows // FILE_ROWS)
    for number in range(max(files // 2, 1)):
        path = folder / f"part-{number:04}.jsonl.gz"
        if number >= SHARDS:
            os.link(folder / f"part-{number % SHARDS:04}.jsonl.gz", path)
            continue
        with gzip.open(path, "wt", compresslevel=1) as file:
            for _ in range(FILE_ROWS):
                file.write(json.dumps({"text": " ".join(draw.choices(TEXT.split(), k=draw.randint(1, 6)))}) + "\n")
    members = [path.read_bytes() for path in sorted(folder.iterdir())[:SHARDS]]
    with (folder / "long.jsonl.gz").open("wb") as file:  # gzip files, one after the other, are a gzip file
        for number in range(files - files // 2):
            file.write(members[number % len(members)])


def resident(process: psutil.Process) -> int:
    """Return the bytes in memory of a process and of all that it has started."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def measure(runs: Path) -> dict[str, Any]:
    """Run the job, and read its memory until it ends."""
    command = [sys.executable, "-m", "offramp", "predict", str(runs / "model"), "--input", str(runs / "texts")]
    began, samples = time.monotonic(), []
    with subprocess.Popen([*command, "--output", str(runs / "answers"), "--json"], stdout=subprocess.PIPE) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            samples.append([round(time.monotonic() - began, 1), resident(watched)])
            if len(samples) % 60 == 0:
                print(f"{samples[-1][0]:,.0f} s: {samples[-1][1] / 2**20:,.0f} MiB", flush=True)
            time.sleep(EVERY_S)
        totals = json.loads(process.stdout.read()) if process.stdout else {}
    return {"about": provenance(), "totals": totals, "samples": samples, **tenths(samples)}


def tenths(samples: list[list[float]]) -> dict[str, float]:
    """Return the median memory in MiB of the first and of the last tenth, without the start."""
    working = [size / 2**20 for _, size in samples[max(5, len(samples) // 50) : -1]]
    part = max(1, len(working) // 10)
    first, last = statistics.median(working[:part]), statistics.median(working[-part:])
    return {"first_mib": round(first, 1), "last_mib": round(last, 1), "most_mib": round(max(working), 1)}


def draw_figure(result: dict[str, Any], path: Path) -> None:
    """Draw memory over time."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.plot([second / 60 for second, _ in result["samples"]], [size / 2**20 for _, size in result["samples"]])
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=0)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def page(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    totals = result["totals"]
    return "\n".join(
        [
            "# Memory of a folder job",
            "",
            as_lines(result["about"]),
            f"{totals['rows']:,} short rows, one half of them in one file of {totals['files_done']:,} (all packed),",
            f"a tiny model in torch; {totals['seconds']:,.0f} s.",
            "",
            "| first tenth | last tenth | most |",
            "|---|---|---|",
            f"| {result['first_mib']:.0f} MiB | {result['last_mib']:.0f} MiB | {result['most_mib']:.0f} MiB |",
            "",
        ]
    )


def main() -> None:
    """Write the files, run the job, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--runs", type=Path, default=Path("runs/job_memory"), help="where files go, and are removed")
    options = parser.parse_args()
    shutil.rmtree(options.runs, ignore_errors=True)
    write_model(options.runs / "model")
    write_files(options.runs / "texts", options.rows)
    result = measure(options.runs)
    shutil.rmtree(options.runs)
    (RESULTS / "job_memory.json").write_text(json.dumps(result) + "\n")
    (RESULTS / "job_memory.md").write_text(page(result))
    draw_figure(result, RESULTS / "job_memory.png")
    print(page(result))


if __name__ == "__main__":
    main()
