"""Saving a student and building it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from potstill.core.errors import PotstillError, UsageError
from potstill.export import load_student, save_student
from potstill.models import zoo
from potstill.models.preprocess import Preprocessor

CODE = """
from torch import nn

def make(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, 2))
"""


def saved(folder: Path, model: nn.Module, **changes: Any) -> None:
    given: dict[str, Any] = {
        "preprocess": Preprocessor(torch.tensor([0.5]), torch.tensor([0.25])),
        "task": "classification",
        "classes": ["cat", "dog"],
        "shape": (3, 2, 2),
        "dtype": torch.uint8,
        "recipe_hash": "abc",
        **changes,
    }
    save_student(model, folder, **given)


def same(first: nn.Module, folder: Path, **options: Any) -> None:
    pixels = torch.randint(0, 256, (3, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    student = load_student(folder, **options)
    assert not any(module.training for module in student.modules())
    assert student.classes == ("cat", "dog")
    assert student.task == "classification"
    with torch.no_grad():
        expected = first.eval()((pixels / 255 - 0.5) / 0.25)
        torch.testing.assert_close(student(pixels), expected)


def test_zoo_student(tmp_path: Path) -> None:
    model = zoo.cnn(2, width=4)
    for buffer in model.buffers():
        buffer.add_(1)
    saved(tmp_path / "export", model, model_name="cnn", args={"num_classes": 2, "width": 4})
    same(model, tmp_path / "export")
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["student.json", "student.safetensors"]
    config = json.loads((tmp_path / "export" / "student.json").read_text())
    assert config["input"] == {"dtype": "uint8", "shape": [3, 2, 2]}
    assert config["preprocess"] == {"mean": [0.5], "std": [0.25], "size": None}
    with safe_open(tmp_path / "export" / "student.safetensors", "numpy") as file:
        assert file.metadata()["recipe_hash"] == "abc"


def test_a_students_own_file_is_found_relative_to_the_folder_after_a_move(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "code").mkdir(parents=True)
    (project / "code" / "nets.py").write_text(CODE)
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
    folder = project / "runs" / "a" / "export"
    saved(folder, model, model_name="code/nets.py:make", args={"width": 5}, base=project)
    config = json.loads((folder / "student.json").read_text())
    assert config["model"] == "../../../code/nets.py:make"
    same(model, folder)
    shutil.move(project, tmp_path / "moved")
    same(model, tmp_path / "moved" / "runs" / "a" / "export")


def test_a_python_object_has_to_be_passed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    saved(tmp_path, model)
    with pytest.raises(UsageError, match=r"\(Sequential\) was given as a Python object.*model=MyModel"):
        load_student(tmp_path)
    same(model, tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    same(model, tmp_path, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    with pytest.raises(UsageError, match="does not fit"):
        load_student(tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no student\.json"):
        load_student(tmp_path)
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        saved(tmp_path, nn.Linear(1, 1), args={"activation": nn.ReLU()})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "student.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="format 99"):
        load_student(tmp_path)


def test_values_keep_their_column(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs[:, 0]

    saved(tmp_path, Flat(), preprocess=Preprocessor(), task="regression", classes=(), shape=(2,))
    found = load_student(tmp_path, model=Flat())(torch.from_numpy(np.ones((4, 2))))
    assert found.shape == (4, 1)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("file", ["student.safetensors", "student.json"])
def test_files_that_are_not_what_was_exported_are_refused(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "export"
    saved(folder, zoo.cnn(2, width=4), model_name="cnn", args={"num_classes": 2, "width": 4})
    if file == "student.json":
        config = json.loads((folder / file).read_text())
        config["preprocess"]["std"][0] *= 1.5
        (folder / file).write_text(json.dumps(config))
    else:
        content = bytearray((folder / file).read_bytes())
        content[-401] ^= 0x80  # the sign of one weight
        (folder / file).write_bytes(bytes(content))
    with pytest.raises(PotstillError, match=rf"{file} is not what was exported"):
        load_student(folder)


def test_exports_of_before_have_no_checksums_and_load(tmp_path: Path) -> None:
    model = zoo.cnn(2, width=4)
    saved(tmp_path / "export", model, model_name="cnn", args={"num_classes": 2, "width": 4})
    config = json.loads((tmp_path / "export/student.json").read_text())
    del config["checksum"], config["sha256"]
    (tmp_path / "export/student.json").write_text(json.dumps(config))
    same(model, tmp_path / "export")
