"""The command line. A command is imported when it is called, and torch in its body: --help answers at once."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import click

from offramp import __version__
from offramp.cli.processes import first_prints, refuse_several
from offramp.errors import OfframpError, one_line
from offramp.registry import load

COMMANDS = {
    "bench": "offramp.cli.bench:bench",
    "calibrate": "offramp.cli.calibrate:calibrate",
    "demo": "offramp.cli.train:demo",
    "evaluate": "offramp.cli.evaluate:evaluate",
    "export": "offramp.cli.export:export",
    "info": "offramp.cli.info:info",
    "predict": "offramp.cli.predict:predict",
    "record": "offramp.cli.record:record",
    "report": "offramp.cli.report:report",
    "serve": "offramp.cli.serve:serve",
    "study": "offramp.cli.study:study",
    "train": "offramp.cli.train:train",
}


class OneLineErrors(click.Group):
    """A group that prints errors of offramp and of the system in one line, with exit code 1; wrong usage has code 2.

    Standard output is UTF-8. Ctrl-C (130) and a closed pipe (141) end a command without a word.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        return cast("click.Command", load(COMMANDS, cmd_name)) if cmd_name in COMMANDS else None

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Prepare the output; `--help` and `--version` print here."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
        with _quiet_ends(), first_prints():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and shorten its errors."""
        with _quiet_ends(), first_prints():
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
@click.pass_context
def main(context: click.Context) -> None:
    """Early exit for transformer encoders: easy inputs leave after a few layers, hard inputs run all of them.

    \b
    offramp train --train train.csv --validation validation.csv -o model
    offramp predict model texts.txt
    """
    refuse_several(context.invoked_subcommand)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("offramp")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
