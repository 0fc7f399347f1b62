"""Growing boosted trees on the gradients of an objective: the learner of students that are no network.

The whole split is read at once, and so is everything that the teacher says of it. LightGBM is given the first and the
second derivatives of the recipe's own objective by the student's answers: a tree learns what a network would learn.
Shape legend: n samples, c classes or outputs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from potstill.core.errors import DivergedError, UsageError
from potstill.core.optional import require
from potstill.core.progress import progress
from potstill.core.signals import Batch
from potstill.data.augment import is_on
from potstill.data.stream import Stream
from potstill.models.zoo.trees import Split, Tree, Trees
from potstill.objective import Objective
from potstill.recipe.schema import Training
from potstill.training import history
from potstill.training.average import AverageTeacher
from potstill.training.result import Result
from potstill.training.setup import make_accelerator
from potstill.training.spec import Spec
from potstill.training.validate import Validation, is_better, validation_of

Array = np.ndarray[Any, Any]
_ASKED, _TIMED = 4096, 3
_LEAST = 1e-6
"""The smallest second derivative, where the objective has none or is not convex."""


def check_boosted(student: nn.Module, objective: Objective, settings: Training, stream: Stream) -> None:
    """Refuse what makes no sense for trees, before anything is grown.

    Raises:
        UsageError: names the option, and what to do.

    """
    require("lightgbm", feature="a lightgbm student", extra="lightgbm")
    _trees_in(student)
    shape = tuple(stream.first(1).tensor.shape[1:])
    if len(shape) != 1:
        raise UsageError(
            f"A lightgbm student reads rows of numbers, and a sample has shape {shape}. Use a table, or a network."
        )
    usual = Training()
    changed = [
        name for name in Training.model_fields if name != "minutes" and getattr(settings, name) != getattr(usual, name)
    ]
    if changed:
        raise UsageError(
            f"training.{changed[0]} says nothing to trees. Remove it: a lightgbm student is grown by student.args "
            "(rounds, num_leaves, learning_rate, min_data_in_leaf, rows, columns)."
        )
    if is_on(stream.augment):
        raise UsageError(
            "data.augment shows a student other samples in each epoch, and trees are grown on all samples at once. "
            "Remove it."
        )
    for term in objective.terms:
        if term.student_signals != {"logits"} or term.kind not in ("logits", "values") or term.head is not None:
            raise UsageError(
                f"Term {term.name} reads more than the student's answers, and trees have no layers. Use terms on "
                "logits (classification) or values (regression), such as the preset 'auto'."
            )
        if term.over_batch:
            raise UsageError(f"Term {term.name} reads relations between samples of a batch, and trees have no batches.")


def boost(
    student: nn.Module,
    spec: Spec,
    folder: Path,
    *,
    device: str | torch.device = "auto",
    label: str = "student",
    accelerator: Accelerator | None = None,
) -> Result:
    """Grow ``student`` in place and leave the rounds in it that were best on validation.

    Arguments and result are those of `potstill.training.train`; a round counts as an epoch and a step. There is no
    checkpoint: a training that was killed begins anew. Every process grows the same trees, the main one writes them.

    Raises:
        UsageError: the specification asks for what trees cannot do.
        DivergedError: no round gave usable numbers.

    """
    check_boosted(student, spec.objective, spec.settings, spec.stream)
    trees = _trees_in(student)
    accelerator = accelerator or make_accelerator(device)
    began, folder = time.monotonic(), Path(folder)
    booster = _Booster(trees, spec)
    rows: list[dict[str, Any]] = []
    best, kept, iterations = None, 0, 0
    minutes = spec.settings.minutes
    with progress(label, trees.rounds, unit="rounds") if accelerator.is_main_process else nullcontext() as advance:
        for number in range(trees.rounds):
            if minutes is not None and number and _elapsed(began, accelerator) >= 60.0 * minutes:
                break
            row, validation = booster.round(number / trees.rounds)
            if is_better(validation, best, spec.metric):
                best, kept, iterations = validation, number + 1, booster.booster.current_iteration()
            rows.append({"epoch": number + 1, "step": number + 1, "seconds": time.monotonic() - began, **row})
            if advance is not None:
                advance()
    if best is None:
        raise DivergedError(
            f"Validation gave no usable number in any of {len(rows)} rounds: the student's outputs are NaN or "
            "infinite. Look at the targets and the teacher's answers, or lower student.args.learning_rate."
        )
    trees.grown(booster.trees(iterations))
    trees.eval()
    result = Result(
        weights=folder / "weights.safetensors",
        steps=len(rows),
        epochs=float(len(rows)),
        seconds=time.monotonic() - began,
        best_epoch=kept,
        best_validation=best.metric,
        stopped="finished" if len(rows) == trees.rounds else "minutes",
        history=folder / "history.jsonl",
    )
    if accelerator.is_main_process:
        result.history.unlink(missing_ok=True)
        for row in rows:
            history.append(result.history, row)
        result.write(trees.state_dict(), spec.data)
    accelerator.wait_for_everyone()
    return result


def _elapsed(began: float, accelerator: Accelerator) -> float:
    """Return the main process's seconds on every process, so that all stop after the same round."""
    seconds: list[float] = [time.monotonic() - began]
    return float((broadcast_object_list(seconds) if accelerator.num_processes > 1 else seconds)[0])


