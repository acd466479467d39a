"""The models that come with tomoloc: small, whole, and good at what they are for."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.evaluate import evaluate_particles
from tomoloc.features.learned import RANGES
from tomoloc.nn.stored import SHIPPED, find_model, load_model
from tomoloc.pickers.competition import Calibration
from tomoloc.pickers.embedding import EmbeddingPicker, embed_examples
from tomoloc.pickers.pick import pick
from tomoloc.pickers.segmentation import SegmentationPicker
from tomoloc.simulate.recipe import Recipe
from tomoloc.simulate.scene import Simulator
from tomoloc.simulate.settings import Filaments, Membranes, Microscope, Species, Specimen
from tomoloc.types import Particles

NAMES = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())


def test_general_comes_along():
    assert "general" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_small_whole_and_documented(name):
    folder = find_model(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12e6
    model = load_model(folder)
    assert model.config[RANGES]
    for part in ("Trained on", "How good", "Limits"):
        assert part in model.card


def test_general_is_calibrated():
    config = load_model(find_model("general")).config
    assert config["calibration"]
    assert Calibration.of(config).unlike < 0
    assert Calibration.of(config).averaged.lead > 0


@pytest.fixture(scope="module")
def scene():
    """Three complexes that no model was trained on, and none of a fourth."""
    recipe = Recipe(
        name="three",
        specimen=Specimen(shape=(72, 120, 136), voxel_spacing=10.0, border="inside"),
        microscope=Microscope(tilt_step=3.0, dose_e_per_a2=140.0, defocus_um=3.0),
        species=tuple(
            Species(structure=f"builtin:{2_000_000_000 + seed}", label=f"p{seed}", count=10)
            for seed in (1, 2, 3)
        ),
    )
    simulator = Simulator(recipe)
    return simulator.render(simulator.draw(np.random.default_rng(4)))


def test_general_finds_what_one_example_shows(scene):
    model = load_model(find_model("general"))
    tomogram, truth = scene.tomogram, scene.particles
    labels = np.asarray(truth.label)
    rows = [int(np.flatnonzero(labels == name)[0]) for name in ("p1", "p2", "p3")]
    bright = tomogram.with_data(-tomogram.data)
    targets = embed_examples(bright, truth[rows], model=model, device="cpu")
    picker = EmbeddingPicker(reference=targets, model=model, device="cpu", diameter=150.0)
    found = pick(tomogram, picker, contrast="dark").particles
    result = evaluate_particles(found, truth, radius=50.0)
    assert result.macro.chosen.f1 > 0.8
    wrong = float(np.sum(1 - np.asarray(found.score)))
    assert wrong < 0.3 * len(found)


def test_general_finds_nothing_in_noise(scene):
    model = load_model(find_model("general"))
    truth = scene.particles
    bright = scene.tomogram.with_data(-scene.tomogram.data)
    targets = embed_examples(bright, truth[[0, 12, 24]], model=model, device="cpu")
    noise = np.random.default_rng(3).normal(size=scene.tomogram.shape).astype(np.float32)
    picker = EmbeddingPicker(reference=targets, model=model, device="cpu")
    found = pick(scene.tomogram.with_data(noise), picker, contrast="dark").particles
    assert isinstance(found, Particles)
    assert len(found) <= 1


def test_cytoplasm_segments_what_one_finds_in_a_cell():
    recipe = Recipe(
        name="cell",
        specimen=Specimen(shape=(56, 128, 136), voxel_spacing=10.0, border="cut"),
        microscope=Microscope(tilt_step=3.0, dose_e_per_a2=110.0, defocus_um=3.5),
        species=(Species(structure="builtin:5", label="crowd", count=20, role="distractor"),),
        membranes=(Membranes(shape="sphere", count=1, diameter=450.0, label="membrane"),),
        filaments=(Filaments(kind="microtubule", count=1), Filaments(kind="actin", count=2)),
    )
    simulator = Simulator(recipe)
    sample = simulator.render(simulator.draw(np.random.default_rng(6)))
    found = pick(sample.tomogram, SegmentationPicker(device="cpu"), contrast="dark")
    names = {name: number for number, name in sample.legend.items()}
    for number, label in enumerate(("membrane", "microtubule", "actin"), start=1):
        said, true = found.segments.data == number, sample.labels.data == names[label]
        assert 2 * (said & true).sum() / (said.sum() + true.sum()) > 0.4, label
    label = np.asarray(found.particles.label)
    assert (label == "ribosome").sum() <= 2
    assert (label == "actin").sum() > 5
