"""The command line. Commands import torch in their bodies, so that --help answers at once."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from offramp import __version__
from offramp.cli.bench import bench
from offramp.cli.calibrate import calibrate
from offramp.cli.evaluate import evaluate
from offramp.cli.export import export
from offramp.cli.info import info
from offramp.cli.predict import predict
from offramp.cli.record import record
from offramp.cli.report import report
from offramp.cli.study import study
from offramp.cli.train import demo, train
from offramp.errors import OfframpError, one_line


class OneLineErrors(click.Group):
    """A group that prints errors of offramp and of the system in one line, with exit code 1; wrong usage has code 2.

    Standard output is UTF-8. Ctrl-C (130) and a closed pipe (141) end a command without a word.
    """

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Prepare the output; `--help` and `--version` print here."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
        with _quiet_ends():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and shorten its errors."""
        with _quiet_ends():
            try:
                result = super().invoke(ctx)
                _flush()  # what cannot be written shows here, not when the interpreter ends
                return result
            except BrokenPipeError:
                raise
            except (OfframpError, OSError) as error:
                raise click.ClickException(one_line(error)) from None


@contextmanager
def _quiet_ends() -> Iterator[None]:
    """End without a word at Ctrl-C, and where nobody reads the output any more."""
    try:
        yield
    except BrokenPipeError:
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        try:
            _flush()
        except OSError:  # the interpreter's own last flush would complain again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush() -> None:
    if sys.stdout is not None:  # as under pythonw
        sys.stdout.flush()


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="offramp")
def main() -> None:
    """Early exit for transformer encoders: easy inputs leave after a few layers, hard inputs run all of them.

    \b
    offramp train --train train.csv --validation validation.csv -o model
    offramp predict model texts.txt
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("offramp")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


for command in (demo, train, record, calibrate, evaluate, predict, export, bench, report, study, info):
    main.add_command(command)
