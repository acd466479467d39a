"""Whole samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoloc.physics.potential import ICE_POTENTIAL
from tomoloc.simulate.helices import make_subunit
from tomoloc.simulate.molecules import load_structure
from tomoloc.simulate.recipe import (
    Recipe,
    recipe_from_mapping,
    recipe_to_mapping,
    shipped_recipes,
)
from tomoloc.simulate.references import add_particles, make_reference
from tomoloc.simulate.scene import Simulator, numbered_recipes
from tomoloc.simulate.settings import (
    BuiltIn,
    Carbon,
    Contamination,
    Filaments,
    Gold,
    Membranes,
    Microscope,
    Part,
    Range,
    Reconstruction,
    Species,
    Specimen,
)
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
    outside = density[~ndimage.binary_dilation(inside, iterations=2)]
    ice = outside > -ICE_POTENTIAL / 2
    assert np.abs(outside[ice]).max() < 0.5
    # Of 36 slices, the recipe's 300 to 350 Å of ice leave one to six in vacuum.
    assert 1 / 36 < (~ice).mean() < 6.5 / 36
    assert np.median(density[0]) == pytest.approx(-ICE_POTENTIAL, rel=1e-3)


def test_protein_is_dark_in_the_tomogram(sample):
    tomogram, density = sample.tomogram.data, sample.density.data
    assert tomogram.dtype == np.float32
    ice = slice(4, -4)
    assert np.corrcoef(-tomogram[ice].ravel(), density[ice].ravel())[0, 1] > 0.1
    assert tomogram[sample.instances.data > 0].mean() < -0.2


def test_tilt_series_tells_how_it_was_taken(sample):
    series, microscope = sample.tomogram.tilt_series, sample.scene.recipe.microscope
    np.testing.assert_allclose(series.tilt_angles, np.arange(-60, 61, 6))
    assert series.dose_e_per_a2.max() == pytest.approx(120)
    np.testing.assert_allclose(series.ctf.defocus_u_um, microscope.defocus_um)
    assert series.images.shape == (21, 56, 64)
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


CELL = Recipe(
    name="cell",
    specimen=Specimen(shape=(48, 96, 88), voxel_spacing=12.0, roughness=8.0, thickness=500.0),
    microscope=Microscope(tilt_step=6, tilt_error=0.2, shift_error=2.0, motion=2.0),
    gold=Gold(count=2, diameter=80.0),
    carbon=Carbon(edge=380.0),
    contamination=Contamination(count=1, diameter=150.0),
    membranes=(Membranes(shape="sphere", diameter=360.0, label="vesicle"),),
    filaments=(
        Filaments(kind="actin", count=2),
        Filaments(kind="cofilactin", parts=(Part(label="cofilin", chains=("B",)),)),
    ),
    species=(
        Species(
            structure=BuiltIn(seed=9, mass_kda=600, symmetry="C2"),
            count=6,
            label="pair",
            location="cytosol",
            conformers=2,
            rmsd=3.0,
            parts=(Part(label="half", chains=("A",)),),
        ),
        Species(
            structure=BuiltIn(seed=16, mass_kda=250, symmetry="C4"),
            count=4,
            label="channel",
            location="membrane",
            membrane="vesicle",
        ),
        Species(
            structure=BuiltIn(seed=5, mass_kda=60),
            concentration_um=400,
            label="cargo",
            role="distractor",
            location="lumen",
        ),
    ),
)


@pytest.fixture(scope="module")
def cell():
    simulator = Simulator(CELL)
    return simulator.render(simulator.draw(np.random.default_rng(2), name="cell_002"))


def test_everything_is_in_a_cell_and_has_its_number(cell):
    instances, labels = cell.instances.data, cell.labels.data
    numbers = {name: value for value, name in cell.legend.items()}
    assert list(cell.legend.values()) == [
        "pair", "half", "channel", "cargo", "actin", "cofilactin", "cofilin",
        "vesicle", "gold", "carbon", "contamination",
    ]  # fmt: skip
    ranges = cell.summary["instances"]
    assert ranges["particles"] == {"first": 1, "count": len(cell.particles)}
    for kind, names in {
        "filaments": {"actin", "cofilactin", "cofilin"},
        "membranes": {"vesicle"},
        "gold": {"gold"},
        "carbon": {"carbon"},
        "contamination": {"contamination"},
    }.items():
        first, count = ranges[kind]["first"], ranges[kind]["count"]
        own = (instances >= first) & (instances < first + count)
        assert own.sum() > 20
        assert set(np.unique(labels[own])) <= {numbers[name] for name in names}
    last = ranges["contamination"]
    assert instances.max() < last["first"] + last["count"]
    assert ((labels > 0) == (instances > 0)).all()
    assert cell.summary["parts"] == {"half": "pair", "cofilin": "cofilactin"}


def test_particles_of_a_cell_lie_in_their_own_instances(cell):
    particles, grid = cell.particles, cell.instances
    assert set(particles.label) == {"pair", "channel", "cargo"}
    index = np.rint(grid.to_index(particles.position)).astype(int)
    np.testing.assert_array_equal(grid.data[tuple(index.T)], np.arange(1, len(particles) + 1))
    numbers = {name: value for value, name in cell.legend.items()}
    for label, allowed in {"pair": ("pair", "half"), "channel": ("channel",)}.items():
        rows = np.flatnonzero(particles.label == label) + 1
        found = np.unique(cell.labels.data[np.isin(grid.data, rows)])
        assert set(found) == {numbers[name] for name in allowed}
    # One chain of a pair is half of it.
    pair, half = ((cell.labels.data == numbers[name]).sum() for name in ("pair", "half"))
    assert 0.6 < pair / half < 1.6


def test_columns_tell_role_conformer_and_membrane(cell):
    extra, label = cell.particles.extra, cell.particles.label
    assert set(extra["tomolocRole"][label == "cargo"]) == {"distractor"}
    assert set(extra["tomolocRole"][label != "cargo"]) == {"target"}
    assert set(extra["tomolocConformer"][label == "pair"]) == {1, 2}
    np.testing.assert_allclose(extra["tomolocConformerRmsd"][label == "pair"], 3.0, atol=0.2)
    assert set(extra["tomolocConformer"][label != "pair"]) == {0}
    bilayer = cell.summary["instances"]["membranes"]["first"]
    assert set(extra["tomolocMembrane"][label == "channel"]) == {bilayer}
    assert set(extra["tomolocMembrane"][label != "channel"]) == {0}


def test_tables_of_membranes_and_filaments(cell):
    for table, kind in ((cell.membranes, "membranes"), (cell.filaments, "filaments")):
        index = np.rint(cell.instances.to_index(table.position)).astype(int)
        inside = cell.instances.contains(table.position)
        found = cell.instances.data[tuple(index[inside].T)]
        own = table.extra["tomolocInstance"][inside]
        first = cell.summary["instances"][kind]
        assert set(own) == set(range(first["first"], first["first"] + first["count"]))
        # Points next to a voxel's border, in crevices or under a protein lie in another's.
        assert (found == own).mean() > (0.8 if kind == "membranes" else 0.5)
    middle = cell.membranes.position.mean(axis=0)
    normal = cell.membranes.rotation.as_matrix()[:, :, 2]
    outward = cell.membranes.position - middle
    cosine = (normal * outward).sum(axis=1) / np.linalg.norm(outward, axis=1)
    assert np.median(cosine) > 0.9  # the sphere undulates


def test_the_table_turns_a_filaments_subunit_to_its_place(cell):
    """A subunit of the file, placed by the table, is where the density is."""
    settings = CELL.filaments[1]
    subunit = make_reference(make_subunit(settings), voxel_spacing=12.0)
    kind = np.flatnonzero(cell.filaments.label == "cofilactin")
    rotation = Rotation.from_quat(cell.filaments.rotation.as_quat()[kind])
    out = rotation.apply([*subunit.center[:2], 0.0])
    density = np.zeros_like(cell.density.data)
    add_particles(
        density,
        np.zeros(density.shape, np.uint16),
        [subunit],
        index=cell.density.to_index(cell.filaments.position[kind] + out),
        rotation=rotation,
        species=np.zeros(len(kind), int),
    )
    own = np.isin(cell.instances.data, np.unique(cell.filaments.extra["tomolocInstance"][kind]))
    # The table ends where the volume does; what is left out of it shows a little at the sides.
    own[:, [0, 1, 2, 3, -4, -3, -2, -1]] = own[:, :, [0, 1, 2, 3, -4, -3, -2, -1]] = False
    own[[0, 1, 2, 3, -4, -3, -2, -1]] = False
    assert own.sum() > 50
    assert np.corrcoef(density[own], cell.density.data[own])[0, 1] > 0.9


def test_a_resolved_cell_gives_itself_again(cell):
    mapping = recipe_to_mapping(cell.scene.recipe)
    again = Simulator(recipe_from_mapping(mapping))
    other = again.render(again.draw())
    assert same(cell, other)
    np.testing.assert_array_equal(cell.filaments.position, other.filaments.position)
    np.testing.assert_array_equal(cell.membranes.position, other.membranes.position)


def test_binning_halves_and_truth(simulator):
    base = simulator.draw(np.random.default_rng(3))
    recipe = dataclasses.replace(base.recipe, reconstruction=Reconstruction(binning=2, halves=True))
    fine = simulator.render(base)
    sample = simulator.render(simulator.draw_resolved(recipe))
    assert sample.tomogram.shape == sample.labels.shape == (18, 28, 32)
    assert sample.tomogram.voxel_spacing == 20
    np.testing.assert_allclose(sample.tomogram.origin, 0)
    np.testing.assert_allclose(sample.particles.position, fine.particles.position - 5)
    index = np.rint(sample.instances.to_index(sample.particles.position)).astype(int)
    np.testing.assert_array_equal(
        sample.instances.data[tuple(index.T)], np.arange(1, len(index) + 1)
    )
    grown = sample.instances.data.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    both = (grown > 0) & (fine.instances.data > 0)
    assert both.sum() > 0.7 * (fine.instances.data > 0).sum()
    assert (grown[both] == fine.instances.data[both]).mean() > 0.98
    coarse = fine.tomogram.binned(2).data
    assert np.corrcoef(coarse.ravel(), sample.tomogram.data.ravel())[0, 1] > 0.6
    first, second = (half.data.ravel() for half in sample.halves)
    whole = sample.tomogram.data.ravel()
    between = np.corrcoef(first, second)[0, 1]
    assert 0.02 < between < 0.9
    assert np.corrcoef(first + second, whole)[0, 1] > 0.99


def test_a_fraction_is_filled():
    recipe = Recipe(
        name="full",
        specimen=Specimen(shape=(40, 56, 64), fraction=0.12, border="cut"),
        microscope=Microscope(tilt_step=20),
        species=(
            Species(structure=BuiltIn(seed=3, mass_kda=300), count=1, label="a"),
            Species(structure=BuiltIn(seed=4, mass_kda=100), count=5, label="b"),
        ),
    )
    simulator = Simulator(recipe)
    sample = simulator.render(simulator.draw(np.random.default_rng(0)))
    assert sample.summary["volume_fraction"] == pytest.approx(0.12, abs=0.01)
    labelled = (sample.labels.data > 0).mean()
    assert labelled == pytest.approx(0.12, abs=0.03)
    counts = {row["label"]: row["placed"] for row in sample.summary["species"]}
    assert 2.5 < counts["b"] / counts["a"] < 10


def test_memory_of_references_is_bounded(monkeypatch):
    monkeypatch.setattr("tomoloc.simulate.scene._CACHE_BYTES", 2_000_000)
    recipe = dataclasses.replace(
        RECIPE, species=(Species(structure=BuiltIn(seed=Range(1, 10**6), mass_kda=200), count=1),)
    )
    simulator = Simulator(recipe)
    for seed in range(40):
        simulator.draw(np.random.default_rng(seed))
    kept = sum(r.potential.data.nbytes for v in simulator._references.values() for r in v)
    assert 500_000 < kept <= 2_000_000


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_draw_and_render(name):
    """Each as it is, but smaller, with fewer particles and tilts."""
    recipe = shipped_recipes()[name]
    specimen = dataclasses.replace(recipe.specimen, shape=(48, 72, 80), thickness=None)
    few = tuple(
        dataclasses.replace(s, count=2, choose=None if s.choose is None else 2, conformers=0)
        for s in recipe.species
        if s.concentration_um is None
    )
    small = dataclasses.replace(
        recipe,
        specimen=dataclasses.replace(specimen, fraction=None if not specimen.fraction else 0.03),
        microscope=dataclasses.replace(recipe.microscope, tilt_step=15),
        membranes=tuple(dataclasses.replace(m, diameter=200, count=1) for m in recipe.membranes),
        species=few,
    )
    simulator = Simulator(small)
    sample = simulator.render(simulator.draw(np.random.default_rng(1)))
    assert len(sample.particles) > 2
    assert np.isfinite(sample.tomogram.data).all()
    assert sample.tomogram.data[sample.instances.data > 0].mean() < 0


@pytest.mark.parametrize("much", [{"count": 10**9}, {"concentration_um": 1e9}])
def test_more_particles_than_can_be_are_refused(much):
    recipe = Recipe(
        name="mob",
        specimen=Specimen(shape=(24, 40, 32)),
        species=(Species(structure="builtin:6", **much),),
    )
    with pytest.raises(ValueError, match=r"complex-6: .* particles are too many"):
        Simulator(recipe).draw(np.random.default_rng(0))
