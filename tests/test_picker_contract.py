"""What every registered picker owes its users."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass, replace
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


@pytest.fixture(params=list(PICKERS))
def picker(request):
    assert request.param in EXAMPLES, "add parameters for the new picker to EXAMPLES"
    return load_picker(request.param)(**EXAMPLES[request.param])


def hits(picks, truth) -> int:
    distance = np.linalg.norm(picks.particles.position[:, None] - truth.position, axis=2)
    return len(set(distance.argmin(axis=1)[distance.min(axis=1) < 25]))


def test_finds_planted_particles(picker, scene) -> None:
    tomogram, truth = scene
    before = tomogram.data.copy()
    picks = pick(tomogram, picker)
    assert hits(picks, truth) >= 5
    assert len(picks.particles) <= 7
    assert picks.contrast == "dark"
    assert set(picks.particles.tomograms) == {"planted"}
    np.testing.assert_array_equal(tomogram.data, before)


def test_contrast_scale_and_offset_do_not_matter(picker, scene) -> None:
    tomogram, _ = scene
    first = pick(tomogram, picker)
    second = pick(tomogram.with_data(-40 * tomogram.data + 1000), picker)
    assert second.contrast == "light"
    np.testing.assert_allclose(first.particles.position, second.particles.position, atol=0.5)


def test_same_seed_same_answer(picker, scene) -> None:
    first, second = (pick(scene[0], picker).particles for _ in range(2))
    assert first.position.tobytes() == second.position.tobytes()
    assert first.score.tobytes() == second.score.tobytes()


def test_noise_gives_almost_nothing(picker, scene) -> None:
    # A picker that states one false particle in a tomogram has more in a few of many.
    counts = []
    for seed in range(3):
        noise = make_noise(np.random.default_rng(seed))
        counts.append(len(pick(scene[0].with_data(noise), picker, contrast="dark").particles))
    assert np.mean(counts) <= 2


def test_mask_threshold_distance_and_limit(picker, scene) -> None:
    tomogram, truth = scene
    half = np.zeros(tomogram.shape)
    half[: tomogram.shape[0] // 2] = 1
    mask = Volume(data=half, voxel_spacing=tomogram.voxel_spacing, origin=tomogram.origin)
    masked = pick(tomogram, picker, mask=mask)
    index = tomogram.to_index(masked.particles.position)[:, 0]
    assert 0 < len(index) < len(truth)
    assert index.max() < tomogram.shape[0] // 2 + 0.5
    assert len(pick(tomogram, picker, max_particles=2).particles) == 2
    assert len(pick(tomogram, picker, threshold=1e9).particles) == 0
    many = pick(tomogram, picker, threshold=-1e9, min_distance=40).particles
    few = pick(tomogram, picker, threshold=-1e9, min_distance=160).particles
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
