"""``python -m potstill``: the command without its script."""

from __future__ import annotations

from potstill.cli import main

main()
