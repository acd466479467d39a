"""Projection of a volume: where points fall, how much of them, and the exact adjoint."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.physics.projection import project
from tomoloc.physics.reconstruction import back_project

SHAPE = (31, 42, 50)
ANGLES = np.array([-60.0, -33.0, 0.0, 18.4, 45.0, 90.0])


def gaussian_ball(shape, center, sigma):
    """A ball at `center` (xyz from the volume's middle, voxels)."""
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    squared = (
        (z[:, None, None] - center[2]) ** 2 + (y[:, None] - center[1]) ** 2 + (x - center[0]) ** 2
    )
    return np.exp(-squared / (2 * sigma**2))


def projected_ball(image_shape, center, sigma, angle, shift=(0.0, 0.0)):
    y, x = (np.arange(n) - (n - 1) / 2 for n in image_shape)
    t = np.deg2rad(angle)
    x0 = center[0] * np.cos(t) + center[2] * np.sin(t) + shift[0]
    y0 = center[1] + shift[1]
    squared = (y[:, None] - y0) ** 2 + (x - x0) ** 2
    return np.sqrt(2 * np.pi) * sigma * np.exp(-squared / (2 * sigma**2))


@pytest.mark.parametrize("image_shape", [(42, 50), (45, 61), (41, 53)])
def test_a_ball_falls_where_the_geometry_says(image_shape):
    center, sigma = (6.3, -4.6, 3.2), 1.7
    shifts = np.stack([np.linspace(-3, 2.2, 6), np.linspace(1.7, -2, 6)], axis=1)
    images = project(
        gaussian_ball(SHAPE, center, sigma), ANGLES, image_shape=image_shape, shifts=shifts
    )
    assert images.shape == (6, *image_shape)
    assert images.dtype == np.float32
    for image, angle, shift in zip(images, ANGLES, shifts, strict=True):
        expected = projected_ball(image_shape, center, sigma, angle, shift)
        np.testing.assert_allclose(image, expected, atol=3e-3 * expected.max())


def test_no_shift_is_the_default():
    ball = gaussian_ball(SHAPE, (-5, 4, 2), 2.0)
    moved = project(ball, ANGLES, shifts=np.zeros((6, 2)))
    assert np.array_equal(project(ball, ANGLES), moved)


def test_sums_are_kept(rng):
    volume = rng.random((8, 9, 10))
    images = project(volume, ANGLES, image_shape=(9, 60))
    np.testing.assert_allclose(images.sum(axis=(1, 2)), volume.sum(), rtol=2e-2)
    np.testing.assert_allclose(images.mean(axis=2), images.mean(axis=2)[:1].repeat(6, 0), rtol=2e-2)


def test_untilted_is_the_sum_along_z(rng):
    volume = rng.standard_normal(SHAPE)
    (image,) = project(volume, [0.0])
    spectrum = np.fft.rfft(image - volume.sum(axis=0), axis=1)
    # all but the coefficients next to Nyquist, which the cut from longer lines touches
    assert np.abs(spectrum[:, :-6]).max() < 0.05 * np.abs(np.fft.rfft(volume.sum(axis=0))).max()


def test_fourier_slice_is_flat_up_to_nyquist(rng):
    volume = rng.standard_normal((9, 7, 11))
    wide = 128
    images = project(volume, ANGLES, image_shape=(7, wide))
    frequency = np.fft.rfftfreq(wide)
    x = np.arange(wide) - (wide - 1) / 2
    vz, vx = (np.arange(n) - (n - 1) / 2 for n in (9, 11))
    for image, angle in zip(images, np.deg2rad(ANGLES), strict=True):
        measured = np.exp(-2j * np.pi * np.outer(frequency, x)) @ image.T
        waves_z = np.exp(-2j * np.pi * np.outer(frequency * np.sin(angle), vz))
        waves_x = np.exp(-2j * np.pi * np.outer(frequency * np.cos(angle), vx))
        expected = np.einsum("fz,zyx,fx->fy", waves_z, volume, waves_x)
        for limit, tolerance in ((0.35, 0.01), (0.45, 0.03)):
            band = frequency <= limit
            error = np.linalg.norm(measured[band] - expected[band])
            assert error < tolerance * np.linalg.norm(expected[band])


@pytest.mark.parametrize("image_shape", [(42, 50), (45, 38), (36, 71)])
@pytest.mark.parametrize("shifted", [False, True])
def test_back_projection_without_weights_is_the_adjoint(rng, image_shape, shifted):
    shifts = rng.uniform(-4, 4, (6, 2)) if shifted else None
    volume = rng.standard_normal(SHAPE)
    images = rng.standard_normal((6, *image_shape))
    there = project(volume, ANGLES, image_shape=image_shape, shifts=shifts)
    back = back_project(images, ANGLES, shape=SHAPE, weighting="none", shifts=shifts)
    scale = np.linalg.norm(there) * np.linalg.norm(images)
    assert abs(np.vdot(there.astype(float), images) - np.vdot(volume, back)) < 1e-6 * scale


def test_a_periodic_slab_fills_tilted_images():
    slab = np.zeros((40, 12, 30))
    slab[15:25] = 1
    angles = [-60.0, 0.0, 35.0]
    images = project(slab, angles, border="periodic")
    for image, angle in zip(images, angles, strict=True):
        np.testing.assert_allclose(image, 10 / np.cos(np.deg2rad(angle)), rtol=5e-3)
    assert project(slab, angles)[0, :, 0].max() < 10


def test_rows_are_independent(rng):
    volume = rng.standard_normal(SHAPE)
    one_row = np.zeros(SHAPE)
    one_row[:, 17] = volume[:, 17]
    images, row = project(volume, ANGLES), project(one_row, ANGLES)
    np.testing.assert_allclose(row[:, 17], images[:, 17], atol=1e-4)
    assert not np.delete(row, 17, axis=1).any()


def test_memory_batches_change_nothing(rng, monkeypatch):
    volume = rng.standard_normal(SHAPE)
    images = project(volume, ANGLES)
    back = back_project(images, ANGLES, shape=SHAPE)
    monkeypatch.setattr("tomoloc.physics.projection._BATCH_BYTES", 100_000)
    assert np.array_equal(project(volume, ANGLES), images)
    np.testing.assert_allclose(back_project(images, ANGLES, shape=SHAPE), back, atol=1e-4)


def test_the_same_input_gives_the_same_bytes(rng):
    volume = rng.standard_normal(SHAPE).astype(np.float32)
    assert project(volume, ANGLES).tobytes() == project(volume, ANGLES).tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tilt_angles": []}, "at least one angle"),
        ({"shifts": np.zeros((3, 2))}, r"shape \(6, 2\)"),
        ({"border": "mirror"}, "'zero' or 'periodic'"),
        ({"border": "periodic"}, "±87"),
        ({"image_shape": (0, 4)}, "positive"),
        ({"volume_data": np.zeros((4, 4))}, r"\(z, y, x\)"),
    ],
)
def test_wrong_use_is_told(options, message):
    arguments = {"volume_data": np.zeros((4, 5, 6)), "tilt_angles": ANGLES, **options}
    volume, angles = arguments.pop("volume_data"), arguments.pop("tilt_angles")
    with pytest.raises(ValueError, match=message):
        project(volume, angles, **arguments)
