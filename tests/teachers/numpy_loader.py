"""A model for the worker that needs NumPy only, and fails in every way a model can."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import import_module
from typing import Any

import numpy as np


def load(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    print("noise while loading", flush=True)
    if "sleep" in options:
        time.sleep(options["sleep"])
    if "module" in options:
        import_module(options["module"])
    if "broken" in options:
        raise ValueError(options["broken"])
    if "die" in options:
        os.write(2, b"a last word\n")
        os._exit(options["die"])

    def ask(inputs: np.ndarray) -> dict[str, np.ndarray]:
        print("noise on stdout")
        subprocess.run(["/bin/echo", "noise of a child"], check=True)
        flag = float(inputs.reshape(-1)[0]) if inputs.size else 0.0
        if flag == -1:
            raise ValueError("minus one is too little")
        if flag == -2:
            os.write(2, b"out of everything\n")
            os._exit(7)
        if flag == -3:
            time.sleep(60)
        if flag == -4:
            os.close(1)
            os.kill(os.getpid(), 9)
        flat = inputs.reshape(len(inputs), int(np.prod(inputs.shape[1:])))
        return {
            "double": inputs * 2,
            "sum": flat.sum(axis=1),
            "rows": np.arange(len(inputs)),
            "wide": np.repeat(flat[:, :1], options.get("wide", 1), axis=1),
        }

    return {"process": os.getpid(), "python": sys.version_info[:2], "stdin": sys.stdin.read()}, ask
