from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoloc.types import CTF, Particles, Sample, ScoreMap, Structure, TiltSeries, Tomogram, Volume

SHAPE = (12, 15, 21)
ORIGIN = (40.0, -30.0, 7.5)


@pytest.fixture
def volume(rng: np.random.Generator) -> Volume:
    data = rng.standard_normal(SHAPE)
    return Volume(data=data, voxel_spacing=2.5, origin=ORIGIN, name="grid")


def test_index_is_zyx_and_position_is_xyz(volume: Volume) -> None:
    np.testing.assert_array_equal(volume.to_position([1, 2, 3]), [47.5, -25.0, 10.0])
    np.testing.assert_array_equal(volume.to_index([47.5, -25.0, 10.0]), [1, 2, 3])


def test_round_trip(volume: Volume, rng: np.random.Generator) -> None:
    position = rng.uniform(-500, 500, (4, 6, 3))
    np.testing.assert_allclose(volume.to_position(volume.to_index(position)), position)


@pytest.mark.parametrize("kind", ["crop", "strided", "binned"])
def test_derived_grids_keep_positions(volume: Volume, kind: str) -> None:
    """The coordinates of each voxel, stored as its value, must match its computed position."""
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)
    field = Volume(
        data=np.moveaxis(volume.to_position(grid), -1, 0),
        voxel_spacing=volume.voxel_spacing,
        origin=ORIGIN,
    )
    derived = {
        "crop": lambda: field.crop((2, 3, 5), (9, 11, 20)),
        "strided": lambda: field.strided(3),
        "binned": lambda: field.binned(4),
    }[kind]()
    index = np.moveaxis(np.indices(derived.shape), 0, -1)
    np.testing.assert_allclose(
        derived.to_position(index), np.moveaxis(derived.data, 0, -1), rtol=1e-5
    )


def test_center_extent_contains(volume: Volume) -> None:
    np.testing.assert_allclose(volume.extent, [52.5, 37.5, 30.0])
    np.testing.assert_allclose(volume.center, np.add(ORIGIN, [25, 17.5, 13.75]))
    inside = volume.contains([volume.center, volume.origin - 1.2, volume.origin - 1.3])
    assert inside.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxel_spacing": 0}, "pass voxel_spacing explicitly"),
        ({"voxel_spacing": np.nan}, "voxel_spacing must be positive"),
        ({"data": np.zeros((3, 4))}, "shape"),
        ({"data": np.zeros((0, 4, 5))}, "empty"),
        ({"origin": (1, 2)}, "origin"),
    ],
)
def test_bad_volumes(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Volume(**{"data": np.zeros(SHAPE), "voxel_spacing": 1.0, **change})


@pytest.mark.parametrize(
    ("start", "stop"), [((-1, 0, 0), (3, 3, 3)), ((3, 3, 3), (3, 9, 9)), ((0, 0, 0), (13, 9, 9))]
)
def test_bad_crops(volume: Volume, start: tuple, stop: tuple) -> None:
    with pytest.raises(ValueError, match="crop"):
        volume.crop(start, stop)


def test_volume_is_frozen(volume: Volume) -> None:
    with pytest.raises(AttributeError):
        volume.name = "other"
    with pytest.raises(ValueError, match="read-only"):
        volume.origin[0] = 3


def test_tomogram_and_scores_check_their_shapes() -> None:
    with pytest.raises(ValueError, match="z, y, x"):
        Tomogram(data=np.zeros((2, *SHAPE)), voxel_spacing=1)
    with pytest.raises(ValueError, match="2 labels"):
        ScoreMap(data=np.zeros((1, *SHAPE)), voxel_spacing=1, labels=("a", "b"))
    with pytest.raises(ValueError, match="together"):
        ScoreMap(
            data=np.zeros((1, *SHAPE)),
            voxel_spacing=1,
            labels=("a",),
            rotations=Rotation.identity(2),
        )


def test_particles_columns(rng: np.random.Generator) -> None:
    table = Particles(
        position=rng.standard_normal((4, 3)),
        label=["b", "a", "b", "a"],
        tomogram="one",
        score=[1, 2, 3, 4],
        rotation=Rotation.random(4, rng=rng),
        extra={"rlnClassNumber": [1, 2, 3, 4]},
    )
    some = table[np.asarray(table.label) == "a"]
    assert len(some) == 2
    assert some.score.tolist() == [2, 4]
    assert some.extra["rlnClassNumber"].tolist() == [2, 4]
    np.testing.assert_allclose(some.rotation.as_quat(), table.rotation.as_quat()[[1, 3]])
    assert table.labels == ["a", "b"]
    assert table.tomograms == ["one"]
    both = Particles.concatenate([table, some])
    assert len(both) == 6
    assert len(both.rotation) == 6


def test_empty_particles() -> None:
    table = Particles(position=[])
    assert len(table) == 0
    assert table.labels == []
    assert len(table[[]]) == 0
    assert len(Particles.concatenate([])) == 0
    full = Particles(position=np.zeros((2, 3)), rotation=Rotation.identity(2))
    assert len(full[np.zeros(2, dtype=bool)].rotation) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ["a"]}, "label must have one entry"),
        ({"score": [1, 2]}, "score must have one entry"),
        ({"extra": {"column": [1]}}, "column must have one entry"),
        ({"rotation": Rotation.identity(2)}, "rotation must have one entry"),
        ({"position": [[0, 0, np.nan]] * 3}, "particle 1"),
        ({"position": [[0, 0]] * 3}, "shape"),
    ],
)
def test_bad_particles(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Particles(**{"position": np.zeros((3, 3)), **change})


def test_tilt_series_and_ctf() -> None:
    ctf = CTF(defocus_u_um=[3, 3.1], defocus_v_um=[2.9, 3], defocus_angle=10)
    series = TiltSeries(tilt_angles=[-3, 3], dose_e_per_a2=[3, 6], ctf=ctf)
    assert len(series) == len(series.ctf) == 2
    assert series.ctf.defocus_angle.tolist() == [10, 10]
    with pytest.raises(ValueError, match=r"same number of doses as tilt angles \(2\)"):
        TiltSeries(tilt_angles=[-3, 3], dose_e_per_a2=[3])
    with pytest.raises(ValueError, match="90 degrees"):
        TiltSeries(tilt_angles=[-300])
    with pytest.raises(ValueError, match="CTF parameters for 3"):
        TiltSeries(tilt_angles=[1, 2, 3], ctf=ctf)


def test_structure_center_is_weighted() -> None:
    pair = Structure(position=[[0, 0, 0], [9, 0, 0]], atomic_number=[6, 6], weight=[2, 1])
    np.testing.assert_allclose(pair.center, [3, 0, 0])
    np.testing.assert_allclose(pair.centered().center, 0, atol=1e-12)
    assert pair.diameter == 12
    with pytest.raises(ValueError, match="needs atoms"):
        Structure(position=np.zeros((0, 3)), atomic_number=[])


def test_sample_checks_shapes() -> None:
    tomogram = Tomogram(data=np.zeros(SHAPE), voxel_spacing=5)
    wrong = Volume(data=np.zeros((3, 4, 5)), voxel_spacing=5)
    with pytest.raises(ValueError, match="labels has shape"):
        Sample(tomogram=tomogram, particles=Particles(position=[]), labels=wrong)
