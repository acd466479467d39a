from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planting import SHAPE, SPACING, make_noise, make_tilt_series, plant
from scipy import fft
from scipy.ndimage import map_coordinates, maximum_filter
from scipy.spatial.transform import Rotation

from tomoloc.localize import find_peaks
from tomoloc.physics.potential import make_potential
from tomoloc.physics.rotations import angular_distance
from tomoloc.physics.wedge import tilt_weights
from tomoloc.pickers.template import TemplatePicker, _make_decoy
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Tomogram, Volume

STRUCTURES = {
    symmetry: make_complex(seed, mass_kda=mass, symmetry=symmetry)
    for seed, mass, symmetry in [(3, 400, "C1"), (5, 600, "C3"), (8, 500, "D2")]
}


def bright(tomogram: Tomogram) -> Tomogram:
    return tomogram.with_data(-tomogram.data)


@pytest.mark.parametrize("symmetry", STRUCTURES)
def test_planted_poses_come_back_within_one_step(symmetry: str) -> None:
    structure, step = STRUCTURES[symmetry], 20.0
    tomogram, truth = plant(structure, n=6, noise=1.5, rng=np.random.default_rng(11))
    picker = TemplatePicker(template=structure, angular_step=step, symmetry=symmetry)
    found = find_peaks(
        picker.score(bright(tomogram)), threshold=0, min_distance=90, max_particles=6
    )
    distance = np.linalg.norm(found.position[:, None] - truth.position, axis=2)
    match = distance.argmin(axis=1)
    assert sorted(match) == list(range(6))
    assert distance.min(axis=1).max() < SPACING
    error = angular_distance(found.rotation, truth.rotation[match], symmetry=symmetry)
    assert error.max() < step


def test_density_map_works_like_the_atoms() -> None:
    """A map on another grid, off centre, with an offset and a scale, finds the same places."""
    structure = STRUCTURES["D2"]
    volume = make_potential(structure, voxel_spacing=7.0, shape=(41, 41, 41))
    moved = np.pad(volume.data, ((0, 6), (3, 0), (2, 1)))
    density = Volume(data=500 * moved + 3, voxel_spacing=7.0, name="map")
    tomogram, truth = plant(structure, n=6, noise=0.7, rng=np.random.default_rng(4))
    for template in (structure, density):
        picker = TemplatePicker(template=template, angular_step=24, symmetry="D2", diameter=200)
        found = find_peaks(
            picker.score(bright(tomogram)), threshold=0, min_distance=90, max_particles=6
        )
        distance = np.linalg.norm(found.position[:, None] - truth.position, axis=2)
        match = distance.argmin(axis=1)
        assert sorted(match) == list(range(6))
        assert distance.min(axis=1).max() < SPACING
        error = angular_distance(found.rotation, truth.rotation[match], symmetry="D2")
        assert error.max() < 24


def test_diameter_of_a_map_and_of_atoms_agree(lobes) -> None:
    density = make_potential(lobes, voxel_spacing=7.0)
    expected = TemplatePicker(template=lobes).particle_diameter
    assert TemplatePicker(template=density).particle_diameter == pytest.approx(expected, abs=21)


def test_noise_gives_no_more_picks_than_stated(lobes) -> None:
    """Three tomograms of noise, one false particle expected in each."""
    picker = TemplatePicker(template=lobes, angular_step=40, false_positives=1)
    n = 0
    for seed in range(3):
        noise = Tomogram(
            data=make_noise(np.random.default_rng(seed)),
            voxel_spacing=SPACING,
            tilt_series=make_tilt_series(),
        )
        scores = picker.score(noise)
        threshold = picker.threshold(scores, min_distance=80)
        n += len(find_peaks(scores, threshold=threshold, min_distance=80))
    assert n <= 4


def test_decoy_has_the_template_spectrum_shape_and_symmetry() -> None:
    density = make_potential(STRUCTURES["C3"], voxel_spacing=5.0, shape=(47, 47, 47)).data
    decoy = _make_decoy(density, symmetry="C3", seed=1)
    amplitude = [np.abs(np.fft.rfftn(data)) for data in (density, decoy)]
    # A finite support cannot hold any spectrum exactly, but nearly.
    assert np.corrcoef(amplitude[0].ravel(), amplitude[1].ravel())[0, 1] > 0.9
    assert np.abs(np.corrcoef(density.ravel(), decoy.ravel())[0, 1]) < 0.5
    assert (decoy**2)[maximum_filter(density, 7) < 0.5].sum() < 0.1 * (decoy**2).sum()
    turn = Rotation.from_euler("z", 120, degrees=True)
    places = np.indices((47, 47, 47)).reshape(3, -1).T - 23.0
    moved = turn.apply(places[:, ::-1])[:, ::-1] + 23
    rotated = map_coordinates(decoy, moved.T, order=1).reshape(decoy.shape)
    assert np.corrcoef(rotated.ravel(), decoy.ravel())[0, 1] > 0.75
    other = Rotation.from_euler("z", 60, degrees=True).apply(places[:, ::-1])[:, ::-1] + 23
    unlike = map_coordinates(decoy, other.T, order=1).reshape(decoy.shape)
    assert np.corrcoef(unlike.ravel(), decoy.ravel())[0, 1] < 0.5


