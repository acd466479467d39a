"""Depth-resolved images: every point has the transfer of its own height."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tomoloc.physics.ctf import electron_wavelength
from tomoloc.physics.imaging import depth_step, image_depths
from tomoloc.physics.projection import project

SHAPE = (24, 30, 46)
ANGLES = np.array([-60.0, -20.0, 0.0, 37.5, 50.0])


def unity(_image, heights, _fx, _fy):
    return np.ones((len(heights), 1, 1), np.float32)


def defocus_phase(slope, offset=0.6):
    """A transfer whose phase is that of height, `slope` radian a voxel at Nyquist."""

    def transfer(_image, heights, fx, fy):
        squared = 4 * (fx**2 + fy**2)
        return np.sin((offset - slope * heights[:, None, None]) * squared)

    return transfer


@pytest.mark.parametrize("border", ["zero", "periodic"])
@pytest.mark.parametrize("step", [np.inf, 9.0, 3.7])
def test_without_a_transfer_function_it_is_the_projection(rng, border, step):
    volume = gaussian_filter(rng.standard_normal(SHAPE), 0.9, mode="wrap")
    images = image_depths(volume, ANGLES, transfer=unity, step=step, border=border)
    expected = project(volume, ANGLES, border=border)
    inner = (slice(None), slice(None), slice(4, -4))
    np.testing.assert_allclose(images[inner], expected[inner], atol=0.02 * expected.std())


def test_shifts_move_the_content(rng):
    z, y, x = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    ball = np.exp(-(z**2 + y**2 + x**2) / 8)
    shifts = np.array([[1.3, -2.6], [0, 4.0], [-3, 0], [0.5, 0.5], [2, -1]])
    moved = image_depths(ball, ANGLES, transfer=unity, step=5.0, shifts=shifts)
    expected = project(ball, ANGLES, shifts=shifts)
    np.testing.assert_allclose(moved, expected, atol=5e-3 * expected.max())


def point_image(shape, place, *, angle, slope, step):
    """Image of one small ball at `place`, zyx voxels from the middle."""
    z, y, x = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    ball = np.exp(-((z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2) / (2 * 0.8**2))
    return image_depths(ball, [angle], transfer=defocus_phase(slope), step=step)[0], ball


@pytest.mark.parametrize(
    ("angle", "place"), [(0, (6, 1, -4)), (50, (2, -3, 14)), (50, (2, 3, -14))]
)
def test_a_point_has_the_transfer_of_its_height(angle, place):
    shape, slope = (20, 32, 60), 0.06
    image, ball = point_image(shape, place, angle=angle, slope=slope, step=0.3 / slope)
    height = place[0] * np.cos(np.deg2rad(angle)) - place[2] * np.sin(np.deg2rad(angle))

    def at_height(_image, _heights, fx, fy):
        return defocus_phase(slope)(0, np.array([height]), fx, fy)

    expected = image_depths(ball, [angle], transfer=at_height)[0]
    # The ball is no point: the height of its own voxels spreads by 0.8.
    np.testing.assert_allclose(image, expected, atol=0.01 * np.abs(expected).max())
    middle = image_depths(ball, [angle], transfer=defocus_phase(slope))[0]
    assert np.abs(image - middle).max() > 0.1 * np.abs(expected).max()


def test_interpolation_in_height_errs_as_stated(rng):
    volume = rng.standard_normal(SHAPE)
    slope = 0.02
    exact = image_depths(volume, [55.0], transfer=defocus_phase(slope), step=0.5)
    error = [
        np.std(image_depths(volume, [55.0], transfer=defocus_phase(slope), step=s) - exact)
        for s in (4.0, 8.0, 16.0)
    ]
    order = np.polyfit(np.log([4, 8, 16]), np.log(error), 1)[0]
    assert 1.7 < order < 2.3
    assert error[2] < 0.01 * exact.std()  # 0.32 rad at Nyquist


def test_repeated_matter_has_its_own_height():
    nz, ny, nx = 12, 16, 40
    volume = np.zeros((nz, ny, nx), np.float32)
    volume[6, 8, 30] = 1
    wide = np.tile(volume, (1, 1, 3))
    angle, slope = 60.0, 0.05
    options = {"transfer": defocus_phase(slope), "step": 2.0}
    image = image_depths(volume, [angle], border="periodic", **options)[0]
    expected = image_depths(wide, [angle], **options)[0][:, nx:-nx]
    columns = slice(6, -6)
    np.testing.assert_allclose(
        image[:, columns], expected[:, columns], atol=0.02 * np.abs(expected).max()
    )


def test_step_is_that_of_the_phase():
    step = depth_step(10.0, voltage_kv=200, phase=0.3)
    assert np.pi * electron_wavelength(200) * (1 / 20) ** 2 * step == pytest.approx(0.3)


def test_memory_batches_change_nothing(rng, monkeypatch):
    volume = rng.standard_normal(SHAPE)
    options = {"transfer": defocus_phase(0.05), "step": 6.0, "border": "periodic"}
    images = image_depths(volume, ANGLES, **options)
    assert image_depths(volume, ANGLES, **options).tobytes() == images.tobytes()
    monkeypatch.setattr("tomoloc.physics.imaging._BATCH_BYTES", 200_000)
    assert image_depths(volume, ANGLES, **options).tobytes() == images.tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step must be positive"),
        ({"border": "mirror"}, "'zero' or 'periodic'"),
        ({"border": "periodic", "tilt_angles": [88.0]}, "±87"),
        ({"volume_data": np.zeros((4, 5))}, r"\(z, y, x\)"),
        ({"shifts": np.zeros((2, 2))}, r"shape \(5, 2\)"),
    ],
)
def test_wrong_use_is_told(options, message):
    arguments = {"volume_data": np.zeros((4, 5, 6)), "tilt_angles": ANGLES, **options}
    volume, angles = arguments.pop("volume_data"), arguments.pop("tilt_angles")
    with pytest.raises(ValueError, match=message):
        image_depths(volume, angles, transfer=unity, **arguments)
