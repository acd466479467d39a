"""The microscope against closed forms and counting statistics."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.physics.ctf import evaluate_ctf
from tomoloc.physics.filters import band_pass
from tomoloc.simulate.microscope import (
    dose_symmetric_order,
    expose,
    interaction_parameter,
    reconstruct,
)
from tomoloc.types import CTF, TiltSeries, Volume


def make_ctf(n, defocus=3.0, amplitude_contrast=0.07):
    return CTF(
        defocus_u_um=np.full(n, defocus),
        defocus_v_um=np.full(n, defocus),
        defocus_angle=np.zeros(n),
        amplitude_contrast=amplitude_contrast,
    )


def ball(shape=(40, 64, 72), radius=7.0, value=3.0):
    grid = Volume(data=np.zeros(shape, np.float32), voxel_spacing=10.0)
    z, y, x = np.indices(shape)
    distance = np.linalg.norm(grid.to_position(np.stack([z, y, x], -1)) - grid.center, axis=-1)
    return grid.with_data((value * (distance < 10 * radius)).astype(np.float32))


@pytest.mark.parametrize(
    ("voltage", "expected"), [(100, 9.244e-4), (200, 7.288e-4), (300, 6.526e-4)]
)
def test_interaction_parameter(voltage, expected):
    assert interaction_parameter(voltage) == pytest.approx(expected, rel=1e-3)


def test_dose_symmetric_order():
    angles = np.arange(-9.0, 10, 3)
    taken = angles[dose_symmetric_order(angles)]
    assert taken.tolist() == [0, 3, -3, -6, 6, 9, -9]
    lopsided = np.arange(-4.0, 12, 2)
    assert sorted(lopsided[dose_symmetric_order(lopsided)]) == lopsided.tolist()


def test_a_grating_has_the_contrast_of_the_weak_phase_formula(rng):
    shape, period = (8, 48, 64), 8
    wave = np.cos(2 * np.pi * np.arange(64) / period).astype(np.float32)
    potential = Volume(data=np.broadcast_to(wave, shape).copy(), voxel_spacing=10.0)
    ctf = make_ctf(1)
    series = expose(potential, tilt_angles=np.zeros(1), dose_e_per_a2=np.inf, ctf=ctf, rng=rng)
    thickness = 8 * 10.0
    transfer = evaluate_ctf(ctf, np.array([1 / 80]), np.array([0.0]))[0, 0]
    expected = 1 + 2 * interaction_parameter(300) * thickness * transfer * wave
    np.testing.assert_allclose(series.images[0], np.tile(expected, (48, 1)), atol=4e-4)
    assert series.dose_e_per_a2 is None


def test_counts_are_poisson_numbers_of_the_dose(rng):
    empty = Volume(data=np.zeros((8, 96, 100), np.float32), voxel_spacing=10.0)
    angles = np.array([-60.0, 0, 60])
    series = expose(
        empty, tilt_angles=angles, dose_e_per_a2=9.0, ctf=make_ctf(3), rng=rng, thickness=1500.0
    )
    # 3 e/Å² on 100 Å², less what ice of 1500 Å (3000 Å at 60 degrees) takes away.
    expected = 300 * np.exp(-np.array([1, 0.5, 1]))
    np.testing.assert_allclose(series.images.mean(axis=(1, 2)), expected, rtol=0.01)
    np.testing.assert_allclose(series.images.var(axis=(1, 2)), expected, rtol=0.05)
    power = np.abs(np.fft.fft2(series.images[1] - series.images[1].mean())) ** 2
    low, high = power[:24, :25].mean(), power[36:60, 38:62].mean()
    assert low == pytest.approx(high, rel=0.15)  # white


def test_dose_accumulates_from_the_lowest_tilt(rng):
    empty = Volume(data=np.zeros((8, 16, 20), np.float32), voxel_spacing=10.0)
    angles = np.array([-6.0, -3, 0, 3, 6])
    series = expose(empty, tilt_angles=angles, dose_e_per_a2=100, ctf=make_ctf(5), rng=rng)
    np.testing.assert_allclose(series.dose_e_per_a2, [80, 60, 20, 40, 100])
    np.testing.assert_array_equal(series.tilt_angles, angles)
    assert series.pixel_spacing == 10.0


def test_protein_is_dark_and_damage_takes_detail(rng):
    potential = ball()
    angles = np.arange(-60.0, 61, 4)
    ctf = make_ctf(len(angles))
    series = expose(potential, tilt_angles=angles, dose_e_per_a2=1e6, ctf=ctf, rng=rng)
    clean = expose(potential, tilt_angles=angles, dose_e_per_a2=np.inf, ctf=ctf, rng=rng)
    tomogram = reconstruct(clean, shape=potential.shape, name="ball")
    inside = potential.data > 0
    assert tomogram.name == "ball"
    assert tomogram.data.dtype == np.float32
    assert tomogram.data.mean() == pytest.approx(0, abs=1e-4)
    assert tomogram.data.std() == pytest.approx(1, rel=1e-4)
    assert tomogram.data[inside].mean() < -1
    first, last = np.argmin(series.dose_e_per_a2), np.argmax(series.dose_e_per_a2)
    contrast = (series.images / series.images.mean(axis=(1, 2), keepdims=True)).std(axis=(1, 2))
    assert contrast[last] < 0.5 * contrast[first]


def test_signal_to_noise_grows_with_dose(rng):
    texture = band_pass(
        rng.normal(size=(40, 64, 72)), voxel_spacing=10.0, low_pass=50, high_pass=150
    )
    potential = Volume(data=10 * texture, voxel_spacing=10.0)
    angles = np.arange(-54.0, 55, 6)
    ctf = make_ctf(len(angles))
    scores = []
    for dose in (5, 15, 45):
        halves = [
            reconstruct(
                expose(
                    potential,
                    tilt_angles=angles,
                    dose_e_per_a2=dose,
                    ctf=ctf,
                    rng=np.random.default_rng(seed),
                ),
                shape=potential.shape,
            ).data.ravel()
            for seed in (1, 2)
        ]
        correlation = np.corrcoef(*halves)[0, 1]
        scores.append(correlation / (1 - correlation))
    # Counting noise falls as the dose; damage makes the gain a little smaller.
    slope = np.polyfit(np.log([5, 15, 45]), np.log(scores), 1)[0]
    assert 0.85 < slope < 1


def test_reconstruction_needs_images():
    with pytest.raises(ValueError, match="needs images and their pixel_spacing"):
        reconstruct(TiltSeries(tilt_angles=[0.0]), shape=(8, 9, 10))
