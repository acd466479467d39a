"""Which average is which label's, and how well candidates fit it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from tomoloc.pickers.naming import label_best, measure_lead, name_averages


def make_fitted(gain, *, size=None):
    gain = np.asarray(gain, dtype=float)
    size = np.full(gain.shape[1], 20 if size is None else size)
    return SimpleNamespace(gain=gain, size=size, usual=np.full(gain.shape[1], 100.0))


EYE = np.eye(4)


def name(fitted, examples, best, chance):
    return name_averages(
        fitted,
        vectors=EYE[: len(fitted.gain)],
        examples=[np.atleast_2d(one) for one in examples],
        best=np.array(best),
        chance=np.array(chance),
    ).tolist()


def test_an_average_is_its_examples():
    fitted = make_fitted([[90, 10], [20, 80], [0, 70], [85, 0]])
    assert name(fitted, [EYE[0], EYE[1]], [0, 0, 0, 0], [0.1] * 4) == [0, 1]
    assert name(fitted, [EYE[1], EYE[0]], [0, 0, 0, 0], [0.1] * 4) == [1, 0]


def test_votes_outweigh_one_odd_example():
    fitted = make_fitted([[90, 60], [20, 80], [0, 70], [10, 90]])
    assert name(fitted, [EYE[0]], [0, 0, 0, 0], [0.9] * 4) == [1]
    assert name(fitted, [EYE[0]], [0, 0, 0, 0], [0.4] * 4) == [0]


def test_each_average_has_one_label_and_some_labels_none():
    fitted = make_fitted([[90, -5], [80, -9], [0, 70], [0, 60]])
    assert name(fitted, [EYE[0], EYE[1]], [0, 1, 0, 1], [0.1] * 4) == [0, -1]
    # Of an example in another tomogram there is no candidate, and nothing votes for its label.
    stranger = np.full(4, 0.5)
    assert name(fitted, [stranger, EYE[2]], [1, 1, 1, 1], [0.1] * 4) == [-1, 1]
    assert name(make_fitted(np.zeros((4, 0))), [EYE[0]], [0] * 4, [0.9] * 4) == [-1]


def test_what_was_not_fitted_has_no_vote():
    gain = [[-np.inf, -np.inf], [-np.inf, -np.inf], [5, 70], [-np.inf, -np.inf]]
    assert name(make_fitted(gain), [np.full(4, 0.5)], [0] * 4, [0.9] * 4) == [1]


def test_the_label_of_the_best_average():
    fitted = make_fitted([[50, 20], [10, 80], [-np.inf, 90], [-np.inf, -np.inf]])
    assert label_best(fitted, [0, 1], [1, 0, 0, 0]).tolist() == [0, 1, 1, 0]
    assert label_best(fitted, [-1, 0], [1, 0, 0, 1]).tolist() == [1, 0, 0, 1]
    assert label_best(make_fitted(np.zeros((2, 0))), [-1], [0, 0]).tolist() == [0, 0]


def test_lead_over_the_next_average():
    fitted = make_fitted([[50, 20], [10, 25], [-np.inf, 90], [-np.inf, -np.inf]])
    lead, known = measure_lead(fitted, [0, 1], [0, 0, 1, 1])
    np.testing.assert_allclose(lead, [1, -0.5, 2, 0])  # no more than 2 counts
    assert known.tolist() == [True, True, True, False]
    few = make_fitted(fitted.gain, size=[3, 12])
    np.testing.assert_allclose(measure_lead(few, [0, 1], [0, 0, 1, 1])[0], [0.25, -0.125, 2, 0])
    lead, known = measure_lead(fitted, [0, -1], [0, 1, 1, 0])
    np.testing.assert_allclose(lead, [1, 0, 0, 0])
    assert known.tolist() == [True, False, False, False]
    lead, known = measure_lead(make_fitted(np.zeros((2, 0))), [-1], [0, 0])
    assert not known.any()
    assert not lead.any()


def test_one_average_leads_over_nothing():
    lead, known = measure_lead(make_fitted([[5.0], [-70.0]]), [0], [0, 0])
    np.testing.assert_allclose(lead, [2, 2])
    assert known.all()
