"""Errors and interrupts as a person wants to read them, with the right exit code and without a traceback."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn, ParamSpec

import typer

from potstill.core.errors import PotstillError, PotstillWarning

INTERRUPTED = 130
P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Return ``command`` with errors turned into one message on standard error and an exit code."""

    @wraps(command)
    def run_command(*args: P.args, **options: P.kwargs) -> None:
        try:
            with _plain_warnings():
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


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print potstill's own warnings as a person wants to read them; all others stay as they are."""
    ordinary = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, PotstillWarning):
            typer.echo(f"warning: {message}", err=True)
        else:
            ordinary(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = ordinary


def repeated_command() -> str:
    """Return the command line that was typed, as it can be typed again."""
    return shlex.join(["potstill", *sys.argv[1:]])


def _stop(message: str, exit_code: int) -> NoReturn:
    if os.environ.get("POTSTILL_DEBUG"):
        traceback.print_exc()
    typer.echo(message, err=True)
    raise typer.Exit(exit_code)
