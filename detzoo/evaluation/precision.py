"""Precision over recall of detections in the order of their scores; each benchmark averages it in its own way."""

import numpy as np


def best_precision(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes precision after each detection of a class.

    Args:
        hits: [n] bool, the best detection first.

    Returns:
        [n] int, number of objects found so far; [n] float64 in 0..1, `precision_envelope` of the precision.
    """
    found = np.cumsum(hits)
    return found, precision_envelope(found / np.arange(1, len(hits) + 1))


def precision_envelope(precision: np.ndarray) -> np.ndarray:
    """Replaces each precision by the best one at its recall or a higher one.

    Args:
        precision: [n, ...] in the order of recall.
    """
    return np.maximum.accumulate(precision[::-1], axis=0)[::-1]
