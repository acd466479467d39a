"""Spectra of blocks, and tomograms filtered to have another one's."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tomoloc.features.spectra import filter_tiles, local_spectrum, match_spectrum, noise_like

SHAPE = (50, 70, 90)


def test_white_noise_has_as_much_power_everywhere(rng):
    power = local_spectrum(3 * rng.normal(size=SHAPE) + 7)
    assert power.shape == (25,)
    np.testing.assert_allclose(power[2:], 1, atol=0.25)


def test_scale_and_offset_do_not_matter(rng):
    data = gaussian_filter(rng.normal(size=SHAPE), 1.2)
    first, second = local_spectrum(data), local_spectrum(-40 * data + 1000)
    np.testing.assert_allclose(first[1:], second[1:], rtol=1e-3)


def test_thin_volumes_have_a_spectrum(rng):
    power = local_spectrum(rng.normal(size=(11, 60, 64)))
    assert np.isfinite(power).all()
    np.testing.assert_allclose(power[6:], 1, atol=0.4)


def test_a_blurred_volume_gets_the_spectrum_back(rng):
    """As far as the limit allows, and the same in each tile."""
    data = gaussian_filter(rng.normal(size=SHAPE), 0.6)
    blurred = gaussian_filter(data, 0.7)
    wanted = local_spectrum(data)
    matched = match_spectrum(blurred, wanted)
    assert matched.dtype == np.float32
    before, after = local_spectrum(blurred), local_spectrum(matched)
    error = [np.abs(np.log(power / wanted))[2:16].max() for power in (before, after)]
    assert error[0] > 0.6
    assert error[1] < 0.15
    correlation = [np.corrcoef(v.ravel(), data.ravel())[0, 1] for v in (blurred, matched)]
    assert correlation[1] > correlation[0] + 0.02


def test_what_is_right_already_stays(rng):
    data = gaussian_filter(rng.normal(size=SHAPE), 1.0).astype(np.float32)
    matched = match_spectrum(data, local_spectrum(data))
    np.testing.assert_allclose(matched, data, atol=0.02 * data.std())


def test_other_spectra_are_refused(rng):
    with pytest.raises(ValueError, match="25 shells"):
        match_spectrum(rng.normal(size=(20, 22, 24)), [1, 2, 3])


def test_tiles_are_filtered_like_the_whole(rng):
    data = rng.normal(size=SHAPE).astype(np.float32)

    def low_pass(frequency):
        return np.exp(-((frequency / 0.15) ** 2))

    whole = filter_tiles(data, low_pass)
    tiled = filter_tiles(data, low_pass, max_voxels=200_000)
    np.testing.assert_allclose(tiled, whole, atol=1e-4)
    spread = gaussian_filter(data.astype(float), 1 / (0.15 * np.pi * np.sqrt(2)), mode="mirror")
    np.testing.assert_allclose(whole, spread, atol=0.02)


def test_noise_has_the_amplitudes_of_the_middle_of_a_volume() -> None:
    rng = np.random.default_rng(5)
    data = gaussian_filter(rng.normal(size=(21, 34, 55)), (0.5, 1.0, 2.0)) + 3.0
    noise = noise_like(data, max_voxels=data.size, rng=np.random.default_rng(1))
    assert noise.shape == data.shape
    assert noise.mean() == pytest.approx(0, abs=1e-5)
    one, two = (np.abs(np.fft.rfftn(volume - volume.mean())) for volume in (noise, data))
    np.testing.assert_allclose(one, two, atol=2e-3 * two.max())
    assert abs(np.corrcoef(noise.ravel(), data.ravel())[0, 1]) < 0.1
    again = noise_like(data, max_voxels=data.size, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(noise, again)

    small = noise_like(data, max_voxels=10_000, rng=np.random.default_rng(1))
    assert 9_000 < small.size <= 10_000
    assert small.shape[0] == 21  # the short axis is left
    assert small.std() == pytest.approx(data.std(), rel=0.15)
