"""Commands that torchrun or accelerate launch starts in several processes: which may be, and which process prints."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from offramp.errors import InvalidInput

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

IN_SEVERAL = ("record", "train")
"""Commands whose processes share the work; the first writes and prints."""
HEAD_START_S = 15.0
"""How long the process with the cause of an error has to print it, and the launcher to end the others."""
PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one; torch's own half hour is for training steps."""


def rank() -> int:
    """Return the number of this process, 0 for the first or only one."""
    return int(os.environ.get("RANK", 0)) if process_count() > 1 else 0


def process_count() -> int:
    """Return how many processes a launcher started on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def refuse_several(command: str | None) -> None:
    """Refuse a command that every process would do as a whole, into the same files.

    Raises:
        InvalidInput: it is not one of IN_SEVERAL.
    """
    if process_count() > 1 and command not in IN_SEVERAL:
        count, several = process_count(), " and ".join(IN_SEVERAL)
        raise InvalidInput(f"{command} takes one process, and {count} were started; {several} run in several")


@contextmanager
def first_prints() -> Iterator[None]:
    """Let the first process alone print; another one's error follows where the launcher has not ended it before.

    An error that all processes have is so printed once, and one that follows from another process's end not at all.
    """
    if process_count() == 1:
        yield
        return
    with ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        try:
            yield
        except Exception as error:
            if rank() > 0 or not isinstance(error, click.ClickException):
                time.sleep(HEAD_START_S)
            if rank() > 0 and isinstance(error, click.ClickException):
                raise click.ClickException(f"process {rank()}: {error.message}") from None
            raise


@contextmanager
def recording_group() -> Iterator[ProcessGroup | None]:
    """Join the processes of a command, for a recording; None where there is one. Each gets a GPU, if there are some."""
    if process_count() == 1:
        yield None
        return
    import torch
    from torch import distributed

    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield distributed.group.WORLD
    finally:
        distributed.destroy_process_group()


def join_first_machine() -> ProcessGroup | None:
    """Wait for the first process, after training, on its own machine, where its files are; None anywhere else."""
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if process_count() == 1 or rank() >= on_machine or os.environ.get("GROUP_RANK", "0") != "0":
        return None
    from torch import distributed

    group: ProcessGroup = distributed.new_group(
        list(range(on_machine)), timeout=PATIENCE, backend="gloo", use_local_synchronization=True
    )
    return group
