"""potstill: from a trained model, some data and a limit to a small model that is proven and exported."""

from __future__ import annotations
