"""The command line, as tests ask it."""

from typing import Any

from click.testing import CliRunner, Result

from offramp.cli.main import main


def offramp(*arguments: Any, given: str | None = None) -> Result:
    """Run a command in this process; a traceback is a failure of the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
