"""Fourier filters, spectra and resampling."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.fft

from tomoloc import arrays
from tomoloc.physics import filters
from tomoloc.physics.filters import (
    band_pass,
    band_pass_weights,
    fourier_shell_correlation,
    gaussian,
    radial_frequency,
    radial_spectrum,
    rescale,
    whiten,
)
from tomoloc.types import Tomogram, Volume

SHAPE = (18, 25, 32)


def wave(shape, index):
    """A cosine of whole periods along z, y and x."""
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    phase = sum(k * grid / n for k, grid, n in zip(index, grids, shape, strict=True))
    return np.cos(2 * np.pi * phase)


def blobs(volume):
    """A band-limited field of the position: a few Gaussians well inside the volume."""
    centers = np.array([[70.0, 60.0, 50.0], [95.0, 80.0, 62.0], [60.0, 92.0, 58.0]])
    index = np.stack(np.indices(volume.shape), axis=-1)
    position = volume.to_position(index)
    field = np.full(volume.shape, 0.3)
    for center, weight in zip(centers, (1.0, -0.6, 0.8), strict=True):
        squared = ((position - center) ** 2).sum(axis=-1)
        field += weight * np.exp(-squared / (2 * 9.0**2))
    return field


def test_radial_frequency_is_that_of_rfftn():
    frequency = radial_frequency(SHAPE, 4.0)
    assert frequency.shape == (18, 25, 17)
    assert frequency.dtype == np.float32
    spectrum = np.abs(scipy.fft.rfftn(wave(SHAPE, (3, -4, 5))))
    expected = np.sqrt((3 / 18) ** 2 + (4 / 25) ** 2 + (5 / 32) ** 2) / 4
    np.testing.assert_allclose(frequency[spectrum > 1], expected, rtol=1e-6)


class TestBandPass:
    def test_half_at_the_resolution_and_soft_edges(self):
        weights = band_pass_weights(
            [0, 1 / 110, 1 / 100, 1 / 90, 0.03, 1 / 22, 1 / 20, 1 / 18, 0.5],
            low_pass=20,
            high_pass=100,
            edge=0.2,
        )
        expected = [0, 0.02, 0.5, 1, 1, 0.98, 0.5, 0, 0]
        np.testing.assert_allclose(weights, expected, atol=0.03)
        assert (band_pass_weights([0, 1, 2]) == 1).all()

    def test_waves_pass_or_not(self):
        kept, gone = wave(SHAPE, (1, 2, 3)), wave(SHAPE, (6, 8, 9))
        out = band_pass(5 + kept + gone, voxel_spacing=4.0, low_pass=20)
        np.testing.assert_allclose(out, 5 + kept, atol=1e-5)
        out = band_pass(5 + kept + gone, voxel_spacing=4.0, high_pass=20)
        np.testing.assert_allclose(out, gone, atol=1e-5)

    def test_channels(self, rng):
        data = rng.standard_normal((2, *SHAPE))
        both = band_pass(data, voxel_spacing=4.0, low_pass=20)
        np.testing.assert_allclose(
            both[1], band_pass(data[1], voxel_spacing=4.0, low_pass=20), atol=1e-6
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"low_pass": 0}, "low_pass must be a resolution"),
            ({"high_pass": -3}, "high_pass must be a resolution"),
            ({"low_pass": 50, "high_pass": 40}, "finer than high_pass"),
            ({"low_pass": 50, "edge": 0}, "edge must be positive"),
        ],
    )
    def test_wrong_bands_are_told(self, options, message):
        with pytest.raises(ValueError, match=message):
            band_pass_weights([0.1], **options)


def test_gaussian_blurs_a_point_to_a_gaussian():
    point = np.zeros((31, 33, 35))
    point[15, 16, 17] = 1
    z, y, x = np.ogrid[-15:16, -16:17, -17:18]
    expected = np.exp(-(z**2 + y**2 + x**2) / (2 * 2.5**2)) / (2.5 * np.sqrt(2 * np.pi)) ** 3
    np.testing.assert_allclose(gaussian(point, voxel_spacing=4.0, sigma=10.0), expected, atol=1e-6)


class TestSpectra:
    def test_noise_has_its_variance(self, rng):
        frequency, power = radial_spectrum(3 * rng.standard_normal((30, 40, 50)), voxel_spacing=5)
        assert frequency[-1] == pytest.approx(0.1)
        assert len(frequency) == 26
        np.testing.assert_allclose(power[5:], 9, rtol=0.25)
        assert power[0] == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("shape", [(6, 8, 10), (7, 9, 11), (12, 5, 8)])
    def test_all_power_inside_nyquist_is_counted(self, rng, shape):
        data = rng.standard_normal(shape)
        spectrum = np.abs(np.fft.fftn(data - data.mean())) ** 2
        k = np.sqrt(sum(g**2 for g in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
        shell = np.floor(k * max(shape) + 0.5).astype(int)
        _, power = radial_spectrum(data, voxel_spacing=2.0)
        for i in range(len(power)):
            expected = spectrum[shell == i].mean() / data.size
            assert power[i] == pytest.approx(expected, rel=1e-4, abs=1e-9)

    def test_whitening_flattens(self, rng):
        colored = gaussian(rng.standard_normal((32, 40, 36)), voxel_spacing=1.0, sigma=0.7) + 3
        white = whiten(colored, voxel_spacing=1.0)
        assert white.mean() == pytest.approx(0, abs=1e-5)
        _, power = radial_spectrum(white, voxel_spacing=1.0)
        np.testing.assert_allclose(power[3:], 1, rtol=0.1)

    def test_whitening_of_band_limited_data_stays_finite(self, rng):
        smooth = gaussian(rng.standard_normal(SHAPE), voxel_spacing=1.0, sigma=3.0)
        white = whiten(smooth, voxel_spacing=1.0)
        assert np.isfinite(white).all()
        assert np.isfinite(whiten(np.ones(SHAPE), voxel_spacing=1.0)).all()


class TestFourierShellCorrelation:
    def test_scaled_and_turned(self, rng):
        data = rng.standard_normal(SHAPE)
        for scale in (2.0, -0.5):
            _, correlation = fourier_shell_correlation(data, scale * data + 7, voxel_spacing=1.0)
            np.testing.assert_allclose(correlation[1:], np.sign(scale), rtol=1e-5)
            assert correlation[0] == 0

    def test_signal_and_noise(self, rng):
        signal, first, second = rng.standard_normal((3, 40, 44, 48))
        _, correlation = fourier_shell_correlation(
            signal + first, signal + second, voxel_spacing=1.0
        )
        np.testing.assert_allclose(correlation[8:], 0.5, atol=0.1)

    def test_mask_leaves_coefficients_out(self, rng):
        data = rng.standard_normal(SHAPE)
        spectrum = scipy.fft.rfftn(data)
        mask = radial_frequency(SHAPE, 1.0) > 0.3
        changed = scipy.fft.irfftn(np.where(mask, spectrum, 0), s=SHAPE)
        _, correlation = fourier_shell_correlation(data, changed, voxel_spacing=1.0, mask=mask)
        np.testing.assert_allclose(correlation[11:], 1, rtol=1e-5)
        assert not correlation[:9].any()

    def test_wrong_shapes_are_told(self, rng):
        data = rng.standard_normal(SHAPE)
        with pytest.raises(ValueError, match="one shape"):
            fourier_shell_correlation(data, data[:-1], voxel_spacing=1.0)
        with pytest.raises(ValueError, match="expected a mask of shape"):
            fourier_shell_correlation(data, data, voxel_spacing=1.0, mask=data)
        with pytest.raises(ValueError, match=r"\(z, y, x\)"):
            radial_spectrum(data[0], voxel_spacing=1.0)


PEAK = """
import re, sys, numpy as np
from tomoloc import arrays
from tomoloc.physics import filters
from tomoloc.types import Volume
def peak():  # of this process alone: the peak that getrusage tells begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
arrays.LARGE_BYTES, filters.PART_BYTES = 1 << 20, 8 << 20
shape = (150, 500, 600)
np.memmap(sys.argv[1], np.float32, "w+", shape=shape)
arrays.release(np.memmap(sys.argv[1], np.float32, "r+", shape=shape))
small = Volume(data=np.ones((8, 9, 10)), voxel_spacing=2.5)
filters.rescale(small, 5.0)
before = peak()
volume = Volume(data=np.memmap(sys.argv[1], np.float32, "r", shape=shape), voxel_spacing=2.5)
filters.rescale(volume, 5.0)
print(peak() - before)
"""


class TestRescale:
    ORIGIN = (-11.0, 7.0, 2.5)

    def fine(self):
        grid = Tomogram(
            data=np.zeros((37, 44, 51)), voxel_spacing=3.1, origin=self.ORIGIN, name="TS_1"
        )
        return grid.with_data(blobs(grid))

    @pytest.mark.parametrize("voxel_spacing", [2.0, 4.7, 6.2, 5.37])
    def test_the_field_is_the_same_at_any_spacing(self, voxel_spacing):
        fine = self.fine()
        out = rescale(fine, voxel_spacing)
        assert isinstance(out, Tomogram)
        assert out.name == "TS_1"
        assert out.voxel_spacing == voxel_spacing
        assert out.data.dtype == np.float32
        np.testing.assert_allclose(out.center, fine.center)
        np.testing.assert_allclose(out.extent, fine.extent, atol=voxel_spacing / 2 + 1e-9)
        np.testing.assert_allclose(out.data, blobs(out), atol=4e-3)
        assert out.data.mean() == pytest.approx(fine.data.mean(), rel=0.02)

    def test_there_and_back(self):
        fine = self.fine()
        back = rescale(rescale(fine, 2.3), 3.1)
        assert back.shape == fine.shape
        np.testing.assert_allclose(back.origin, fine.origin)
        np.testing.assert_allclose(back.data, fine.data, atol=1e-3)

    def test_mean_is_exact_where_voxels_fit(self, rng):
        volume = Volume(data=rng.standard_normal((12, 20, 28)), voxel_spacing=5.0)
        for voxel_spacing in (10.0, 2.5, 20.0):
            out = rescale(volume, voxel_spacing)
            np.testing.assert_allclose(out.extent, volume.extent)
            assert out.data.mean() == pytest.approx(volume.data.mean(), abs=1e-6)

    def test_what_the_coarse_grid_cannot_hold_is_left_out(self):
        x = np.arange(40) + 0.5
        keep, lose = np.cos(np.pi * 6 * x / 40), np.cos(np.pi * 30 * x / 40)
        data = np.broadcast_to(keep + lose, (6, 8, 40))
        out = rescale(Volume(data=data, voxel_spacing=1.0), 2.0)
        expected = np.cos(np.pi * 6 * (np.arange(20) + 0.5) / 20)
        np.testing.assert_allclose(out.data, np.broadcast_to(expected, (3, 4, 20)), atol=1e-5)

    def test_channels_and_integers(self):
        fine = self.fine()
        whole = np.round(fine.data * 1000).astype(np.int16)
        both = rescale(Volume(data=np.stack([whole, 2 * whole]), voxel_spacing=3.1), 6.2)
        assert both.data.shape == (2, 18, 22, 26)
        np.testing.assert_allclose(both.data[1], 2 * both.data[0], rtol=1e-3, atol=0.5)

    @pytest.mark.parametrize("voxel_spacing", [2.0, 6.2])
    def test_in_parts_it_is_the_same(self, tmp_path, monkeypatch, voxel_spacing):
        fine = self.fine()
        whole = rescale(fine, voxel_spacing)
        data = np.memmap(tmp_path / "x", float, "w+", shape=fine.shape)
        data[:] = fine.data
        monkeypatch.setattr(filters, "PART_BYTES", 100_000)
        monkeypatch.setattr(arrays, "LARGE_BYTES", 1000)
        parts = rescale(fine.with_data(data), voxel_spacing)
        assert isinstance(parts.data, np.memmap)
        np.testing.assert_allclose(parts.data, whole.data, atol=1e-6)
        np.testing.assert_array_equal(data, fine.data)

    @pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
    def test_memory_is_bounded(self, tmp_path):
        """File, intermediate and result, 232 MB together, do not count; parts of 8 MB do."""
        done = subprocess.run(
            [sys.executable, "-c", PEAK, tmp_path / "x"], text=True, capture_output=True, check=True
        )
        assert int(done.stdout) < 40_000  # KiB

    def test_same_spacing_is_the_same_volume(self):
        fine = self.fine()
        assert rescale(fine, 3.1) is fine

    def test_wrong_spacing_is_told(self):
        for spacing in (0, -1.0, np.nan):
            with pytest.raises(ValueError, match="voxel_spacing must be positive"):
                rescale(self.fine(), spacing)
