"""Running models over a split, and timing them."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.data.samples import Rows, Samples, make_samples
from potstill.evaluation import latency, predict
from potstill.models.preprocess import Preprocessor


def split(n: int = 11) -> Samples:
    generator = np.random.default_rng(0)
    pixels = torch.from_numpy(generator.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8))
    return make_samples(np.arange(n), generator.integers(0, 2, n), Rows(pixels))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2))


def test_predict_is_the_forward_pass_in_evaluation_mode_in_row_order() -> None:
    samples, model = split(), network()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    preprocess = Preprocessor(torch.tensor([0.5]), torch.tensor([0.25]))
    found = predict(model, samples, preprocess=preprocess, batch_size=4)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.dtype == np.float32
    assert found.shape == (11, 2)
    model.eval()
    with torch.no_grad():
        pixels = samples.fetch(np.arange(11)).double() / 255
        expected = model.double()((pixels - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_predict_accepts_values_without_columns_and_refuses_other_shapes() -> None:
    class First(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(1)[:, 0]

    assert predict(First(), split(), preprocess=Preprocessor()).shape == (11, 1)
    with pytest.raises(UsageError, match=r"11 samples with outputs of shape \(11, 3, 4, 4\)"):
        predict(nn.Identity(), split(), preprocess=Preprocessor())
    with pytest.raises(UsageError, match="empty"):
        predict(First(), split().take(np.arange(0)), preprocess=Preprocessor())


def test_bfloat16_runs_and_comes_back_as_float32() -> None:
    model = network()
    exact = predict(model, split(), preprocess=Preprocessor())
    half = predict(model, split(), preprocess=Preprocessor(), precision="bfloat16")
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.05


def test_latency_counts_calls_batches_and_threads() -> None:
    threads, sizes = torch.get_num_threads(), []

    def model(batch: np.ndarray) -> None:
        sizes.append((len(batch), torch.get_num_threads()))
        time.sleep(0.002)

    found = latency(model, np.zeros((3, 5)), batch_sizes=(1, 8), threads=2, warmup=2, seconds=0.01, most=25)
    assert torch.get_num_threads() == threads
    assert set(found) == {"1", "8"}
    assert {size for size, _ in sizes} == {1, 8}
    assert {number for _, number in sizes} == {2}
    assert len([size for size, _ in sizes if size == 1]) in range(22, 28)
    for size, row in found.items():
        assert 2.0 <= row["p50"] <= row["p95"]
        assert row["per_second"] == pytest.approx(int(size) / row["p50"] * 1000)


def test_latency_of_a_module_leaves_it_as_it_was() -> None:
    model = network()
    found = latency(model, torch.zeros(2, 3, 4, 4), batch_sizes=(4,), seconds=0.01)
    assert model.training
    assert found["4"]["p50"] > 0


def test_threads_come_back_after_an_error() -> None:
    threads = torch.get_num_threads()

    def model(batch: object) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        latency(model, np.zeros((1, 2)), threads=threads + 1)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("example", "options"),
    [(np.zeros((0, 2)), {}), (np.zeros((1, 2)), {"threads": 0}), (np.zeros((1, 2)), {"batch_sizes": (0,)})],
)
def test_latency_refuses_nonsense(example: np.ndarray, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        latency(lambda batch: batch, example, **options)  # type: ignore[arg-type]