def seconds_boosted(student: nn.Module, spec: Spec, _: torch.device) -> float:
    """Return how long growing takes, by its first rounds; the teacher's answers are not asked for."""
    trees = _trees_in(student)
    booster = _Booster(trees, spec)
    began = time.monotonic()
    for _round in range(_TIMED):
        booster.round(0.0)
    return trees.rounds * (time.monotonic() - began) / _TIMED


class _Booster:
    """LightGBM, with everything it reads at once: features, targets and what the teacher says."""

    def __init__(self, student: Trees, spec: Spec) -> None:
        lightgbm: Any = require("lightgbm", feature="a lightgbm student", extra="lightgbm")
        self.student, self.spec, self._error = student, spec, lightgbm.basic.LightGBMError
        self.batch = spec.stream.every()
        self.taught = _asked(spec, self.batch)
        threads = spec.settings.threads
        settings = {
            "objective": "none",
            "num_class": student.num_classes,
            "learning_rate": student.learning_rate,
            "num_leaves": student.num_leaves,
            "min_data_in_leaf": student.min_data_in_leaf,
            "bagging_fraction": student.rows,
            "bagging_freq": 1,
            "feature_fraction": student.columns,
            "seed": spec.seed,
            "deterministic": True,
            "force_row_wise": True,
            "use_missing": False,
            "num_threads": threads if isinstance(threads, int) else torch.get_num_threads(),
            "verbosity": -1,
        }
        held = Stream(spec.data.validation).first(len(spec.data.validation))
        train = lightgbm.Dataset(self._features(self.batch), np.zeros(len(self.batch)), params=settings)
        valid = lightgbm.Dataset(self._features(held), np.zeros(len(held)), reference=train, params=settings)
        self.booster = lightgbm.Booster(settings, train)
        self.booster.add_valid(valid, "validation")

    def round(self, progress: float) -> tuple[dict[str, Any], Validation]:
        """Grow a tree for each output; return what the history keeps of it, and the validation after it."""
        seen: dict[str, Any] = {}

        def derivatives(scores: Array, _: object) -> tuple[Array, Array]:
            first, second, parts = self._derivatives(scores, progress)
            seen.update(parts={name: float(part) / len(self.batch) for name, part in parts.items()})
            return first, second

        def look(scores: Array, _: object) -> tuple[str, float, bool]:
            outputs = torch.from_numpy(scores.reshape(-1, self.student.num_classes)).float()
            seen["validation"] = validation_of(outputs, data.validation, data.task, self.spec.metric)
            return "validation", 0.0, True

        data = self.spec.data
        try:
            self.booster.update(fobj=derivatives)
        except self._error as error:
            raise UsageError(
                f"LightGBM cannot grow trees on these {len(self.batch)} samples. Are all features constant, or is "
                f"student.args.min_data_in_leaf={self.student.min_data_in_leaf} too many for them?"
            ) from error
        self.booster.eval_valid(look)
        validation: Validation = seen["validation"]
        row = {
            "learning_rate": self.student.learning_rate,
            "train_loss": sum(seen["parts"].values()),
            "parts": seen["parts"],
            "validation_loss": validation.loss,
            "validation_metric": validation.metric,
        }
        return row, validation

    def trees(self, iterations: int) -> list[Tree]:
        """Return the trees of the first iterations; a round in which nothing could be split was none."""
        if iterations == 0:  # LightGBM takes 0 for all
            return []
        model = self.booster.dump_model(num_iteration=iterations)
        return [_tree(entry["tree_structure"]) for entry in model["tree_info"]]

    def _features(self, batch: Batch) -> Array:
        """Return what the student reads, (n, f) float32."""
        with torch.no_grad():
            features: Array = self.spec.preprocess(batch.tensor).flatten(1).float().numpy()
        return features

    def _derivatives(self, scores: Array, progress: float) -> tuple[Array, Array, Mapping[str, Tensor]]:
        """Return the first and the second derivative of the objective by each answer, and the terms' sums."""
        answers = torch.from_numpy(scores.reshape(-1, self.student.num_classes)).float().requires_grad_()
        loss = self.spec.objective({"logits": answers}, self.taught, self.batch, progress=progress)
        (first,) = torch.autograd.grad(loss.total, answers, create_graph=True)
        second = torch.ones_like(first)
        if first.requires_grad:  # each row depends on its own answers only: a column's sum gives the diagonal
            for column in range(answers.shape[1]):
                (rows,) = torch.autograd.grad(first[:, column].sum(), answers, retain_graph=True)
                second[:, column] = rows[:, column]
        shape = scores.shape
        found = first.detach(), second.detach().clamp_min(_LEAST)
        return found[0].double().numpy().reshape(shape), found[1].double().numpy().reshape(shape), loss.parts


