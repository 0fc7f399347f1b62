"""Errors and interrupts as a person wants to read them, with the right exit code and without a traceback."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec

import typer

from potstill.core.errors import PotstillError

INTERRUPTED = 130
P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Return ``command`` with errors turned into one message on standard error and an exit code."""

    @wraps(command)
    def run_command(*args: P.args, **options: P.kwargs) -> None:
        try:
            command(*args, **options)
        except (typer.Exit, typer.BadParameter, BrokenPipeError):
            raise
        except (KeyboardInterrupt, typer.Abort):
            _stop(
                "\ninterrupted: finished work is kept; the same command continues: " + repeated_command(),
                INTERRUPTED,
            )
        except PotstillError as error:
            _stop(f"error: {error}", error.exit_code)
        except Exception as error:
            _stop(
                f"error: unexpected {type(error).__name__}: {error}\n"
                "This is a mistake in potstill or in a function that the recipe names. "
                "To see where it happened, set POTSTILL_DEBUG=1 and run the same command again.",
                1,
            )

    return run_command


def repeated_command() -> str:
    """Return the command line that was typed, as it can be typed again."""
    return shlex.join(["potstill", *sys.argv[1:]])


def _stop(message: str, exit_code: int) -> NoReturn:
    if os.environ.get("POTSTILL_DEBUG"):
        traceback.print_exc()
    typer.echo(message, err=True)
    raise typer.Exit(exit_code)
