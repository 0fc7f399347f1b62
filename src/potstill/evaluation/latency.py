"""How long one call takes, with a fixed number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.evaluation.predict import evaluating

_AT_LEAST = 20


def latency(
    model: Callable[[Any], Any],
    example: Tensor | np.ndarray[Any, Any],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: int = 1,
    warmup: int = 5,
    seconds: float = 0.5,
    most: int = 1000,
) -> dict[str, dict[str, float]]:
    """Time a model's calls at some batch sizes.

    Use it for a module (evaluation mode and inference mode are seen to) or any function of a batch, such as an exported
    file's session; such a session is pinned to its threads when it is opened. Compare numbers of the same process only:
    machines are noisy.

    Args:
        model: called with a batch.
        example: (b, ...) real inputs; rows are repeated to fill a batch. On the device that the model is on.
        batch_sizes: how many samples in a call.
        threads: torch's threads while measuring; set back afterwards.
        warmup: calls that are not counted, at each batch size.
        seconds: how long to measure each batch size, after at least 20 calls.
        most: calls after which to stop in any case.

    Returns:
        Batch size (as text) -> ``p50`` and ``p95``, milliseconds a call, and ``per_second``, samples a second at
        the median.

    Raises:
        UsageError: no example, or a batch size or number of threads below 1.

    """
    if len(example) == 0:
        raise UsageError("Latency needs at least one example input.")
    if threads < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"Batch sizes and threads must be 1 or more; got {list(batch_sizes)} and {threads}.")
    modules = [model] if isinstance(model, nn.Module) else []
    result = {}
    with pinned_threads(threads), evaluating(*modules), torch.inference_mode():
        for size in batch_sizes:
            batch = example[np.resize(np.arange(len(example)), size)]
            times = _times(model, batch, warmup=warmup, seconds=seconds, most=most)
            p50, p95 = np.quantile(times, [0.5, 0.95])
            result[str(size)] = {
                "p50": float(1000 * p50),
                "p95": float(1000 * p95),
                "per_second": float(size / p50),
            }
    return result


def _times(model: Callable[[Any], Any], batch: Any, *, warmup: int, seconds: float, most: int) -> list[float]:
    cuda = isinstance(batch, Tensor) and batch.is_cuda
    for _ in range(warmup):
        model(batch)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < most and (len(times) < _AT_LEAST or time.perf_counter() - began < seconds):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(batch)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Give torch a number of threads, and set its former number back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
