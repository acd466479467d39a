"""What `tomoloc simulate` writes, read by the programs of others alone: everything agrees."""

from __future__ import annotations

import json

import mrcfile
import numpy as np
import pytest
import starfile
from scipy.spatial import cKDTree

from tomoloc.cli.main import main

TOML = """
name = "cell"

[specimen]
shape = [48, 88, 96]
clearance = 20

[microscope]
tilt_step = 4
dose_e_per_a2 = 400
defocus_um = [2, 3]

[reconstruction]
binning = {binning}
halves = true

[[membranes]]
shape = "sphere"
diameter = 300
undulation = 0
label = "vesicle"

[[filaments]]
kind = "actin"

[[species]]
structure = {{ seed = 14, mass_kda = 900 }}
count = 4
label = "large"
conformers = 2

[[species]]
structure = {{ seed = 2, mass_kda = 400 }}
count = 5
label = "small"
role = "distractor"
"""


@pytest.fixture(scope="module", params=[1, 2])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("cell")
    (place / "cell.toml").write_text(TOML.format(binning=request.param))
    assert main(["simulate", str(place / "cell.toml"), "--seed", "4", "-o", str(place)]) == 0
    return place / "cell_000"


@pytest.fixture(scope="module")
def volumes(folder):
    names = ("tomogram", "labels", "instances", "tomogram_half1", "tomogram_half2")
    volumes = {}
    for name in names:
        with mrcfile.open(folder / f"{name}.mrc") as mrc:
            volumes[name] = mrc.data.copy()
            spacing = float(mrc.voxel_size.x)
    return {**volumes, "spacing": spacing}


@pytest.fixture(scope="module")
def tables(folder):
    names = ("particles", "membranes", "filaments")
    files = {name: starfile.read(folder / f"{name}.star", always_dict=True) for name in names}
    return {name: blocks["particles"] for name, blocks in files.items()}


@pytest.fixture(scope="module")
def legend(folder):
    return {int(k): name for k, name in json.loads((folder / "labels.json").read_text()).items()}


def index_of(table):
    return table[[f"rlnCoordinate{axis}" for axis in "ZYX"]].to_numpy(dtype=float)


def test_all_volumes_have_one_grid(volumes, folder):
    shapes = {values.shape for name, values in volumes.items() if name != "spacing"}
    assert len(shapes) == 1
    assert volumes["spacing"] * np.array(shapes.pop()) == pytest.approx([480, 880, 960])
    blocks = starfile.read(folder / "particles.star", always_dict=True)
    assert float(blocks["tomoloc"]["tomolocVoxelSpacing"]) == pytest.approx(volumes["spacing"])


def test_particles_lie_in_their_own_instances(volumes, tables, legend):
    table, instances = tables["particles"], volumes["instances"]
    assert sorted(table.tomolocLabel) == ["large"] * 4 + ["small"] * 5
    at_center = instances[tuple(np.rint(index_of(table)).astype(int).T)]
    assert (at_center == table.tomolocInstance).mean() > 0.8  # a few complexes are hollow
    for row, center in zip(table.itertuples(), index_of(table), strict=True):
        voxels = np.argwhere(instances == row.tomolocInstance)
        assert np.linalg.norm(voxels.mean(axis=0) - center) < 1.0
        (value,) = np.unique(volumes["labels"][tuple(voxels.T)])
        assert legend[value] == row.tomolocLabel


def test_every_instance_is_in_one_table(volumes, tables, folder):
    listed = [number for table in tables.values() for number in set(table.tomolocInstance)]
    assert len(listed) == len(set(listed))
    assert set(np.unique(volumes["instances"])) == {0, *listed}
    ranges = json.loads((folder / "scene.json").read_text())["instances"]
    for name, table in tables.items():
        first, count = ranges[name]["first"], ranges[name]["count"]
        assert set(table.tomolocInstance) == set(range(first, first + count))


@pytest.mark.parametrize(
    ("name", "label", "axis"),
    [("membranes", "vesicle", "tomolocNormal"), ("filaments", "actin", "tomolocTangent")],
)
def test_points_lie_in_their_bodies(volumes, tables, legend, name, label, axis):
    table, spacing = tables[name], volumes["spacing"]
    for number, points in table.groupby("tomolocInstance"):
        voxels = np.argwhere(volumes["instances"] == number)
        (value,) = np.unique(volumes["labels"][tuple(voxels.T)])
        assert legend[value] == label
        index = index_of(points)
        inside = ((index > -0.5) & (index < np.array(volumes["labels"].shape) - 0.5)).all(axis=1)
        assert inside.mean() > 0.7  # filaments go through the volume's sides
        # The axis of actin lies between its subunits: points need not be in a body, but at it.
        gap, _ = cKDTree(voxels * spacing).query(index[inside] * spacing)
        assert gap.max() < 25
        gap, _ = cKDTree(index * spacing).query(voxels * spacing)
        assert gap.max() < 60
    lengths = np.linalg.norm(table[[f"{axis}{x}" for x in "XYZ"]].to_numpy(), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_normals_of_a_vesicle_point_outwards(tables, volumes):
    table = tables["membranes"]
    normals = table[[f"tomolocNormal{x}" for x in "ZYX"]].to_numpy()
    points = index_of(table) * volumes["spacing"]
    # The sphere through all points: |p|^2 = 2 p.c + r^2 - c^2 is linear in what is sought.
    system = np.column_stack([2 * points, np.ones(len(points))])
    *center, rest = np.linalg.lstsq(system, (points**2).sum(axis=1))[0]
    assert np.sqrt(rest + np.dot(center, center)) == pytest.approx(150, abs=2)
    cosines = ((points - center) * normals).sum(axis=1) / 150
    assert cosines.min() > 0.98


def test_bodies_are_dark_in_the_tomogram_and_in_both_halves(volumes):
    labels = volumes["labels"]
    for name in ("tomogram", "tomogram_half1", "tomogram_half2"):
        values = volumes[name]
        ice = values[labels == 0].mean()
        for label in np.unique(labels[labels > 0]):
            assert values[labels == label].mean() < ice - 0.2 * values.std()


def test_halves_have_noise_of_their_own(volumes):
    first, second = volumes["tomogram_half1"].ravel(), volumes["tomogram_half2"].ravel()
    shared = np.corrcoef(first, second)[0, 1]
    whole = np.corrcoef(first, volumes["tomogram"].ravel())[0, 1]
    assert 0.05 < shared < whole < 0.99