def _trees_in(student: nn.Module) -> Trees:
    if not isinstance(student, Trees):
        raise UsageError("A lightgbm student has no layers for exits and no batches to share with peers. Remove them.")
    return student


def _asked(spec: Spec, batch: Batch) -> dict[str, Tensor] | None:
    """Return everything that the teacher says of the samples that the objective reads."""
    teacher, names = spec.teacher, sorted(spec.objective.teacher_signals)
    if not names:
        return None
    if teacher is None or isinstance(teacher, AverageTeacher):
        raise UsageError(
            "The objective reads a teacher, and trees learn from one that is finished: recorded or live. A moving "
            "average of the student is none."
        )
    parts = [teacher(batch.narrow(start, start + _ASKED)) for start in range(0, len(batch), _ASKED)]
    return {name: torch.cat([part[name].cpu().float() for part in parts]) for name in names}


def _tree(root: Mapping[str, Any]) -> Tree:
    """Return a tree of LightGBM's dump as splits and leaves."""
    splits: dict[int, Split] = {}
    leaves: dict[int, float] = {}

    def place(node: Mapping[str, Any]) -> int:
        if "split_index" not in node:
            number = int(node.get("leaf_index", 0))
            leaves[number] = float(node["leaf_value"])
            return -1 - number
        children = place(node["left_child"]), place(node["right_child"])
        splits[int(node["split_index"])] = (int(node["split_feature"]), float(node["threshold"]), *children)
        return int(node["split_index"])

    place(root)
    return [splits[number] for number in sorted(splits)], [leaves[number] for number in sorted(leaves)]
