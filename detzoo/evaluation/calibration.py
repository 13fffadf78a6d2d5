"""Whether scores are what they look like: precision over confidence (arXiv:1706.04599; of detections, 2004.13546).

    `statistics.match_images` -> `reliability`: detections in bins of their scores -> `expected_calibration_error`

A detector is calibrated if, of its detections with a score of 0.7, seven in ten are right. Right means: it found an object of its
class at IoU 0.5, as for AP50. Detections in crowds do not count, and those with scores below FLOOR do not either: how many of
them there are is a matter of the detector's own score threshold.
"""

from typing import NamedTuple

import numpy as np

from detzoo.evaluation.statistics import THRESHOLDS, Matches

MIN_IOU = 0.5
BINS = 10
FLOOR = 0.05


class Reliability(NamedTuple):
    """The detections in bins of equal width: bin i has the scores above i / BINS, up to (i + 1) / BINS.

    counts: [BINS] int64, number of detections.
    hits: [BINS] int64, number of those that are right.
    scores: [BINS] float64, sum of their scores.
    """

    counts: np.ndarray
    hits: np.ndarray
    scores: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """Mean score of each bin, NaN where it is empty: [BINS]."""
        return _ratio(self.scores, self.counts)

    @property
    def precision(self) -> np.ndarray:
        """Share of right detections in each bin, NaN where it is empty: [BINS]."""
        return _ratio(self.hits, self.counts)


def reliability(matches: Matches) -> Reliability:
    """Puts detections into bins of their scores.

    Args:
      matches: see `statistics.match_images`.
    """
    at = THRESHOLDS.index(MIN_IOU)
    scores = np.concatenate([found.scores for found in matches.classes])
    hits, ignored = (np.concatenate(rows) for rows in zip(*((f.hits[at], f.ignored[at]) for f in matches.classes)))
    counted = ~ignored & (scores >= FLOOR)
    scores, hits = scores[counted], hits[counted]
    bins = np.digitize(scores, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    return Reliability(
        np.bincount(bins, minlength=BINS),
        np.bincount(bins[hits], minlength=BINS),
        np.bincount(bins, weights=scores, minlength=BINS),
    )


def pooled(seeds: list[Reliability]) -> Reliability:
    """Adds up the detections of several trainings."""
    return Reliability(*(np.sum(field, axis=0) for field in zip(*seeds, strict=True)))


def expected_calibration_error(found: Reliability) -> float | None:
    """Averages |precision - confidence| over the detections, in 0..1; None without detections."""
    total = found.counts.sum()
    return float(np.abs(found.hits - found.scores).sum() / total) if total else None


def _ratio(numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(numbers, counts, out=np.full(len(counts), np.nan), where=counts > 0)
