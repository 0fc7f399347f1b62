"""Checkpoint files: complete or not there, refused when they belong to something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potstill.core.errors import TrainingError, UsageError
from potstill.training import checkpoint
from potstill.training.checkpoint import Checkpoint, Counters

IDENTITY = {"seed": 1, "shapes": (1, 2)}


def example(step: int = 3, best_epoch: int = 1) -> Checkpoint:
    layout = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    return Checkpoint(
        Counters(step=step, best_epoch=best_epoch, best_metric=0.5),
        {"a/w": layout, "b": torch.tensor(2.5, dtype=torch.float64)},
        {"w": torch.full((2,), float(best_epoch))},
    )


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(), IDENTITY)
    found = checkpoint.load(tmp_path, IDENTITY)
    assert found is not None
    assert found.counters == example().counters
    assert set(found.tensors) == {"a/w", "b"}
    assert torch.equal(found.tensors["a/w"], torch.arange(24.0).reshape(1, 2, 3, 4))
    assert found.tensors["b"].dtype == torch.float64
    assert torch.equal(found.best["w"], torch.ones(2))


def test_a_new_checkpoint_replaces_the_old_and_keeps_an_unchanged_best(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(3), IDENTITY)
    best = tmp_path / "best-000001.safetensors"
    inode = best.stat().st_ino
    checkpoint.save(tmp_path, example(6), IDENTITY)
    assert best.stat().st_ino == inode
    checkpoint.save(tmp_path, example(9, best_epoch=2), IDENTITY)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best-000002.safetensors", "checkpoint.json", "state-000000009.safetensors"]


def test_a_best_file_that_no_checkpoint_names_is_written_again(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(3), IDENTITY)
    (tmp_path / "best-000002.safetensors").write_bytes(b"left by a process that died here")
    checkpoint.save(tmp_path, example(6, best_epoch=2), IDENTITY)
    found = checkpoint.load(tmp_path, IDENTITY)
    assert found is not None
    assert torch.equal(found.best["w"], torch.full((2,), 2.0))


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "absent", IDENTITY) is None


def test_another_training_is_refused_with_what_differs(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(), IDENTITY)
    with pytest.raises(UsageError, match="seed: 1 there, 2 now"):
        checkpoint.load(tmp_path, {**IDENTITY, "seed": 2})


@pytest.mark.parametrize("name", ["state-000000003.safetensors", "best-000001.safetensors", "checkpoint.json"])
def test_damage_is_an_error_that_names_the_folder(tmp_path: Path, name: str) -> None:
    checkpoint.save(tmp_path, example(), IDENTITY)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(TrainingError, match="cannot be read"):
        checkpoint.load(tmp_path, IDENTITY)


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    shared = torch.ones(3)
    checkpoint.save_tensors(tmp_path / "x.safetensors", {"a": shared, "b": shared})
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "x.safetensors")) == {"a", "b"}
