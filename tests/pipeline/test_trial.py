"""What would fail only after the training is told before it, on the untrained student."""

from __future__ import annotations

import warnings
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import PotstillError, TeacherError
from potstill.export import load_student, save_student
from potstill.models import Preprocessor
from potstill.models.beside_weights import copied, has_lazy_layers, without_computed_weights
from potstill.pipeline import plan, trial
from potstill.pipeline.build import Given, Job, build_job
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.trial import try_student
from potstill.recipe.schema import Recipe

INPUTS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
LABELS = np.arange(60) % 3


class Odd(nn.Module):
    """A linear layer; what is special about it is in the classes below."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


class FixedView(Odd):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).view(2, 3)


class Squeezed(Odd):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)[:, :, None].squeeze()


class Branching(Odd):
    def forward(self, inputs: Tensor) -> Tensor:
        found = self.layer(inputs)
        return found if found.sum() > 0 else -found


class Random(Odd):
    def forward(self, inputs: Tensor) -> Tensor:
        return F.dropout(self.layer(inputs), 0.5)


class OfTheBatch(Odd):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).softmax(0)


class OtherEveryTime(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.from_numpy(np.random.default_rng().random(3)).float(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + self.mask


class FromTheSeed(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(3) * 5, persistent=False)
        self.more = [torch.rand(3)]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + self.mask + self.more[0]


class NotToCopy(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock()


def old_norms() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        first, second = nn.utils.weight_norm(nn.Linear(4, 8)), nn.utils.spectral_norm(nn.Linear(8, 8))
    return nn.Sequential(first, second, nn.utils.parametrizations.orthogonal(nn.Linear(8, 3)))


def job(student: Any, formats: list[str], **more: Any) -> Job:
    recipe = Recipe.model_validate(
        {
            "data": {"train": "python-object"},
            "teacher": {"model": "python-object"},
            "student": {"model": "python-object"},
            "export": {"formats": formats},
            **more,
        }
    )
    return build_job(recipe, base=Path(), given=Given(data=(INPUTS, LABELS), teacher=nn.Linear(4, 3), student=student))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (FixedView, r"fails on a batch of 7 samples: .*invalid for input of size 21.*batch size written into a view"),
        (Squeezed, r"a batch of 1 samples with numbers of shape \(3, 1\), expected \(1, 3\)"),
        (Branching, r"tried before the training: Branching could not be exported to ONNX: .*data-dependent"),
        (Random, r"answers the same samples differently when it is asked again"),
        (OtherEveryTime, r"the tensor 'mask' is in no state dict \(a buffer with persistent=False"),
        (NotToCopy, r"NotToCopy cannot be copied: TypeError: cannot pickle"),
    ],
)
def test_what_fails_after_the_training_is_refused_before_it(student: Any, message: str) -> None:
    with pytest.raises(PotstillError, match=message):
        try_student(job(student, ["onnx"]))


def test_what_only_spoils_the_numbers_is_a_warning_and_a_sound_student_gives_none() -> None:
    (told,) = try_student(job(OfTheBatch, []))
    assert "answers a sample differently in a batch of 2 than in one of 7" in told
    (told,) = try_student(job(Random, []))
    assert "draws random numbers" in told
    assert try_student(job(FromTheSeed, [])) == ()


def test_the_plan_tells_and_the_same_student_is_exported_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(trial, "_tried", {})
    monkeypatch.setattr(trial, "_write_and_compare", lambda job, *_: asked.append(job.base) or ["no int8 file"])
    made = job(Odd, ["onnx"])
    planned = plan(made.recipe, out=tmp_path / "run", given=made.given)
    assert "no int8 file" in planned.warnings
    try_student(made)
    assert len(asked) == 1
    for other in (job(FromTheSeed, ["onnx"]), job(Odd, ["onnx-int8"])):
        try_student(other)
    assert len(asked) == 3
    # In another process: what a run found out of the same code is in its folder.
    monkeypatch.setattr(trial, "_tried", {})
    folder = RunFolder(tmp_path)
    for _ in range(2):
        assert try_student(made, folder) == ("no int8 file",)
        trial._tried.clear()
    assert len(asked) == 4
    monkeypatch.setattr(trial, "digests", lambda *_, **__: {"nets.py": "edited"})
    try_student(made, folder)
    assert len(asked) == 5


def test_students_that_differ_in_a_setting_or_in_what_nobody_can_tell_are_each_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(trial, "_tried", {})
    monkeypatch.setattr(trial, "_write_and_compare", lambda made, *_: asked.append(made.given.student) or [])
    students = [Odd() for _ in range(5)]
    for student, setting in zip(students, (1, 1, 2, object(), object()), strict=True):
        student.setting = setting
        try_student(job(student, ["onnx"]), RunFolder(tmp_path))
    assert asked == [students[0], *students[2:]]


def test_weights_that_a_norm_computes_are_copied_and_exported_as_their_values() -> None:
    model = old_norms()
    assert try_student(job(model, ["onnx"])) == ()
    inputs = torch.from_numpy(INPUTS[:5])
    model(inputs).sum().backward()  # leaves computed weights that hang in a graph
    plain = without_computed_weights(copied(model.eval()))
    torch.testing.assert_close(plain(inputs), model(inputs))
    assert sorted(plain.state_dict()) == [f"{layer}.{name}" for layer in "012" for name in ("bias", "weight")]


def test_lazy_layers_get_their_weights_from_the_seed_and_the_data(tmp_path: Path) -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(3))

    for student in (lazy, lazy()):
        made = job(student, [], seeds=2)
        first, again, other = made.student.make(0), made.student.make(0), made.student.make(1)
        assert not has_lazy_layers(first)
        assert first.training
        assert first[0].weight.shape == (8, 4)
        assert torch.equal(first[2].weight, again[2].weight)
        assert not torch.equal(first[2].weight, other[2].weight)
        assert first[1].num_batches_tracked == 0
        assert try_student(made) == ()
    save_student(first, tmp_path, preprocess=Preprocessor(), task="classification", shape=(4,), dtype="float32")
    inputs = torch.from_numpy(INPUTS[:5])
    torch.testing.assert_close(load_student(tmp_path, model=lazy)(inputs), first.eval()(inputs))
    with pytest.raises(TeacherError, match="lazy layers that were never initialised"):
        build_job(made.recipe, base=Path(), given=Given(data=(INPUTS, LABELS), teacher=lazy(), student=Odd()))


def test_what_the_state_dict_does_not_hold_is_exported_and_another_model_is_refused(tmp_path: Path) -> None:
    model = FromTheSeed().eval()
    save_student(model, tmp_path, preprocess=Preprocessor(), task="classification", shape=(4,), dtype="float32")
    inputs = torch.from_numpy(INPUTS[:5])
    torch.testing.assert_close(load_student(tmp_path, model=FromTheSeed())(inputs), model(inputs))
    with pytest.raises(PotstillError, match=r"a tensor 'mask' of shape .* beside its weights; Odd has none"):
        load_student(tmp_path, model=Odd())
    save_student(Odd(), tmp_path, preprocess=Preprocessor(), task="classification", shape=(4,), dtype="float32")
    assert not (tmp_path / "student-unsaved.safetensors").exists()
    with pytest.raises(PotstillError, match=r"OfTheBatch fits the weights .* does not answer like the student"):
        load_student(tmp_path, model=OfTheBatch())
