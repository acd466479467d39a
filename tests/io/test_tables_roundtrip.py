"""Every dialect to every other, on a tomogram with three different sides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoloc.io.tables import DIALECTS, Frame, read_table, write_particles
from tomoloc.types import Particles

SHAPE, SPACING = (41, 64, 96), 7.84
STARS = ["tomoloc", "relion3", "relion4", "relion5", "warp"]


@pytest.fixture
def particles(rng):
    n = 12
    return Particles(
        position=rng.uniform(0, np.array(SHAPE[::-1]) * SPACING, (n, 3)),
        label=rng.choice(["ribosome", "proteasome 26S"], n),
        tomogram="TS_01",
        score=rng.uniform(0.1, 0.9, n),
        rotation=Rotation.from_quat(rng.normal(size=(n, 4))),
        extra={
            "rlnTomoMdocName": np.array([f"0{k}" for k in range(n)]),
            "rlnClassNumber": np.arange(n) % 3,
            "someNumber": rng.normal(size=n) * 1e-4,
        },
    )


def there_and_back(particles, folder, dialect, frame):
    path = folder / f"TS_01{DIALECTS[dialect].suffixes[0]}"
    folder.mkdir(exist_ok=True)
    frames = {particles.tomograms[0]: frame}
    write_particles(particles, path, dialect=dialect, frames=frames, box_size=20)
    return read_table(
        path, dialect=dialect, voxel_spacing=frame.voxel_spacing, shape=frame.shape
    ).particles


def assert_same(after, before, holds):
    """Compare what the dialects hold; copick and IMOD group by label, so order by position."""
    a, b = (np.lexsort(np.round(p.position, 1).T) for p in (after, before))
    np.testing.assert_allclose(after.position[a], before.position[b], atol=0.01 * SPACING)
    if "label" in holds:
        assert list(after.label[a]) == list(before.label[b])
    if "score" in holds:
        np.testing.assert_allclose(after.score[a], before.score[b], rtol=1e-6)
    if "rotation" in holds:
        turn = (after[a].rotation.inv() * before[b].rotation).magnitude()
        assert np.degrees(turn).max() < 0.01
    if "extra" in holds:
        for name, values in before.extra.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(after.extra[name][a], values[b], rtol=1e-6)
            else:
                assert list(after.extra[name][a]) == list(values[b])


@pytest.mark.parametrize("first", DIALECTS)
def test_any_to_any(tmp_path, particles, first):
    frame = Frame("TS_01", SHAPE, SPACING)
    if "{label}" in DIALECTS[first].layout:
        particles = particles[particles.label == "ribosome"]
    middle = there_and_back(particles, tmp_path / "first", first, frame)
    assert_same(middle, particles, DIALECTS[first].holds)
    for second in DIALECTS:
        if "{label}" in DIALECTS[second].layout and len(middle.labels) > 1:
            middle_one = middle[middle.label == middle.labels[0]]
        else:
            middle_one = middle
        last = there_and_back(middle_one, tmp_path / "second", second, frame)
        holds = set(DIALECTS[first].holds) & set(DIALECTS[second].holds)
        assert_same(last, middle_one, holds)


@pytest.mark.parametrize(("first", "second"), [*itertools.product(STARS, STARS)])
def test_unknown_columns_survive(tmp_path, particles, first, second):
    frame = Frame("TS_01", SHAPE, SPACING)
    middle = there_and_back(particles, tmp_path / "a", first, frame)
    last = there_and_back(middle, tmp_path / "b", second, frame)
    assert_same(last, particles, {"extra", "label", "score", "rotation"})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_empty_stays_empty(tmp_path, dialect):
    empty = Particles(
        position=np.zeros((0, 3)),
        score=np.zeros(0),
        rotation=Rotation.from_quat(np.zeros((0, 4))),
        extra={"someNumber": np.zeros(0)},
    )
    path = tmp_path / f"none{DIALECTS[dialect].suffixes[0]}"
    frames = {"TS_01": Frame("TS_01", SHAPE, SPACING)}
    write_particles(empty, path, dialect=dialect, frames=frames, box_size=8)
    after = read_table(path, dialect=dialect, voxel_spacing=SPACING, shape=SHAPE)
    assert len(after.particles) == 0
    if dialect in STARS:
        assert after.particles.score.shape == (0,)
        assert after.particles.rotation is not None
        assert next(iter(after.particles.extra)) == "someNumber"
    if dialect == "tomoloc":
        assert after.frames == frames
        assert read_table(path).dialect == "tomoloc"


def two_tomograms(particles):
    names = np.where(np.arange(len(particles)) % 3, "TS_01", "lamella.2")
    return Particles(
        position=particles.position,
        label=particles.label,
        tomogram=names,
        score=particles.score,
        rotation=particles.rotation,
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_several_tomograms(tmp_path, particles, dialect):
    """Where one file cannot hold them a folder does, and reading the folder gives them back."""
    before, kind = two_tomograms(particles), DIALECTS[dialect]
    frames = {name: Frame(name, SHAPE, SPACING) for name in before.tomograms}
    options = {"dialect": dialect, "frames": frames, "box_size": 20}
    path = tmp_path / "list"
    if kind.layout:
        with pytest.raises(ValueError, match="give the name of a folder"):
            write_particles(before, path.with_suffix(kind.suffixes[0]), **options)
        assert not list(tmp_path.iterdir())
    write_particles(before, path, **options)
    assert path.is_dir() == bool(kind.layout)
    after = read_table(path, dialect=dialect, voxel_spacing=SPACING, shape=SHAPE).particles
    assert_same(after, before, kind.holds)
    tail = ".tomostar" if dialect == "warp" else ""
    assert set(after.tomograms) == {f"{name}{tail}" for name in before.tomograms}
    if kind.layout:
        assert read_table(path, voxel_spacing=SPACING, shape=SHAPE).dialect == dialect


def test_frames_of_two_spacings(tmp_path, particles):
    before = two_tomograms(particles)
    frames = {"TS_01": Frame("TS_01", SHAPE, 7.84), "lamella.2": Frame("lamella.2", SHAPE, 8.0)}
    write_particles(before, tmp_path / "a.star", frames=frames)
    after = read_table(tmp_path / "a.star")
    assert after.frames == frames
    np.testing.assert_allclose(after.particles.position, before.position, atol=1e-4)


def test_exact_extent_survives(tmp_path, particles):
    """A binned tomogram of odd size is not quite as large as the unbinned one."""
    frame = Frame("TS_01", None, 12.0, (7334.8, 10002.0, 2333.8))
    assert frame.shape == (194, 834, 611)
    write_particles(particles, tmp_path / "a.star", frames={"TS_01": frame})
    after = read_table(tmp_path / "a.star")
    assert after.frames["TS_01"] == frame
    write_particles(particles, tmp_path / "b.star", dialect="relion5", frames=after.frames)
    text = (tmp_path / "b.star").read_text().splitlines()
    first = next(line for line in text if line.startswith("TS_01")).split()
    np.testing.assert_allclose(
        np.array(first[1:4], dtype=float) + np.array(frame.extent) / 2,
        particles.position[0],
        atol=1e-4,
    )


def test_same_bytes_and_no_overwriting(tmp_path, particles):
    frames = {"TS_01": Frame("TS_01", SHAPE, SPACING)}
    for name in "ab":
        write_particles(particles, tmp_path / f"{name}.star", frames=frames)
    assert (tmp_path / "a.star").read_bytes() == (tmp_path / "b.star").read_bytes()
    with pytest.raises(FileExistsError, match="already exists"):
        write_particles(particles, tmp_path / "a.star", frames=frames, overwrite=False)


def test_poles_need_no_warning(tmp_path):
    """At tilt 0 and 180 the Euler angles are not unique; the rotation still is."""
    rotation = Rotation.from_matrix([np.eye(3), np.diag([1.0, -1, -1]), np.diag([-1.0, 1, -1])])
    particles = Particles(position=np.ones((3, 3)), tomogram="TS_01", rotation=rotation)
    frame = Frame("TS_01", SHAPE, SPACING)
    for dialect in ("tomoloc", "relion4", "dynamo", "csv"):
        after = there_and_back(particles, tmp_path / dialect, dialect, frame)
        assert np.degrees((after.rotation.inv() * rotation).magnitude()).max() < 0.01
