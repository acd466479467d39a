"""Planted balls beside what is no particle: the picker finds the balls, and little else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from planting import make_noise, make_tilt_series
from scipy import fft

from tomoloc.evaluate import match_particles
from tomoloc.physics.wedge import tilt_weights
from tomoloc.pickers.consensus import CONSENSUS, agree
from tomoloc.pickers.pick import pick
from tomoloc.pickers.unsupervised import UnsupervisedPicker
from tomoloc.types import Particles, Tomogram

SHAPE, SPACING = (56, 132, 120), 10.0
ORIGIN = np.array([-70.0, 300.0, 25.0])
NOISE = 0.7
ENGINES = ("learned", "invariant")


def ball(index, radius):
    """Soft ball of unit density; index and radius in voxels."""
    z, y, x = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    away = np.sqrt((z - index[0]) ** 2 + (y - index[1]) ** 2 + (x - index[2]) ** 2)
    return np.clip(radius + 0.5 - away, 0, 1).astype(np.float32)


def vesicle(index, radius):
    """Two leaflets, 40 Å apart."""
    z, y, x = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    away = np.sqrt((z - index[0]) ** 2 + (y - index[1]) ** 2 + (x - index[2]) ** 2)
    return sum(np.exp(-((away - r) ** 2) / 2) for r in (radius - 2, radius + 2)).astype(np.float32)


def ramped(noise):
    """Noise as back-projection leaves it: weighted by the frequency across the tilt axis."""
    x = fft.rfftfreq(SHAPE[2])
    z = fft.fftfreq(SHAPE[0])
    noise = fft.irfftn(fft.rfftn(noise) * np.sqrt(np.hypot(x, z[:, None, None])), s=SHAPE)
    return noise / noise.std()


@cache
def reference_height() -> float:
    """What the weights leave of a ball of density 1."""
    weights = tilt_weights(SHAPE, make_tilt_series(ctf=False), voxel_spacing=SPACING, dose=False)
    middle = tuple(n // 2 for n in SHAPE)
    return float(fft.irfftn(fft.rfftn(ball(middle, 4.0)) * weights, s=SHAPE)[middle])


@cache
def centers(*, incline: float = 0.0, free: tuple[int, int, int, float] | None = None):
    """Places zyx of balls in a slab of half the height, 13 voxels apart at least."""
    rng = np.random.default_rng(4)
    found: list[np.ndarray] = []
    while len(found) < 40:
        y, x = rng.uniform(6, SHAPE[1] - 7), rng.uniform(6, SHAPE[2] - 7)
        z = SHAPE[0] / 2 + rng.uniform(-14, 14) + incline * (x - SHAPE[2] / 2)
        place = np.array([z, y, x])
        if free is not None and np.linalg.norm(place - free[:3]) < free[3]:
            continue
        if all(np.linalg.norm(place - other) > 13 for other in found):
            found.append(place)
    return np.array(found)


def image(density, rng, *, sign=-1.0):
    """A tomogram of a density: missing wedge and noise; protein dark."""
    weights = tilt_weights(SHAPE, make_tilt_series(ctf=False), voxel_spacing=SPACING, dose=False)
    signal = fft.irfftn(fft.rfftn(density) * weights, s=SHAPE)
    signal = signal / reference_height()
    data = sign * (signal + NOISE * ramped(make_noise(rng, SHAPE)))
    return Tomogram(data=data.astype(np.float32), voxel_spacing=SPACING, origin=ORIGIN, name="t")


@cache
def planted(**options):
    places = centers(**options)
    density = np.zeros(SHAPE, dtype=np.float32)
    radii = np.random.default_rng(5).uniform(3.0, 5.0, len(places))
    for place, radius in zip(places, radii, strict=True):
        density += ball(place, radius)
    return places, density


def scores(picks, tomogram, places, *, radius=50.0):
    truth = Particles(position=tomogram.to_position(places), tomogram="t")
    found = Particles(position=picks.particles.position, tomogram="t")
    match = match_particles(found, truth, radius=radius)
    return match.precision, match.recall, match


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture
def plain(rng):
    places, density = planted()
    return places, image(density, rng)


def test_finds_balls_with_nothing_chosen(engine, plain) -> None:
    places, tomogram = plain
    picks = pick(tomogram, UnsupervisedPicker(features=engine))
    precision, recall, match = scores(picks, tomogram, places)
    assert precision >= (0.95 if engine == "invariant" else 0.85)
    assert recall >= 0.95
    assert np.median(match.distances) < 12
    assert picks.contrast == "dark"
    assert 60 < picks.diameter < 130  # they have 60 to 100 Å
    assert ((picks.particles.score > 0.5) & (picks.particles.score <= 1)).all()


@pytest.fixture
def half(plain):
    """Half of it, and the balls that lie well inside."""
    places, tomogram = plain
    part = tomogram.data[:, : SHAPE[1] // 2]
    return places[places[:, 1] < SHAPE[1] // 2], replace(tomogram, data=part)


@pytest.mark.parametrize(
    ("features", "clustering"),
    [("gabor", "kmeans"), ("gabor", "gmm"), ("fft", "kmeans"), ("intensity", "gmm")],
)
def test_the_banks_of_the_paper_find_them(features, clustering, half) -> None:
    places, tomogram = half
    picks = pick(tomogram, UnsupervisedPicker(features=features, clustering=clustering))
    precision, recall, _ = scores(picks, tomogram, places)
    assert precision >= 0.8  # balls that are cut count as wrong
    assert recall >= 0.7


def test_as_published_touching_ones_are_one_and_scores_are_one(half) -> None:
    places, tomogram = half
    picker = UnsupervisedPicker(
        features="gabor", clustering="kmeans", instances="components", paper=True
    )
    picks = pick(tomogram, picker)
    assert set(picks.particles.score.round(6)) <= {1.0}
    assert scores(picks, tomogram, places, radius=100)[1] > 0.3


def test_speckle_hardly_changes_the_number_of_picks(engine) -> None:
    picker = UnsupervisedPicker(features=engine)
    before = after = 0
    for seed in (7, 8, 9):
        rng = np.random.default_rng(seed)
        tomogram = image(planted()[1], rng)
        speckled = tomogram.data.copy()
        hit = rng.random(SHAPE) < 0.01
        speckled[hit] = rng.choice([-12, 12], np.count_nonzero(hit)) * tomogram.data.std()
        before += len(pick(tomogram, picker, contrast="dark").particles)
        after += len(pick(tomogram.with_data(speckled), picker, contrast="dark").particles)
    assert before >= 110
    assert abs(after - before) <= 0.02 * before


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_gives_almost_nothing(engine, seed) -> None:
    tomogram = image(np.zeros(SHAPE), np.random.default_rng(seed))
    assert len(pick(tomogram, UnsupervisedPicker(features=engine), contrast="dark").particles) < 5


def test_inverted_contrast_is_found_out(engine, plain) -> None:
    places, tomogram = plain
    picks = pick(tomogram.with_data(5 - 3 * tomogram.data), UnsupervisedPicker(features=engine))
    assert picks.contrast == "light"
    assert scores(picks, tomogram, places)[1] >= 0.95


def test_inclined_lamella(engine, rng) -> None:
    places, density = planted(incline=0.08)
    tomogram = image(density, rng)
    precision, recall, _ = scores(
        pick(tomogram, UnsupervisedPicker(features=engine)), tomogram, places
    )
    assert precision >= (0.95 if engine == "invariant" else 0.85)
    assert recall >= 0.93


def test_gold_beads_are_set_apart(engine, rng) -> None:
    beads = [(28, 30, 30), (25, 100, 84), (33, 30, 95)]
    places, density = planted()
    far = np.min([np.linalg.norm(places - bead, axis=1) for bead in beads], axis=0) > 16
    density = density + 12 * sum(ball(bead, 5.0) for bead in beads)
    tomogram = image(density, rng)
    picks = pick(tomogram, UnsupervisedPicker(features=engine), contrast="dark")
    index = tomogram.to_index(picks.particles.position)
    on_gold = np.min([np.linalg.norm(index - bead, axis=1) for bead in beads], axis=0) < 6
    assert on_gold.sum() <= 1
    assert len(picks.particles) <= 1.1 * len(places)
    assert scores(picks, tomogram, places[far])[1] >= 0.85


def test_a_vesicle_does_not_swamp_the_picks(engine, rng) -> None:
    center = (28, 66, 60, 38.0)
    places, density = planted(free=center)
    tomogram = image(density + vesicle(center[:3], 26.0), rng)
    picks = pick(tomogram, UnsupervisedPicker(features=engine), contrast="dark")
    precision, recall, _ = scores(picks, tomogram, places)
    assert precision >= 0.8
    assert recall >= 0.85


def test_all_workflows_and_their_consensus(half, caplog) -> None:
    places, tomogram = half
    with caplog.at_level("INFO", logger="tomoloc"):
        picks = pick(tomogram, UnsupervisedPicker(all=True))
    labels = picks.scores.labels
    assert labels[0] == CONSENSUS
    assert len(labels) == 21
    assert "gabor-gmm-components" in labels
    assert "workflows agree on" in caplog.text
    chosen = picks.particles[picks.particles.label == CONSENSUS]
    truth = Particles(position=tomogram.to_position(places), tomogram="t")
    match = match_particles(Particles(position=chosen.position, tomogram="t"), truth, radius=50.0)
    assert match.precision >= 0.8  # balls that are cut count as wrong
    assert match.recall >= 0.85


def test_votes_are_means_and_silent_workflows_have_none() -> None:
    here, there = [0.0, 0, 0], [500.0, 0, 0]
    position, score = agree(
        {
            "a": (np.array([here, there]), np.array([0.9, 0.4])),
            "b": (np.array([[20.0, 0, 0]]), np.array([0.7])),
            "c": (np.zeros((0, 3)), np.zeros(0)),
        }
    )
    np.testing.assert_allclose(position, [here, there])
    np.testing.assert_allclose(score, [0.8, 0.2])


def test_segmentation_numbers_the_particles(plain) -> None:
    _, tomogram = plain
    bright = tomogram.with_data(-tomogram.data)
    (found,) = UnsupervisedPicker(features="invariant").find_instances(bright).values()
    labels = found.labels.data
    sure = np.flatnonzero(found.score > 0.5)
    place = np.rint(found.labels.to_index(found.position[sure])).astype(int)
    assert (labels[tuple(place.T)] == sure + 1).mean() > 0.9
    assert 50 < found.typical_diameter < 130


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": "wavelet"}, "a workflow is learned"),
        ({"paper": True}, "paper needs features"),
        ({"diameter": -1.0}, "diameter must be positive"),
        ({"smallest": 600.0}, "in this order"),
    ],
)
def test_wrong_parameters_are_told(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        UnsupervisedPicker(**given)


def test_too_coarse_voxels_are_refused() -> None:
    with pytest.raises(ValueError, match="too coarse"):
        UnsupervisedPicker(features="gabor").working_spacing(40.0)
