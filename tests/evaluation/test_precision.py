"""Precision over recall, by hand."""

import numpy as np

from detzoo.evaluation.precision import best_precision, precision_envelope


def test_best_precision_by_hand():
    found, best = best_precision(np.array([True, False, False, True, True, False]))
    assert found.tolist() == [1, 1, 1, 2, 3, 3]
    np.testing.assert_allclose(best, [1, 3 / 5, 3 / 5, 3 / 5, 3 / 5, 3 / 6])  # of 1, 1/2, 1/3, 2/4, 3/5, 3/6
    assert [part.tolist() for part in best_precision(np.zeros(0, bool))] == [[], []]


def test_precision_envelope_takes_each_column_by_itself():
    precision = np.array([[0.5, 0.2], [0.1, 0.4], [0.3, 0.1]])
    assert precision_envelope(precision).tolist() == [[0.5, 0.4], [0.3, 0.4], [0.3, 0.1]]
