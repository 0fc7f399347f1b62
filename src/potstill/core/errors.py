"""Errors a user can act on: what was passed, what was expected, how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from potstill.core.text import printable

_LONGEST_NAME, _LISTED = 200, 100


class PotstillError(Exception):
    """A problem the user can act on. The command line prints the message without a traceback and exits 1.

    Its text is safe to print, whatever names of files or answers of servers stand in it.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(PotstillError):
    """The request itself is wrong (recipe key, option, argument). The command line exits 2."""

    exit_code = 2


class DataError(PotstillError):
    """The data cannot be used as it is; names the file, row or class."""


class DamagedFileError(DataError, ValueError):
    """A small file of potstill's own is no JSON any more; where a damaged file is expected, it is a ValueError."""


class TeacherError(PotstillError):
    """The teacher does not fit the data or is not the one that was recorded."""


class TrainingError(PotstillError):
    """Training had to stop; names the step, the term and where the last good checkpoint is."""


class DivergedError(TrainingError):
    """The loss, a gradient or the answers of a model in training are no finite numbers any more."""


class ParityError(PotstillError):
    """An exported file does not answer like the model it came from; carries the numbers."""


class PotstillWarning(UserWarning):
    """Something that works but is likely not what the user wants. The command line prints it without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name, else the list of known names."""
    options = sorted(known)
    # Comparing takes time that grows with the square of the length.
    close = get_close_matches(name, options, n=1, cutoff=0.6) if len(name) <= _LONGEST_NAME else []
    if close:
        return f" Did you mean '{close[0]}'?"
    more = f" and {len(options) - _LISTED} more" if len(options) > _LISTED else ""
    return f" Known: {', '.join(options[:_LISTED])}{more}." if options else ""
