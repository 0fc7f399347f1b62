"""Small recipes that run in seconds, and one finished run shared by the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from potstill.pipeline import Run, run
from potstill.recipe.yaml import loads

TINY = """
task: classification
seeds: 2
data:
  train: digits
  augment: {crop: 1}
teacher:
  model: cnn
  args: {width: 8}
  train: {epochs: 3, batch_size: 64, optimizer: sgd, learning_rate: 0.1, precision: float32}
student:
  model: cnn
  args: {width: 4}
training: {epochs: 3, batch_size: 64, optimizer: sgd, learning_rate: 0.1, precision: float32, checkpoint_every: 7}
store: {views: 2}
budget: {megabytes: 1, milliseconds: 100}
export: {max_accuracy_drop: 0.5, min_agreement: 0.5}
"""


@pytest.fixture(scope="module", autouse=True)
def _reports_are_quick(leave_charts_out: Callable[[pytest.MonkeyPatch], None]) -> Iterator[None]:
    """No test here looks at a chart."""
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_out(patch)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run of the tiny recipe."""
    return run(loads(TINY), out=tmp_path_factory.mktemp("runs") / "tiny", command="potstill run tiny.yaml")
