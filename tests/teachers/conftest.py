"""What tests of teachers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from potstill.core.signals import Batch, Signals
from potstill.teachers import Reads, Source


@pytest.fixture
def asked() -> Callable[..., Signals]:
    """Return what asks a model about some inputs."""

    def ask(model: Source, inputs: Tensor, outputs: Iterable[str] = ()) -> Signals:
        ids = torch.arange(len(inputs))
        with model.teaching(Reads(outputs=outputs)) as teacher:
            return teacher(Batch(ids, torch.zeros_like(ids), torch.as_tensor(inputs)))

    return ask
