"""A data function: scikit-learn's digits, and four properties of each, a tenth of which nobody knows."""

import numpy as np
from sklearn.datasets import load_digits

PROPERTIES = ((0, 2, 4, 6, 8), (2, 3, 5, 7), (5, 6, 7, 8, 9), (0, 6, 8, 9))  # even, prime, high, round


def samples() -> tuple[np.ndarray, np.ndarray]:
    pixels, digits = load_digits(return_X_y=True)
    labels = np.stack([np.isin(digits, members) for members in PROPERTIES], axis=1).astype(np.float32)
    labels[np.random.default_rng(0).random(labels.shape) < 0.1] = np.nan  # unknown
    labels[:, 0] = digits % 2 == 0  # this one everybody knows
    return (pixels / 16).astype(np.float32), labels
