"""The decoder of the guide's page, which knows nothing of potstill: what all codecs are compared with."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "codecs.md"


@pytest.fixture(scope="session")
def read_record() -> Callable[..., dict[int, float]]:
    """Return a function from (codec, record, classes) to the sum of probabilities of each id."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    assert "potstill" not in blocks[0]
    names: dict[str, Any] = {}
    exec(blocks[0], names)

    def read(codec: Any, record: np.ndarray, classes: int) -> dict[int, float]:
        settings = codec.to_json()
        ids, values = names[settings.pop("codec")](record.tobytes(), classes, **settings)
        assert ids == sorted(ids)
        found = dict.fromkeys(ids, 0.0)
        for name, value in zip(ids, values, strict=True):
            found[name] += value
        return found

    return read
