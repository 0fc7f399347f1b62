"""Models: building and loading them, reading their hidden layers, measuring them, and a small zoo."""

from __future__ import annotations

from potstill.models import zoo
from potstill.models.find import find_model
from potstill.models.load import build, load_weights, output_tensor, reinitialise, save_weights
from potstill.models.measure import bytes_of_weights, flops, num_parameters
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import Tapped, Where, resolve, tap

__all__ = [
    "Preprocessor",
    "Tapped",
    "Where",
    "build",
    "bytes_of_weights",
    "find_model",
    "flops",
    "load_weights",
    "num_parameters",
    "output_tensor",
    "reinitialise",
    "resolve",
    "save_weights",
    "tap",
    "zoo",
]
