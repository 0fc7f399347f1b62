"""The names of signals, which are a small language; this is its only reader.

==============================  ======================================================================================
``logits``, ``layer2``          an answer, or a layer of the model by its name
``layer2#1``                    the second run of a layer that runs several times in one forward pass
``exit1.logits``                what a classifier on one of the student's layers answers
``peer1.layer2``                a signal of the first student that learns beside the student
``student.layer2``              in the teacher's place: one of the student's own signals, as a constant
``layer2(teacher.layer1)``      what the student's layer ``layer2`` makes of the teacher's signal ``layer1``
==============================  ======================================================================================

Every signal has one row a position (a sample, or a part of one): what has not is no signal but an argument of a loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

Side = Literal["student", "teacher"]
ANSWER = "logits"
"""The signal that every model gives: scores of classes, or values of a regression."""
_OWN = "student."
_PEER = re.compile(r"peer(?P<number>[1-9][0-9]*)\.(?P<name>.+)")
_FED = re.compile(r"(?P<layer>[^()]+)\(teacher\.(?P<signal>[^()]+)\)")


@dataclass(frozen=True)
class Signal:
    """What a name means.

    Attributes:
        name: under which the model that gives the signal knows it.
        side: whose it is.
        taught: whether it stands in the teacher's place; one of the student's own is a constant there.
        layer: the layer that gives it, without the mark of a run.
        run: which run of the layer, from 0; None where it runs once.
        fed: the teacher's signal that the layer is run on, in the place of what it usually reads.

    """

    name: str
    side: Side
    taught: bool
    layer: str
    run: int | None
    fed: str | None

    def __str__(self) -> str:
        return own(self.name) if self.taught and self.side == "student" else self.name

    @property
    def is_answer(self) -> bool:
        """Whether it is a model's answer, or that of a part of it."""
        return self.name.rpartition(".")[2] == ANSWER

    def beside(self, peers: int) -> tuple[int, str]:
        """Return the peer, from 1, of so many that gives the signal, and its name for it; (0, name) for the student."""
        found = _PEER.fullmatch(self.name)
        number = int(found["number"]) if found else 0
        return (number, found["name"]) if found and number <= peers else (0, self.name)


@cache
def parse(text: str, *, taught: bool = False) -> Signal:
    """Read a signal's name; ``taught`` where it stands in the teacher's place, where ``student.`` means something."""
    of_student = not taught or text.startswith(_OWN)
    name = text.removeprefix(_OWN) if taught else text
    block = None if taught else _FED.fullmatch(name)
    layer, run = split_run(block["layer"] if block else name)
    side: Side = "student" if of_student else "teacher"
    return Signal(name, side, taught, layer, run, block["signal"] if block else None)


def split_run(layer: str) -> tuple[str, int | None]:
    """Return a layer's name and, where it has the mark of one, which run of it is meant."""
    stem, mark, run = layer.rpartition("#")
    return (stem, int(run)) if mark and run.isdecimal() else (layer, None)


def own(name: str) -> str:
    """Return how one of the student's own signals is written in the teacher's place."""
    return _OWN + name


def of_exit(number: int, name: str = ANSWER) -> str:
    """Return what a signal of the student's exit, from 1, is called."""
    return f"exit{number}.{name}"


def of_peer(number: int, name: str = ANSWER) -> str:
    """Return what a signal of a peer, from 1, is called; 0 is the student itself."""
    return f"peer{number}.{name}" if number else name
