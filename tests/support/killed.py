"""Commands in processes of their own that are killed at a moment, and what they leave behind."""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from offramp.types.whole_file import UNFINISHED

COMMANDS = multiprocessing.get_context("forkserver")  # forks of a process that has imported all, and run nothing
COMMANDS.set_forkserver_preload(
    [
        "offramp.calibration.prepare",
        "offramp.cli.main",
        "offramp.inference.export",
        "offramp.inference.predictor",
        "offramp.model.loading",
        "offramp.report.tables",
        "offramp.training.fit",
        "offramp.training.objectives.registry",
        "support.killed",
        "transformers.models.bert.modeling_bert",
    ]
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run_killed(arguments: Iterable[Any], after: float | None = None, at_write: int | None = None) -> tuple[int, float]:
    """Run a command, and kill it after some seconds, or at its nth change of the file system (from 0).

    Returns:
        The exit code (-9 = killed), and the seconds that it took.
    """
    process = COMMANDS.Process(target=_command, args=([str(argument) for argument in arguments], at_write))
    began = time.perf_counter()
    process.start()
    process.join(after)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, time.perf_counter() - began


def _command(arguments: list[str], at_write: int | None) -> None:
    from offramp.cli.main import main

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    if at_write is not None:
        _kill_at(at_write)
    main(arguments)


def _kill_at(number: int) -> None:
    changes = 0

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = event == "open" and isinstance(values[2], int) and values[2] & WRITING
        if not writes and event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        if changes == number:
            os.kill(os.getpid(), signal.SIGKILL)
        changes += 1

    sys.addaudithook(hook)


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of each file that has its final name, by its path in a folder; checkpoints are left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not unfinished(path) and "checkpoints" not in path.parts
    }


def unfinished(path: Path) -> bool:
    return any(part.startswith(UNFINISHED) for part in path.parts)


def moments(seconds: float, count: int, seed: int) -> list[float]:
    """Draw moments of a run, in order."""
    draw = random.Random(seed)
    return sorted(draw.uniform(0, seconds) for _ in range(count))
