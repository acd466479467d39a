"""The sign of contrast, and standard scores."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.fft

from tomoloc import arrays
from tomoloc.physics.contrast import brighten, detect_contrast, robust_scale, standardise
from tomoloc.physics.ctf import evaluate_ctf
from tomoloc.physics.projection import project
from tomoloc.physics.reconstruction import back_project
from tomoloc.types import CTF

ANGLES = np.arange(-60.0, 61, 3)


def paint(volume, rng, *, n, radius, value):
    """Add soft balls at random places."""
    grids = np.ogrid[tuple(slice(k) for k in volume.shape)]
    for _ in range(n):
        center = [rng.uniform(0, k) for k in volume.shape]
        distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grids, center, strict=True)))
        volume += value / (1 + np.exp(2 * (distance - radius)))


def make_tomogram(seed, *, n=50, radius=6.0, gold=0):
    """Balls at 10 Å voxels, seen at 3 µm underfocus with noise: dark, with bright halos."""
    rng = np.random.default_rng(seed)
    density = np.zeros((40, 80, 96))
    paint(density, rng, n=n, radius=radius, value=1.0)
    paint(density, rng, n=gold, radius=5.0, value=25.0)
    images = project(density, ANGLES, border="periodic")
    k = len(ANGLES)
    ctf = CTF(defocus_u_um=np.full(k, 3.0), defocus_v_um=np.full(k, 3.0), defocus_angle=np.zeros(k))
    x, y = scipy.fft.rfftfreq(96, 10.0), scipy.fft.fftfreq(80, 10.0)[:, None]
    spectrum = scipy.fft.rfft2(images) * evaluate_ctf(ctf, x, y)
    images = scipy.fft.irfft2(spectrum, s=(80, 96))
    images += rng.normal(0, 2.5, images.shape)
    return back_project(images - images.mean(), ANGLES, shape=density.shape, border="edge")


class TestDetectContrast:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("options", [{}, {"n": 10}, {"gold": 4}, {"radius": 3.5, "n": 150}])
    def test_protein_is_dark_as_the_microscope_gives_it(self, seed, options):
        tomogram = make_tomogram(seed, **options)
        found = detect_contrast(tomogram)
        assert found.sign == "dark"
        assert found.confidence > 0.99
        inverted = detect_contrast(1000 - 30 * tomogram)
        assert inverted.sign == "light"
        assert inverted.confidence == pytest.approx(found.confidence, abs=1e-3)

    def test_noise_is_not_trusted(self):
        rng = np.random.default_rng(5)
        confidence = [
            detect_contrast(rng.standard_normal((30, 44, 52))).confidence for _ in range(40)
        ]
        assert np.mean(np.array(confidence) > 0.95) <= 0.05

    def test_hot_voxels_do_not_decide(self):
        tomogram = make_tomogram(1)
        rng = np.random.default_rng(6)
        hot = tuple(rng.integers(0, k, 20) for k in tomogram.shape)
        tomogram[hot] = 20 * tomogram.std()
        assert detect_contrast(tomogram).sign == "dark"

    def test_large_volumes_are_sampled(self):
        tomogram = np.tile(make_tomogram(2), (3, 4, 4))
        assert detect_contrast(tomogram).sign == "dark"

    def test_constant_and_flat_data(self):
        assert detect_contrast(np.ones((8, 9, 10))).confidence == 0
        assert detect_contrast(make_tomogram(0)[20:21]).sign == "dark"
        with pytest.raises(ValueError, match=r"\(z, y, x\)"):
            detect_contrast(np.ones((8, 9)))

    @pytest.mark.parametrize("name", ["13pf_MT.tif", "14pf_MT.tif"])
    def test_real_microtubules_are_light(self, shared, name):
        import tifffile

        crop = tifffile.imread(shared / "real" / "microtubule" / name)
        assert detect_contrast(crop).sign == "light"
        assert detect_contrast(255 - crop).sign == "dark"

    def test_real_slice_is_dark(self, shared):
        import tifffile

        image = tifffile.imread(shared / "real" / "slice" / "TS_001.133.tif")
        assert detect_contrast(image[None]).sign == "dark"


class TestStandardise:
    def test_outliers_have_no_say(self, rng):
        data = 50 + 4 * rng.standard_normal((30, 40, 50))
        data[:3] = -5000
        out = standardise(data, contrast="light")
        assert out.dtype == np.float32
        assert np.median(out[3:]) == pytest.approx(0, abs=0.2)
        assert out[3:].std() == pytest.approx(1, abs=0.15)

    def test_protein_becomes_positive(self, rng):
        data = rng.integers(0, 255, (9, 10, 11)).astype(np.uint8)
        dark, light = standardise(data, contrast="dark"), standardise(data)
        np.testing.assert_array_equal(dark, -light)

    def test_mostly_empty_volumes(self):
        data = np.zeros((10, 11, 12))
        data[4, 5, 6] = 1
        assert np.isfinite(standardise(data)).all()

    def test_large_volumes_are_sampled_evenly(self, rng):
        data = rng.standard_normal((40, 256, 256)) * np.linspace(0.5, 1.5, 256)
        small = standardise(data[:10])
        np.testing.assert_allclose(standardise(data)[:10], small, atol=0.05)

    def test_input_is_left_alone(self, rng):
        data = rng.standard_normal((4, 5, 6)).astype(np.float32)
        before = data.copy()
        standardise(data)
        assert np.array_equal(data, before)

    def test_wrong_use_is_told(self):
        with pytest.raises(ValueError, match="values that differ"):
            standardise(np.ones((4, 5, 6)))
        with pytest.raises(ValueError, match="'dark' or 'light'"):
            standardise(np.arange(8.0).reshape(2, 2, 2), contrast="auto")


def test_scale_of_a_volume_with_swapped_axes_needs_no_copy(rng):
    data = rng.normal(3, 2, (120, 130, 1000)).astype(np.float32)
    median, deviation = robust_scale(data)
    tracemalloc.start()
    swapped = robust_scale(data.transpose(2, 1, 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert swapped == pytest.approx((median, deviation), rel=0.01)
    assert median == pytest.approx(3, abs=0.01)
    assert peak < data.nbytes / 1.5


def test_dark_protein_is_made_bright(rng, tmp_path, monkeypatch):
    data = np.memmap(tmp_path / "x", np.int8, "w+", shape=(5, 6, 7))
    data[:] = rng.integers(-128, 128, data.shape)
    assert brighten(data, contrast="light") is data
    for limit in (arrays.LARGE_BYTES, 1):
        monkeypatch.setattr(arrays, "LARGE_BYTES", limit)
        bright = brighten(data, contrast="dark")
        assert bright.dtype == np.float32
        assert isinstance(bright, np.memmap) == (limit == 1)
        np.testing.assert_array_equal(bright, -data.astype(float))
