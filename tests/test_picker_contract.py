"""What every registered picker owes its users."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tomoloc.io.targets import Targets
from tomoloc.pickers import PICKERS, load_picker
from tomoloc.pickers.pick import pick
from tomoloc.types import Tomogram, Volume

sys.path.insert(0, str(Path(__file__).parent / "pickers"))
from handmade import BRIGHT, make_blob_model, make_class_model, make_heat_model
from planting import make_lobes, make_noise, plant

LOBES = make_lobes([(0, 0, 0), (55, 0, 0), (0, 40, 30)], [38, 26, 22], name="lobes")
BLOBS = make_blob_model()
EXAMPLES = {
    "template": {"template": LOBES, "angular_step": 36.0},
    "unsupervised": {"features": "invariant"},
    "embedding": {
        "reference": Targets(vectors=BRIGHT, label="lobes", model=BLOBS.identity),
        "model": BLOBS,
        "device": "cpu",
    },
    "segmentation": {"model": make_class_model(), "device": "cpu"},
    "centroid": {"model": make_heat_model(steepness=10.0), "device": "cpu"},
}
"""Parameters with which each picker should find the planted particles."""


@pytest.fixture(scope="module")
def scene():
    return plant(LOBES, n=6, noise=1.0, rng=np.random.default_rng(3))


@pytest.fixture(scope="module", params=list(PICKERS))
def picker(request):
    assert request.param in EXAMPLES, "add parameters for the new picker to EXAMPLES"
    return load_picker(request.param)(**EXAMPLES[request.param])


@pytest.fixture(scope="module")
def picks(picker, scene):
    """What is found in the scene, once for all tests."""
    tomogram = scene[0]
    before = tomogram.data.copy()
    found = pick(tomogram, picker)
    np.testing.assert_array_equal(tomogram.data, before)
    return found


def hits(picks, truth) -> int:
    distance = np.linalg.norm(picks.particles.position[:, None] - truth.position, axis=2)
    return len(set(distance.argmin(axis=1)[distance.min(axis=1) < 25]))


def test_finds_planted_particles(picks, scene) -> None:
    assert hits(picks, scene[1]) >= 5
    assert len(picks.particles) <= 7
    assert picks.contrast == "dark"
    assert set(picks.particles.tomograms) == {"planted"}


def test_contrast_scale_and_offset_do_not_matter(picker, picks, scene) -> None:
    tomogram, _ = scene
    other = pick(tomogram.with_data(-40 * tomogram.data + 1000), picker)
    assert other.contrast == "light"
    np.testing.assert_allclose(picks.particles.position, other.particles.position, atol=0.5)


def test_same_seed_same_answer(picker, picks, scene) -> None:
    first, second = picks.particles, pick(scene[0], picker).particles
    assert first.position.tobytes() == second.position.tobytes()
    assert first.score.tobytes() == second.score.tobytes()


def test_noise_gives_almost_nothing(picker, scene) -> None:
    # A picker that states one false particle in a tomogram has more in a few of many.
    counts = []
    for seed in range(3):
        noise = make_noise(np.random.default_rng(seed))
        counts.append(len(pick(scene[0].with_data(noise), picker, contrast="dark").particles))
    assert np.mean(counts) <= 2


def test_mask_threshold_distance_and_limit(picker, picks, scene) -> None:
    tomogram, truth = scene
    known = partial(pick, tomogram, picker, scores=picks.scores)
    half = np.zeros(tomogram.shape)
    half[: tomogram.shape[0] // 2] = 1
    mask = Volume(data=half, voxel_spacing=tomogram.voxel_spacing, origin=tomogram.origin)
    masked = known(mask=mask)
    index = tomogram.to_index(masked.particles.position)[:, 0]
    assert 0 < len(index) < len(truth)
    assert index.max() < tomogram.shape[0] // 2 + 0.5
    assert len(known(max_particles=2).particles) == 2
    assert len(known(threshold=1e9).particles) == 0
    many = known(threshold=-1e9, min_distance=40).particles
    few = known(threshold=-1e9, min_distance=160).particles
    assert len(few) < len(many)
    with pytest.raises(ValueError, match="must agree"):
        pick(tomogram, picker, mask=Volume(data=np.ones((4, 5, 6)), voxel_spacing=10))


def test_finer_tomogram_is_rescaled(picker, scene) -> None:
    from tomoloc.physics.filters import rescale

    tomogram, truth = scene
    fine = rescale(tomogram, 4.0)
    wanted = replace(picker, diameter=150.0) if hasattr(picker, "diameter") else picker
    picks = pick(fine, wanted)
    assert picks.scores.voxel_spacing >= 4.0
    assert hits(picks, truth) >= 5


def test_parameters_are_fields_with_documentation(picker) -> None:
    assert is_dataclass(picker)
    again = replace(picker)
    for item in fields(picker):
        assert getattr(again, item.name) is getattr(picker, item.name)
        assert f"\n    {item.name} : " in type(picker).__doc__


def test_empty_tomogram_scores_below_any_sense(picker, scene) -> None:
    tomogram = scene[0]
    flat = Tomogram(
        data=np.zeros(tomogram.shape, dtype=np.float32),
        voxel_spacing=tomogram.voxel_spacing,
        tilt_series=tomogram.tilt_series,
    )
    assert len(pick(flat, picker, contrast="dark", threshold=0.01).particles) == 0
