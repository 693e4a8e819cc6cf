"""The command line. Commands import torch in their bodies, so that --help answers at once."""

from __future__ import annotations

import logging
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
from offramp.errors import OfframpError


class OneLineErrors(click.Group):
    """A group that prints errors of offramp and of the system in one line, with exit code 1; wrong usage has code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and shorten its errors."""
        try:
            return super().invoke(ctx)
        except (OfframpError, OSError) as error:
            raise click.ClickException(" ".join(str(error).split())) from None


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
