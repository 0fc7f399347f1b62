"""Programs that run inside another interpreter: they import the standard library, NumPy and what they load, no more."""
