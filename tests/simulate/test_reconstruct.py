"""Tomograms from tilt series: contrast, binning, correction, denoising and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tomoloc.physics.ctf import evaluate_ctf
from tomoloc.physics.projection import project
from tomoloc.simulate.reconstruct import reconstruct
from tomoloc.simulate.settings import Reconstruction
from tomoloc.types import CTF, TiltSeries, Volume

SHAPE = (24, 36, 60)
ANGLES = np.arange(-60.0, 61, 4)
SPACING = 8.0


@pytest.fixture
def density(rng):
    """Smooth blobs, and as their brightest a bead off the middle."""
    data = gaussian_filter(rng.standard_normal(SHAPE), 3.0)
    z, y, x = np.ogrid[:24, :36, :60]
    squared = (z - 9.3) ** 2 + (y - 21.6) ** 2 + (x - 40.2) ** 2
    data = data / data.std() + 12 * np.exp(-squared / (2 * 2.5**2))
    return Volume(data=data.astype(np.float32), voxel_spacing=SPACING)


def take(density, *, defocus=None, brightness=None, ideal=False):
    """Return a tilt series without noise, ideally with the phases of the CTF right already."""
    images = 1 - 1e-3 * project(density.data, ANGLES)
    ctf = None
    if defocus is not None:
        ctf = CTF(
            defocus_u_um=np.full(31, defocus),
            defocus_v_um=np.full(31, defocus),
            defocus_angle=np.zeros(31),
        )
        transfer = evaluate_ctf(
            ctf, np.fft.rfftfreq(60, SPACING), np.fft.fftfreq(36, SPACING)[:, None]
        )
        transfer = -np.abs(transfer) if ideal else transfer
        images = 1 + np.fft.irfft2(np.fft.rfft2(1 - images) * transfer, s=(36, 60))
    if brightness is not None:
        images = images * brightness[:, None, None]
    return TiltSeries(tilt_angles=ANGLES, images=images, pixel_spacing=SPACING, ctf=ctf)


def run(series, **settings):
    return reconstruct(series, settings=Reconstruction(**settings), shape=SHAPE, name="it")


def likeness(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


@pytest.mark.parametrize("method", ["wbp", "sirt"])
def test_protein_is_dark_with_mean_0_and_deviation_1(density, method):
    series = take(density)
    tomogram = run(series, method=method)
    assert tomogram.shape == SHAPE
    assert tomogram.data.dtype == np.float32
    assert tomogram.name == "it"
    assert tomogram.tilt_series is series
    assert tomogram.data.mean() == pytest.approx(0, abs=1e-5)
    assert tomogram.data.std() == pytest.approx(1, rel=1e-5)
    assert likeness(tomogram.data, density.data) < -0.7


def test_brightness_does_not_count(density, rng):
    plain = run(take(density)).data
    bright = run(take(density, brightness=rng.uniform(5, 50, 31))).data
    np.testing.assert_allclose(bright, plain, atol=1e-3)


def test_an_image_without_counts_adds_nothing(density):
    series = take(density)
    images = series.images.copy()
    images[4] = 0
    assert np.isfinite(run(replace(series, images=images)).data).all()


@pytest.mark.parametrize("factor", [2, 3])
def test_a_binned_tomogram_has_the_same_centre_and_content(density, factor):
    full, small = run(take(density)), run(take(density), binning=factor)
    assert small.shape == tuple(n // factor for n in SHAPE)
    assert small.voxel_spacing == SPACING * factor
    np.testing.assert_allclose(small.center, full.center)
    expected = full.binned(factor)
    np.testing.assert_allclose(small.origin, expected.origin)
    assert likeness(small.data, expected.data) > 0.97
    # The bead lies where it lay, in angstrom.
    darkest = np.unravel_index(small.data.argmin(), small.shape)
    bead = density.to_position([9.3, 21.6, 40.2])
    assert np.abs(small.to_position(darkest) - bead).max() <= 0.75 * SPACING * factor


@pytest.mark.parametrize("defocus", [4.0, -4.0])
@pytest.mark.parametrize("correction", ["flip", "flip-3d"])
@pytest.mark.parametrize("method", ["wbp", "sirt"])
def test_phases_come_out_right(density, rng, correction, defocus, method):
    """Reversed contrast is put right, protein dark, also where defocus has the other sign."""
    density = density.with_data(density.data + gaussian_filter(rng.standard_normal(SHAPE), 0.7))
    settings = {"method": method, "iterations": 5}
    ideal = run(take(density, defocus=defocus, ideal=True), **settings).data
    raw = run(take(density, defocus=defocus), **settings).data
    flipped = run(take(density, defocus=defocus), ctf_correction=correction, **settings).data
    assert likeness(flipped, ideal) > 0.97
    assert likeness(raw, ideal) < 0.9


@pytest.mark.parametrize("method", ["gaussian", "median"])
def test_denoising_takes_noise_away(density, rng, method):
    series = take(density)
    noisy = replace(series, images=series.images + 0.02 * rng.standard_normal((31, 36, 60)))
    truth = run(series).data
    raw, smooth = run(noisy).data, run(noisy, denoise=method).data
    assert likeness(smooth, truth) > likeness(raw, truth) + 0.05
    assert smooth.std() == pytest.approx(1, rel=1e-4)


def test_the_roll_off_takes_fine_noise_away(rng):
    images = 1 + 0.1 * rng.standard_normal((31, 36, 60))
    series = TiltSeries(tilt_angles=ANGLES, images=images, pixel_spacing=SPACING)
    sharp, soft = (run(series, roll_off=value).data for value in (1.0, 0.4))
    assert np.abs(np.diff(soft, axis=2)).mean() < 0.8 * np.abs(np.diff(sharp, axis=2)).mean()


def test_missing_images_are_told():
    with pytest.raises(ValueError, match="needs images and their pixel_spacing"):
        run(TiltSeries(tilt_angles=[0.0]))


def test_a_missing_ctf_is_told(density):
    with pytest.raises(ValueError, match="'flip' needs a tilt series with a CTF"):
        run(take(density), ctf_correction="flip")


def test_sides_that_cannot_be_binned_are_told(density):
    with pytest.raises(ValueError, match=r"binning 5 must divide .* \(24, 36, 60\)"):
        run(take(density), binning=5)
