"""Whole samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from tomoloc.simulate.recipe import (
    Microscope,
    Range,
    Recipe,
    Species,
    Specimen,
    recipe_from_mapping,
    recipe_to_mapping,
)
from tomoloc.simulate.scene import Simulator, load_structure, numbered_recipes
from tomoloc.types import Sample

RECIPE = Recipe(
    name="small",
    specimen=Specimen(shape=(36, 56, 64), thickness=Range(300, 350)),
    microscope=Microscope(tilt_step=6, defocus_um=Range(2.5, 4.0)),
    species=(
        Species(structure="builtin:19", label="ring", count=Range(3, 5)),
        Species(structure="builtin:2", label="pair", count=4),
        Species(structure="builtin:22", label="pair", count=4),
    ),
)


@pytest.fixture(scope="module")
def simulator():
    return Simulator(RECIPE)


@pytest.fixture(scope="module")
def sample(simulator):
    return simulator.render(simulator.draw(np.random.default_rng(3)))


def same(first: Sample, second: Sample) -> bool:
    volumes = ("tomogram", "labels", "instances", "density")
    return (
        all(getattr(first, v).data.tobytes() == getattr(second, v).data.tobytes() for v in volumes)
        and first.particles.position.tobytes() == second.particles.position.tobytes()
        and first.tomogram.tilt_series.images.tobytes()
        == second.tomogram.tilt_series.images.tobytes()
    )


def test_same_seed_same_bytes(simulator, sample):
    fresh = Simulator(RECIPE)
    assert same(sample, fresh.render(fresh.draw(np.random.default_rng(3))))
    assert not same(sample, simulator.render(simulator.draw(np.random.default_rng(4))))


def test_resolved_recipe_gives_the_sample_again(sample):
    mapping = recipe_to_mapping(sample.scene.recipe)
    again = Simulator(recipe_from_mapping(mapping))
    assert same(sample, again.render(again.draw()))


def test_fixing_one_thing_leaves_the_rest_to_the_same_chance(simulator):
    first = simulator.draw(np.random.default_rng(5))
    changed = dataclasses.replace(
        first.recipe, microscope=dataclasses.replace(first.recipe.microscope, defocus_um=4.5)
    )
    second = simulator.draw_resolved(changed)
    assert first.packing.position.tobytes() == second.packing.position.tobytes()
    a, b = (simulator.render(scene).tomogram.data for scene in (first, second))
    assert 0.05 < np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.95


def test_numbered_samples_depend_on_their_number_alone():
    five = numbered_recipes(RECIPE, number=5, seed=1)
    two = numbered_recipes(RECIPE, number=2, seed=1)
    assert five[:2] == two
    assert [plan.name for plan in two] == ["small_000", "small_001"]
    assert len({plan.seed for plan in five}) == 5
    assert numbered_recipes(five[3], number=1) == [five[3]]
    assert numbered_recipes(RECIPE, number=1, seed=2)[0].seed != five[0].seed


def test_table_atlas_and_tomogram_agree(sample):
    particles, grid = sample.particles, sample.instances
    index = np.rint(grid.to_index(particles.position)).astype(int)
    rows = grid.data[tuple(index.T)]
    np.testing.assert_array_equal(rows, np.arange(1, len(particles) + 1))
    assert grid.data.max() == len(particles)
    assert sample.legend == {1: "ring", 2: "pair"}
    values = {name: value for value, name in sample.legend.items()}
    expected = np.array([0, *(values[label] for label in particles.label)])
    np.testing.assert_array_equal(sample.labels.data, expected[grid.data])
    assert set(particles.tomogram) == {"small"} == {sample.tomogram.name}
    np.testing.assert_array_equal(particles.extra["tomolocInstance"], rows)
    assert len(particles.rotation) == len(particles)


def test_instances_are_where_the_density_is(sample):
    density, inside = sample.density.data, sample.instances.data > 0
    assert density[inside].mean() > 2
    assert np.abs(density[~ndimage.binary_dilation(inside, iterations=2)]).max() < 0.5


def test_protein_is_dark_in_the_tomogram(sample):
    tomogram, density = sample.tomogram.data, sample.density.data
    assert tomogram.dtype == np.float32
    assert np.corrcoef(-tomogram.ravel(), density.ravel())[0, 1] > 0.1
    assert tomogram[sample.instances.data > 0].mean() < -0.2


def test_tilt_series_tells_how_it_was_taken(sample):
    series, microscope = sample.tomogram.tilt_series, sample.scene.recipe.microscope
    np.testing.assert_allclose(series.tilt_angles, np.arange(-60, 61, 6))
    assert series.dose_e_per_a2.max() == pytest.approx(120)
    np.testing.assert_allclose(series.ctf.defocus_u_um, microscope.defocus_um)
    assert series.images.shape == (21, 56, 64)
    assert (series.images == np.rint(series.images)).all()
    assert series.pixel_spacing == 10


def test_what_does_not_fit_is_logged(caplog):
    recipe = dataclasses.replace(
        RECIPE,
        specimen=Specimen(shape=(20, 24, 28)),
        species=(Species(structure="builtin:2", label="pair", count=300),),
    )
    with caplog.at_level("WARNING", logger="tomoloc"):
        scene = Simulator(recipe).draw(np.random.default_rng(0))
    assert f"no room for more than {scene.packing.placed[0]} of 300 pair" in caplog.text


def test_an_empty_specimen_is_noise():
    recipe = dataclasses.replace(RECIPE, species=())
    simulator = Simulator(recipe)
    sample = simulator.render(simulator.draw(np.random.default_rng(0)))
    assert len(sample.particles) == 0
    assert sample.labels.data.max() == 0
    assert sample.tomogram.data.std() == pytest.approx(1, rel=1e-3)


def test_drawing_needs_a_seed(simulator):
    with pytest.raises(ValueError, match="no seed of its own"):
        simulator.draw()


def test_assemblies_are_built_on_request(shared):
    path = str(shared / "structures" / "assemblies" / "2om3.pdb.gz")
    one, many = (
        load_structure(Species(structure=path, count=1, assembly=assembly))
        for assembly in (False, True)
    )
    assert len(many.position) == 49 * len(one.position)


def test_files_as_structures(shared):
    recipe = Recipe(
        name="files",
        specimen=Specimen(shape=(48, 64, 72)),
        microscope=Microscope(tilt_step=6),
        species=(
            Species(structure=str(shared / "maps" / "5mrc_10A.mrc"), label="ribosome", count=2),
            Species(structure=str(shared / "maps" / "hsp60.mrc"), mass_kda=840, count=2),
            Species(structure=str(shared / "structures" / "train" / "1bgx.pdb.gz"), count=3),
        ),
    )
    simulator = Simulator(recipe)
    sample = simulator.render(simulator.draw(np.random.default_rng(1)))
    assert sample.particles.labels == ["1bgx", "hsp60", "ribosome"]
    assert simulator.draw(np.random.default_rng(1)).packing.placed.tolist() == [2, 2, 3]
    assert 2 < sample.density.data.max() < 9
    volume = 1000 * np.bincount(sample.labels.data.ravel())[1] / 2
    assert 3e6 < volume < 5.5e6  # 2.8 MDa at 0.81 Da/Å³ are 3.5e6 Å³, blurred to 20 Å
