"""Several teachers side by side: one head on what all of them say makes one teacher of them.

Shape legend: m members, b samples, p features, c classes or outputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from potstill.core.errors import TeacherError, UsageError
from potstill.core.signals import Batch, Signals
from potstill.core.tensors import write_tensors
from potstill.models.load import output_tensor
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import tap
from potstill.teachers.at_rest import Asked, facts_of_all, text_of_all
from potstill.teachers.head import Head, choose_head, starting_head
from potstill.teachers.merged import MergedTeacher
from potstill.teachers.model import LOGITS, Facts, Labelled, Reads, Source, Teacher

ANSWERS = "answers"
"""The source of a member of which its logits or values are read, and no layer."""
_FEATURES = "features"


@dataclass(frozen=True)
class HeadScores:
    """How often a head was right on samples that it was not fitted on, beside what it was made of.

    Attributes:
        metric: ``accuracy`` or ``r2``, which all scores are of.
        samples: labelled samples that the head was learned from, fold after fold.
        strength: of the penalty on its weights.
        head: of heads that were fitted on the other folds.
        mean: of the members' plain mean.
        members: of each member; None for a member that knows only some of the classes.

    """

    metric: str
    samples: int
    strength: float
    head: float
    mean: float
    members: tuple[float | None, ...]

    def __str__(self) -> str:
        """Return the scores in words."""
        scores = enumerate(self.members, 1)
        alone = [f"member {number} {self._amount(score)}" for number, score in scores if score is not None]
        return (
            f"on {self.samples:,} validation samples, each left out of its fit, the head has {self.metric} "
            f"{self._amount(self.head)}; the plain mean has {', '.join([self._amount(self.mean), *alone])}"
        )

    def _amount(self, score: float) -> str:
        return f"{100 * score:.1f} %" if self.metric == "accuracy" else f"{score:.3f}"

    @property
    def note(self) -> str:
        """What is to be told: that the head was not worth learning; an empty text where it was."""
        if self.head > self.mean:
            return ""
        return f"The members' head is no better than their mean: {self}. Drop teacher.merge, which is the mean."


@dataclass(frozen=True)
class ConcatenatedTeacher:
    """Answers with a head on what its members say, side by side.

    When to use it: some members are much better than others or answer in other units, and there are many labelled
    samples that none of them was trained on. Not where the members are alike: `MergedTeacher` needs no labels, and the
    head has to beat it, which it rarely does. Every member's own logits are signals too: ``member1.logits``, ...

    Attributes:
        mean: the same members, merged by their plain mean; with ``num_classes``, and in regression the scales.
        sources: for each member what is read of it: ``answers``, or a layer of a torch model. Logits are read up to a
            constant for each sample, maps (b, channels, height, width) as the mean of each channel.
        head: on what is read; see `learned`.
        scores: of the head, where it was learned.
        seed: of the folds on which the strength of the head's penalty is chosen.

    Raises:
        UsageError: another number of sources than members, members with weights, or a layer of what has none.

    """

    mean: MergedTeacher
    sources: tuple[str, ...]
    head: Head | None = None
    scores: HeadScores | None = None
    seed: int = 0
    module: ClassVar[None] = None

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.members):
            raise UsageError(
                f"concatenate names {len(self.sources)} sources for {len(self.members)} members: give one for all of "
                "them, or one for each."
            )
        if self.mean.weighting != "fixed" or self.mean.num_classes is None:
            raise UsageError("A head takes the place of weights: give members merged by their mean, with num_classes.")
        for number, (member, source) in enumerate(zip(self.members, self.sources, strict=True), 1):
            if source != ANSWERS and (member.module is None or not member.facts.layers):
                raise UsageError(
                    f"concatenate names the layer {source!r} of member {number}, which has no layers that can be read: "
                    f"it is no torch model. Write {ANSWERS!r} for it, such as [{source}, {ANSWERS}]."
                )

    @property
    def members(self) -> tuple[Source, ...]:
        """The models that it is made of."""
        return self.mean.members

    @property
    def preprocess(self) -> Preprocessor:
        """Nothing: its members have their own."""
        return self.mean.preprocess

    @property
    def facts(self) -> Facts:
        """What is known of it: what is known of all members, and that its head saw the validation split."""
        known = facts_of_all(self.members, self.mean.signals)
        held = self.head.state().values() if self.head is not None else ()
        numbers, size = sum(value.numel() for value in held), sum(value.nbytes for value in held)
        return replace(
            known,
            parameters=None if known.parameters is None else known.parameters + numbers,
            size_bytes=None if known.size_bytes is None else known.size_bytes + size,
            fitted=True,
            notes=(*known.notes, *([] if self.scores is None else filter(None, [self.scores.note]))),
        )

    def __str__(self) -> str:
        """Return what tells two of these apart."""
        scales = [scale and scale.to_json() for scale in self.mean.scales]
        lines = (f"sources={list(self.sources)}", f"scales={scales}" if any(scales) else "")
        return text_of_all("ConcatenatedTeacher", self.members, *lines)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that its answers depend on, by name."""
        head = {} if self.head is None else self.head.state()
        return {**self.mean.state(), **{f"head.{name}": value for name, value in head.items()}}

    def whole(self) -> nn.Module | None:
        """Return one module from raw inputs to its answer; None where a member is no torch module."""
        parts = [part for member in self.members if (part := member.whole()) is not None]
        return _Whole(self, parts) if len(parts) == len(self.members) and self.head is not None else None

    def teaching(self, reads: Reads = LOGITS) -> Teacher:
        """Return it frozen.

        Raises:
            UsageError: its head was not learned yet.

        """
        head = self.head
        if head is None:
            raise UsageError("The head was not learned yet: call learned() with samples that have labels first.")
        teachers = self._teachers(reads)

        def answer(batch: Batch) -> dict[str, Tensor]:
            said = [teacher(batch) for teacher in teachers]
            own = {name: signals["logits"] for name, signals in zip(self.mean.signals, said, strict=True)}
            return {"logits": head(self.features(said)), **own}

        how: dict[str, Any] = {"concatenate": list(self.sources), "members": len(self.members)}
        if any(self.mean.scales):
            how["scales"] = [scale and scale.to_json() for scale in self.mean.scales]
        return Asked(self, "ConcatenatedTeacher", answer, reads, tuple(teachers), {"merge": how})

    def _teachers(self, reads: Reads) -> list[Teacher]:
        return [
            member.teaching(
                Reads(
                    taps={} if source == ANSWERS else {_FEATURES: source},
                    precision=reads.precision,
                    device=reads.device,
                    scale=scale,
                )
            )
            for member, source, scale in zip(self.members, self.sources, self.mean.scales, strict=True)
        ]

    @contextmanager
    def _asking(self) -> Iterator[list[Teacher]]:
        with ExitStack() as stack:
            yield [stack.enter_context(teacher) for teacher in self._teachers(LOGITS)]

    def with_weights(self, files: Mapping[int, Path], labelled: Labelled) -> ConcatenatedTeacher:
        """Return a copy whose members have weights from files, with the head from file 0, or else learned."""
        mean = self.mean.with_weights({number: file for number, file in files.items() if number}, labelled)
        changed = replace(self, mean=mean)
        return changed.learned(labelled()) if 0 not in files else changed._with_head(files[0])

    def features(self, said: Sequence[Signals]) -> Tensor:
        """Return (b, p) what the head reads of the signals of each member.

        Raises:
            TeacherError: a member that answers with another number of classes than it is to know, or a layer that does
                not say one vector, or one map, of each sample.

        """
        parts = [self._read(number, signals) for number, signals in enumerate(said, 1)]
        return torch.cat([part.to(parts[0].device) for part in parts], dim=1)

    def _read(self, number: int, signals: Signals) -> Tensor:
        source = self.sources[number - 1]
        values = signals["logits" if source == ANSWERS else _FEATURES].double()
        if source == ANSWERS:
            values = values.flatten(1) if values.dim() > 1 else values[:, None]
            if values.shape[1] != self._outputs(number):
                raise TeacherError(
                    f"Member {number} answers with {values.shape[1]} numbers, but it is to know "
                    f"{self._outputs(number)} classes or target columns. Name the classes that it knows."
                )
            return values if self.mean.regression else values - values.mean(1, keepdim=True)
        if values.dim() not in (2, 4):
            raise TeacherError(
                f"Layer {source!r} of member {number} says {tuple(values.shape[1:])} of each sample. A head reads one "
                "vector (features), or one map (channels, height, width) whose channels are averaged: name another "
                f"layer, or {ANSWERS!r}."
            )
        return values.mean((2, 3)) if values.dim() == 4 else values

    def _outputs(self, number: int) -> int:
        return len(self.mean.known[number - 1]) if self.mean.known else self.mean.num_classes or 0

    def begun(self, batch: Batch) -> ConcatenatedTeacher:
        """Return it with a head that has learned nothing; members whose layers are read are tried on a batch."""
        width = 0
        with self._asking() as teachers:
            for number, (teacher, source) in enumerate(zip(teachers, self.sources, strict=True), 1):
                answers = source == ANSWERS
                width += self._outputs(number) if answers else self._read(number, teacher(batch)).shape[1]
        return replace(self, head=starting_head(width, self.mean.num_classes or 0, seed=self.seed))

    def learned(self, batches: Sequence[Batch]) -> ConcatenatedTeacher:
        """Return it with a head that was learned from samples with labels that no member was trained on.

        Args:
            batches: with targets, int64 classes or values in the units that the members answer in.

        Raises:
            TeacherError: a member says something that is no finite number.

        """
        with self._asking() as teachers:
            said = [[teacher(batch) for batch in batches] for teacher in teachers]
        features = torch.cat([self.features(signals).cpu() for signals in zip(*said, strict=True)])
        logits = [torch.cat([signals["logits"].cpu() for signals in member]) for member in said]
        targets = torch.cat([batch.targets for batch in batches if batch.targets is not None]).cpu()
        bad = int((~torch.isfinite(features)).any(1).sum())
        if bad:
            raise TeacherError(f"What the members say of {bad:,} of {len(features):,} samples is not all finite.")
        outputs = self.mean.num_classes or 0
        if self.mean.regression:
            targets = targets.double().reshape(len(targets), -1)
        with torch.inference_mode(False):
            head, strength, unseen = choose_head(features.clone(), targets, outputs=outputs, seed=self.seed)
        mean = self.mean.merged(logits)["logits"]
        score = _r2 if self.mean.regression else _accuracy
        scores = HeadScores(
            metric="r2" if self.mean.regression else "accuracy",
            samples=len(targets),
            strength=strength,
            head=score(unseen, targets),
            mean=score(mean, targets),
            members=tuple(
                score(answers, targets) if table is None or torch.equal(table, torch.arange(outputs)) else None
                for answers, table in zip(logits, self.mean.known or (None,) * len(logits), strict=True)
            ),
        )
        return replace(self, head=head, scores=scores)

    def _with_head(self, file: Path) -> ConcatenatedTeacher:
        """Return it with the head in a file that `write_head` wrote."""
        try:
            with safe_open(file, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                held = json.loads((opened.metadata() or {})["scores"])
            head, scores = Head(**tensors), HeadScores(**{**held, "members": tuple(held["members"])})
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is no head that was learned here: {error}.") from error
        own = {} if self.head is None else self.head.state()
        shapes = {name: tuple(value.shape) for name, value in head.state().items()}
        if own and shapes != {name: tuple(value.shape) for name, value in own.items()}:
            raise UsageError(f"{file} holds a head for other members: {shapes}. Delete it to learn it anew.")
        return replace(self, head=head, scores=scores)


def write_head(model: Source, file: Path) -> HeadScores:
    """Write the head of members side by side to a file, and return its scores."""
    if not isinstance(model, ConcatenatedTeacher) or model.head is None or model.scores is None:
        raise TypeError("this model has no head that was learned")
    scores = asdict(model.scores)
    write_tensors(
        file,
        {name: value.contiguous() for name, value in model.head.state().items()},
        {"scores": json.dumps(scores)},
    )
    return model.scores


def _accuracy(answers: Tensor, targets: Tensor) -> float:
    return float((answers.argmax(1) == targets).double().mean())


def _r2(answers: Tensor, targets: Tensor) -> float:
    """Return the share of the variance that is explained, the mean over the outputs."""
    left = (answers.double().reshape(targets.shape) - targets).square().sum(0)
    return float((1 - left / (targets - targets.mean(0)).square().sum(0)).mean())


class _Whole(nn.Module):
    def __init__(self, model: ConcatenatedTeacher, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model, self.parts = model, nn.ModuleList(parts)
        self.tapped = nn.ModuleList([member.module or nn.Identity() for member in model.members])

    def forward(self, inputs: Tensor) -> Tensor:
        said = []
        rows = zip(self.parts, self.tapped, self.model.sources, self.model.mean.scales, strict=True)
        for part, module, source, scale in rows:
            with tap(module, {} if source == ANSWERS else {_FEATURES: source}) as tapped:
                answer = output_tensor(part(inputs))
                signals = {"logits": answer if scale is None else scale.standard_tensor(answer), **tapped}
            said.append(signals)
        if self.model.head is None:
            raise TypeError("a head that was not learned")
        return self.model.head(self.model.features(said)).float()
