"""``python -m potstill.cli``: the command without its script, as ``torchrun -m`` needs it."""

from __future__ import annotations

from potstill.cli import main

main()
