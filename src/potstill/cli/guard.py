"""Errors and interrupts as a person wants to read them, with the right exit code and without a traceback."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import typer

from potstill.cli import show
from potstill.core.errors import PotstillWarning
from potstill.core.explain import explained
from potstill.core.text import printable

INTERRUPTED = 130
_LONGEST = 8_000
"""Characters of a message that are shown."""
P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Return ``command`` with errors turned into one message on standard error and an exit code.

    With ``--json`` the message is one JSON object on standard output, unless a result stands there already.
    """

    @wraps(command)
    def run_command(*args: P.args, **options: P.kwargs) -> None:
        wanted, before = bool(options.get("json")), show.printed_objects()

        def stop(kind: str, message: str, exit_code: int) -> NoReturn:
            _stop(kind, message, exit_code, json=wanted and show.printed_objects() == before)

        try:
            with _plain_warnings():
                command(*args, **options)
        except (typer.Exit, typer.BadParameter, BrokenPipeError):
            raise
        except (KeyboardInterrupt, typer.Abort):
            again = repeated_command()
            stop("Interrupted", f"interrupted: finished work is kept; the same command continues: {again}", INTERRUPTED)
        except Exception as error:
            known = explained(error)
            if known is not None:
                stop(type(known).__name__, str(known), known.exit_code)
            stop(
                "Unexpected",
                f"unexpected {type(error).__name__}: {error}\n"
                "This is a mistake in potstill or in a function that the recipe names. "
                "To see where it happened, set POTSTILL_DEBUG=1 and run the same command again.",
                1,
            )

    return run_command


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command line and leave the process with its exit code, whatever streams and arguments it was given."""
    # A stream that was closed (2>&-) is None, which no library expects.
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Names of files and classes may hold what the terminal's encoding does not have.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        ended = app(prog_name="potstill", standalone_mode=False)
        code = ended if isinstance(ended, int) else 0
    except typer.Abort:
        code = 1
    except Exception as error:
        # Wrong options and missing arguments, which typer shows with the usage.
        if not hasattr(error, "format_message"):
            raise
        code = int(getattr(error, "exit_code", 2))
        if "--json" in sys.argv[1:]:
            show.print_json(_as_json("UsageError", str(error.format_message()), code))
        else:
            with suppress(OSError, ValueError):
                error.show()  # type: ignore[attr-defined]
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            typer.echo(f"error: the result could not be printed: {error.strerror}.", err=True)
        # Python would try again on its way out.
        os._exit(code or 1)
    sys.exit(code)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print potstill's own warnings as a person wants to read them; all others stay as they are."""
    ordinary = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, PotstillWarning):
            typer.echo(f"warning: {printable(str(message))}", err=True)
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


def _stop(kind: str, message: str, exit_code: int, *, json: bool) -> NoReturn:
    """Tell an error and leave; an error that cannot be told (a closed stream, a full disk) still has its exit code."""
    message = printable(message if len(message) <= _LONGEST else f"{message[:_LONGEST]} ... (cut)")
    with suppress(OSError, ValueError):
        if os.environ.get("POTSTILL_DEBUG"):
            traceback.print_exc()
        if json:
            show.print_json(_as_json(kind, message, exit_code))
        else:
            typer.echo(message if kind == "Interrupted" else f"error: {message}", err=True)
    raise typer.Exit(exit_code)


def _as_json(kind: str, message: str, exit_code: int) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "exit_code": exit_code}}
