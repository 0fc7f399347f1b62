"""Published numbers on real data: the teacher that everything on CIFAR-10 starts from."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from potstill.core.signals import Batch
from potstill.data import Stream, load
from potstill.models import Preprocessor, build, load_weights
from potstill.pipeline.build import build_job
from potstill.recipe.yaml import read
from potstill.teachers import LiveTeacher

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.data
def test_the_published_resnet56_has_its_published_accuracy(data_pack: Path) -> None:
    # 6.61 % error is what its author states for this file; the complete test set, our loader, float32.
    model = build("resnet56", {"num_classes": 10})
    load_weights(model, data_pack / "checkpoints" / "resnet56-4bfd9763.th", allow_pickle=True)
    packs = runpy.run_path(str(BENCHMARKS / "packs.py"))
    data = load(packs["cifar10"]())
    assert len(data.test) == 10_000
    assert len(data.train) + len(data.validation) == 20_000
    preprocess = Preprocessor([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    right = 0
    with LiveTeacher(model, preprocess=preprocess) as teacher:
        for batch in Stream(data.test).recording(250):
            right += _right(teacher, batch)
    assert right == 9339


def _right(teacher: LiveTeacher, batch: Batch) -> int:
    assert batch.targets is not None
    return int((teacher(batch)["logits"].argmax(dim=1) == batch.targets).sum())


@pytest.mark.data
@pytest.mark.parametrize("recipe", ["cifar10/resnet20.yaml", "cifar10/resnet8.yaml", "fashion_mnist/cnn.yaml"])
def test_the_benchmark_recipes_fit_their_data(recipe: str, data_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DATA", str(data_pack))
    job = build_job(read(BENCHMARKS / recipe), base=(BENCHMARKS / recipe).parent)
    assert job.data.num_outputs == 10
    assert len(job.data.test) == 10_000
