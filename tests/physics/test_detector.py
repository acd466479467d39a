"""Detector curves: what theory asks of them, and what comes out of counting."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.physics.detector import DETECTORS, find_detector

PIXEL = 1.5
NYQUIST = 1 / (2 * PIXEL)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_curves_fall_from_zero_frequency(name):
    detector = find_detector(name)
    frequency = np.linspace(0, NYQUIST, 101)
    mtf = detector.evaluate_mtf(frequency, pixel=PIXEL)
    dqe = detector.evaluate_dqe(frequency, pixel=PIXEL)
    assert mtf[0] == 1
    assert dqe[0] == detector.efficiency
    for curve in (mtf, dqe):
        assert (np.diff(curve) <= 1e-12).all()
        assert 0 < curve[-1] <= curve[0] <= 1
    # DQE = DQE(0) MTF² / (noise power), the definition
    noise = detector.noise_transfer(frequency, pixel=PIXEL) ** 2
    np.testing.assert_allclose(dqe, detector.efficiency * mtf**2 / noise)
    np.testing.assert_allclose(
        detector.signal_transfer(frequency, pixel=PIXEL)
        * detector.noise_transfer(frequency, pixel=PIXEL),
        mtf,
    )


def test_ideal_detector_passes_all():
    frequency = np.linspace(0, 2 * NYQUIST, 9)
    ideal = find_detector("ideal")
    assert (ideal.evaluate_mtf(frequency, pixel=PIXEL) == 1).all()
    assert (ideal.noise_transfer(frequency, pixel=PIXEL) == 1).all()


def test_published_points():
    # The makers' curves at half of Nyquist and Nyquist.
    k3 = find_detector("K3")
    np.testing.assert_allclose(
        k3.evaluate_dqe([NYQUIST / 2, NYQUIST, 9.0], pixel=PIXEL), [0.71, 0.40, 0.40]
    )
    np.testing.assert_allclose(k3.evaluate_mtf([NYQUIST / 2], pixel=PIXEL), [0.89])
    # the same physical frequency is a smaller part of Nyquist for finer pixels
    np.testing.assert_allclose(k3.evaluate_mtf([NYQUIST / 2], pixel=2 * PIXEL), [0.64])


def test_unknown_detector_and_pixel():
    with pytest.raises(ValueError, match="one of ideal, K2, K3, Falcon4; got 'film'"):
        find_detector("film")
    with pytest.raises(ValueError, match="pixel must be positive"):
        find_detector("K2").evaluate_mtf([0.1], pixel=0)