def test_decoy_of_a_hollow_sphere_is_round_and_different() -> None:
    radius = np.linalg.norm(np.indices((47, 47, 47)) - 23, axis=0)
    density = np.exp(-((radius - 12) ** 2) / 6).astype(np.float32)
    decoy = _make_decoy(density, symmetry="C1", seed=1)
    amplitude = [np.abs(np.fft.rfftn(data)) for data in (density, decoy)]
    np.testing.assert_allclose(amplitude[1], amplitude[0], atol=1e-3 * amplitude[0].max())
    # As round as the template, but not like it: half the power has the other sign.
    assert np.abs(np.corrcoef(density.ravel(), decoy.ravel())[0, 1]) < 0.3
    np.testing.assert_allclose(decoy, decoy.transpose(1, 2, 0), atol=1e-3 * decoy.max())


def test_seed_decides(planted, lobes) -> None:
    tomogram, _ = planted
    scores = [
        TemplatePicker(template=lobes, angular_step=90, seed=seed).score(bright(tomogram)).data
        for seed in (1, 1, 2)
    ]
    assert scores[0].tobytes() == scores[1].tobytes()
    assert not np.array_equal(scores[0], scores[2])


def test_low_pass_and_step_set_the_working_spacing(lobes) -> None:
    coarse = TemplatePicker(template=lobes, angular_step=30)
    assert coarse.working_spacing(10.0) == 10.0
    assert coarse.working_spacing(2.0) > 5
    assert TemplatePicker(template=lobes, low_pass=40).working_spacing(4.0) == 16
    with pytest.raises(ValueError, match="coarser than the template"):
        TemplatePicker(template=lobes, low_pass=400).working_spacing(4.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"angular_step": 0}, "angular_step"),
        ({"symmetry": "C"}, "symmetry must be"),
        ({"low_pass": -3}, "low_pass must be positive"),
        ({"false_positives": 0}, "false_positives must be positive"),
        ({"detectability": 1.5}, "detectability"),
        ({"label": "one,two"}, "label needs one word"),
        ({"symmetry": "C1,C2"}, "symmetry needs one word"),
    ],
)
def test_bad_parameters(lobes, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemplatePicker(template=lobes, **change)


def test_missing_tilts_and_large_templates(planted, lobes) -> None:
    tomogram, _ = planted
    with pytest.raises(ValueError, match="--tilt-range LO HI or --tilt-file"):
        TemplatePicker(template=lobes).score(replace(tomogram, tilt_series=None))
    with pytest.raises(ValueError, match="larger than the tomogram"):
        TemplatePicker(template=lobes, diameter=SPACING * max(SHAPE) + 1).score(tomogram)


@pytest.mark.parametrize("correction", ["none", "flip", "full"])
def test_ctf_correction_is_as_stated(correction: str) -> None:
    """The right statement scores as high as any, and a wrong one about the sign lower."""
    structure = STRUCTURES["D2"]
    series = make_tilt_series()
    density = make_potential(structure, voxel_spacing=SPACING, shape=(45, 45, 45)).data
    weights = tilt_weights(
        density.shape,
        series,
        voxel_spacing=SPACING,
        ctf=correction != "full",
        phase_flipped=correction == "flip",
    ) * (-1 if correction == "none" else 1)
    data = fft.irfftn(fft.rfftn(density) * weights, s=density.shape)
    tomogram = Tomogram(data=data, voxel_spacing=SPACING, tilt_series=series)
    best = {
        stated: TemplatePicker(
            template=structure,
            angular_step=45,
            symmetry="D2",
            ctf_correction=stated,
            exhaustive=True,
        )
        .score(tomogram)
        .data[0, 21:24, 21:24, 21:24]
        .max()
        for stated in ("none", "flip", "full")
    }
    # Flipped phases and restored amplitudes differ little in what a template sees.
    assert best[correction] > 0.9 * max(best.values())
    assert (max(best, key=best.get) == "none") == (correction == "none")


def test_band_is_coarser_where_the_ctf_is_unknown(planted, lobes) -> None:
    tomogram = bright(planted[0])
    blind = replace(tomogram, tilt_series=replace(tomogram.tilt_series, ctf=None))
    default, coarse, fine = (
        TemplatePicker(template=lobes, angular_step=90, low_pass=low_pass).score(blind).data
        for low_pass in (None, 30, 20)
    )
    np.testing.assert_array_equal(default, coarse)
    assert not np.allclose(default, fine)


def test_large_tomograms_are_filtered_in_tiles(planted, lobes, monkeypatch) -> None:
    """With nearly the same result as the whole."""
    tomogram = bright(planted[0])
    picker = TemplatePicker(template=lobes, low_pass=40)
    whole, weights = picker._filter(tomogram)
    monkeypatch.setattr("tomoloc.pickers.template._WHOLE", 1000)
    tiled, blocks = picker._filter(tomogram)
    assert np.corrcoef(whole.ravel(), tiled.ravel())[0, 1] > 0.95  # 25 shells only
    frequency = np.linspace(0.005, 0.02, 9)
    ratio = blocks(frequency) / weights(frequency)
    np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.25)


def test_top_hat_takes_broad_maxima_away(planted, lobes) -> None:
    tomogram, truth = planted
    picker = TemplatePicker(template=lobes, angular_step=40, exhaustive=True, top_hat=True)
    found = find_peaks(picker.score(bright(tomogram)), threshold=0.05, min_distance=90)
    distance = np.linalg.norm(found.position[:, None] - truth.position, axis=2)
    assert (distance[: len(truth)].min(axis=0) < 25).mean() > 0.7
    with pytest.raises(ValueError, match="give exhaustive"):
        replace(picker, exhaustive=False)
