"""Filter banks and the clusters of what they give."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features.banks import BANKS, gabor_filters, make_bank
from tomoloc.features.foreground import fit_foreground, segment
from tomoloc.features.scales import ScaleSpace

SPACE = ScaleSpace(voxel_spacing=14.0)


@pytest.fixture
def volume(rng):
    data = rng.standard_normal((18, 26, 22)).astype(np.float32)
    data[6:10, 8:13, 9:14] += 6
    return data


def test_paper_filters_have_means_and_ours_have_none() -> None:
    assert gabor_filters(zero_mean=False).shape == (125, 1000)
    assert np.abs(gabor_filters(zero_mean=False).mean(axis=0)).max() > 0.1
    assert np.abs(gabor_filters(zero_mean=True).mean(axis=0)).max() < 1e-6


def test_fourier_bank_gives_magnitudes_of_each_neighbourhood(volume) -> None:
    bank = make_bank("fft", space=SPACE, sample=volume)
    found = bank(volume).reshape(14, 22, 18, 63)[3, 7, 2]
    expected = np.abs(np.fft.fftn(volume[3:8, 7:12, 2:7])).ravel()
    # each magnitude but the mean's comes twice
    np.testing.assert_allclose(np.sort(np.append(np.repeat(found[1:], 2), found[0])),
                               np.sort(expected), rtol=1e-3)  # fmt: skip


def test_intensity_bank_gives_neighbourhoods(volume) -> None:
    found = make_bank("intensity", space=SPACE, sample=volume)(volume)
    np.testing.assert_allclose(found[0], volume[:5, :5, :5].ravel(), atol=1e-6)


@pytest.mark.parametrize("name", BANKS)
def test_chosen_rows_are_those_of_all(name, volume, rng) -> None:
    bank = make_bank(name, space=SPACE, sample=volume)
    halo = bank.halo
    tile = np.pad(volume, halo, mode="reflect")
    rows = rng.permutation(volume.size)[:50]
    np.testing.assert_allclose(bank(tile, rows), bank(tile)[rows], atol=2e-3)


def test_unknown_bank_is_told(volume) -> None:
    with pytest.raises(ValueError, match="features must be one of"):
        make_bank("wavelet", space=SPACE, sample=volume)


@pytest.mark.parametrize("clustering", ["kmeans", "gmm"])
@pytest.mark.parametrize("invert", [False, True])
def test_the_bright_block_is_the_foreground(clustering, invert, volume, rng) -> None:
    bank = make_bank("intensity", space=SPACE, sample=volume)
    tile = np.pad(volume, bank.halo, mode="reflect")
    features, bright = bank(tile), volume.ravel()
    even = rng.permutation(volume.size)[:2000]
    rich = np.argsort(-bright)[:300]
    model = fit_foreground(
        features[even],
        features[rich],
        contrast=(bright[even], bright[rich]),
        clustering=clustering,
        seed=0,
        invert=invert,
    )
    (mask,) = segment(volume, bank, [model])
    np.testing.assert_array_equal(mask.ravel(), model(features))
    inside = mask[7:9, 9:12, 10:13].mean()
    outside = mask[12:].mean()
    assert (inside < 0.1 and outside > 0.5) if invert else (inside > 0.9 and outside < 0.5)


def test_unknown_clustering_is_told() -> None:
    rows, values = np.ones((4, 2)), np.ones(4)
    with pytest.raises(ValueError, match="clustering must be"):
        fit_foreground(rows, rows, contrast=(values, values), clustering="dbscan", seed=0)
