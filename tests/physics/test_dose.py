"""Radiation damage."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.physics.dose import critical_dose, damage, dose_weights


def test_critical_dose_is_the_published_curve():
    k = np.array([0.05, 0.1, 1 / 3])
    np.testing.assert_allclose(critical_dose(k), 0.24499 * k**-1.6649 + 2.8141)
    assert critical_dose(0.0) == np.inf
    # 0.8 is what Grant & Grigorieff use at 200 kV
    assert critical_dose(0.1, voltage_kv=200) / critical_dose(0.1) == pytest.approx(0.8, abs=0.005)


def test_weights_fall_to_one_over_root_e_at_the_critical_dose():
    k = np.array([0.02, 0.1, 0.25])
    for frequency in k:
        at = dose_weights(frequency, float(critical_dose(frequency)))
        assert at == pytest.approx(np.exp(-0.5))
    assert (dose_weights(k, 0.0) == 1).all()
    assert dose_weights(0.0, 500.0) == 1


def test_weights_have_one_axis_for_the_images():
    weights = dose_weights(np.full((4, 5), 0.1), np.array([0.0, 10.0, 20.0]))
    assert weights.shape == (3, 4, 5)
    np.testing.assert_allclose(weights[1] ** 2, weights[2])
    assert dose_weights(np.full((4, 5), 0.1), 3.0).shape == (4, 5)


def test_damage_is_the_mean_over_the_exposure():
    k = np.array([0.0, 0.05, 0.2])
    steps = np.linspace(30, 36, 20001)
    mean = np.trapezoid(dose_weights(k, steps), steps, axis=0) / 6
    np.testing.assert_allclose(damage(k, before=30, after=36), mean, rtol=1e-8)
    np.testing.assert_allclose(damage(k, before=7, after=7), dose_weights(k, 7.0))
    assert damage(k, before=[0, 3], after=[3, 6]).shape == (2, 3)


def test_wrong_exposures_are_told():
    with pytest.raises(ValueError, match="must not be negative"):
        dose_weights(0.1, -1.0)
    with pytest.raises(ValueError, match="end before it starts"):
        damage(0.1, before=3, after=2)
