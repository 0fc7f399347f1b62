"""A model that is trained here and taught: the student, an assistant of a chain, or an earlier generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from potstill.core.names import ANSWER, parse
from potstill.models import Preprocessor, model_signals
from potstill.models.taps import Where
from potstill.models.together import Exits, Together, deployed, inside, inside_peer, plain
from potstill.recipe import schema

Kind = Literal["alone", "pseudo", "distilled"]
KINDS: tuple[Kind, ...] = ("alone", "pseudo", "distilled")
"""How a student learns: from its labels, from these and the teacher's likeliest classes, with the objective."""
Arm = tuple[int, Kind]
"""A seed, and how the student that begins from it learns."""


@dataclass(frozen=True)
class Student:
    """How one model is built and trained; alone it is what is deployed, distilled it has its exits and peers.

    Attributes:
        name: what it is called in the report, for example ``assistant 1``.
        section: the model as the recipe describes it.
        training: how it is trained.
        make: builds it from a seed, without exits and peers.
        preprocess: what happens to its inputs first.
        shape: of a sample.
        num_outputs: classes, or target columns.
        peers: models that learn beside it.
        layers: where signals are found that are no layer's own name.
        given: that object, or the function that builds it.

    """

    name: str
    section: schema.Student
    training: schema.Training
    make: Callable[[int], nn.Module]
    preprocess: Preprocessor
    shape: tuple[int, ...]
    num_outputs: int
    peers: tuple[Student, ...] = ()
    layers: Mapping[str, Where] = field(default_factory=dict)
    given: Any = None
    _fresh: dict[int, nn.Module] = field(default_factory=dict)

    def folder(self, seed: int, kind: Kind) -> str:
        """Return where its training lies in the run folder."""
        return f"seeds/{seed}/{kind}" if self.name == "student" else f"chain/{self.name.replace(' ', '-')}"

    def build(self, seed: int, kind: Kind = "distilled") -> nn.Module:
        """Build the model anew, to be trained or given weights."""
        student = self.make(seed)
        if kind != "distilled":
            return deployed(student)
        if self.section.exits:
            example = self.preprocess(torch.zeros(2, *self.shape))
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                student = Exits(student, self.section.exits, num_outputs=self.num_outputs, example=example)
        if not self.peers:
            return student
        return Together(student, [peer.make(seed + 1 + index) for index, peer in enumerate(self.peers)])

    def fresh(self, seed: int, kind: Kind = "distilled") -> nn.Module:
        """Return the model as it is before its training, built once: to be looked at and asked, never to be changed."""
        if seed not in self._fresh:
            self._fresh[seed] = self.build(seed)
        return self._fresh[seed] if kind == "distilled" else deployed(self._fresh[seed])

    def plain(self, seed: int) -> nn.Module:
        """Return the model as it is before its training, without exits and peers; never to be changed."""
        return plain(self.fresh(seed))

    def taps(self, signals: frozenset[str], seed: int) -> dict[str, Where]:
        """Return where the model, as it is distilled, is tapped for signals that it does not answer with."""
        found: dict[str, Where] = {}
        for signal in sorted(signals - {ANSWER, *model_signals(self.fresh(seed))}):
            number, layer = parse(signal).beside(len(self.peers))
            if number:
                found[signal] = inside_peer(number - 1, self.peers[number - 1].layers.get(layer, layer))
            else:
                found[signal] = inside(self.fresh(seed), self.layers.get(signal, signal))
        return found
