"""The index of embeddings: what is in the folder is in the index, whatever happened to it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tomoloc.io import indexes
from tomoloc.io.embeddings import EmbeddingSource, read_candidates, write_embedding
from tomoloc.io.indexes import gather_index, open_index, read_index
from tomoloc.types import Particles, Volume

SOURCE = EmbeddingSource(
    tomogram=Path("TS.mrc"),
    name="TS",
    size=(60, 50, 40),
    voxel_spacing=9.5,
    contrast="dark",
    model="general:0123",
)


def add(folder, name, n, *, seed=0, channels=4, **source):
    """Write an embedding of a tomogram with random candidates."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, channels))
    particles = Particles(
        position=rng.uniform(0, 380, (n, 3)),
        tomogram=name,
        score=rng.uniform(size=n),
        extra={"tomolocEdge": rng.integers(0, 2, n)},
    )
    path = folder / f"{name}.zarr"
    write_embedding(
        path,
        replace(SOURCE, name=name, **source),
        embedding=Volume(data=np.zeros((channels + 1, 2, 2, 2)), voxel_spacing=19.0),
        finds_centers=True,
        particles=particles,
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        dense=False,
    )
    return path


def check(index, folder):
    """What the embeddings hold is what the index holds."""
    paths = sorted(folder.glob("*.zarr"))
    assert [entry.embedding for entry in index.tomograms] == [path.name for path in paths]
    for path in paths:
        particles, vectors = read_candidates(path)
        rows = index.rows(path.stem)
        np.testing.assert_array_equal(index.vector[rows], vectors)
        np.testing.assert_allclose(index.position[rows], particles.position, rtol=1e-6)
        np.testing.assert_array_equal(index.score[rows], particles.score)
        np.testing.assert_array_equal(index.edge[rows], particles.extra["tomolocEdge"])
    assert len(index) == sum(entry.n for entry in index.tomograms)


@pytest.fixture
def folder(tmp_path):
    for i, n in enumerate((5, 0, 9)):
        add(tmp_path, f"TS_{i}", n, seed=i)
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """Names of the embeddings that are opened."""
    seen, read = [], indexes.read_embedding

    def count(path):
        seen.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(indexes, "read_embedding", count)
    return seen


def test_the_index_holds_all_candidates(folder):
    index = open_index(folder)
    check(index, folder)
    assert index.model == "general:0123"
    assert isinstance(index.vector, np.memmap)
    assert (index.vector.dtype, index.position.dtype) == (np.float16, np.float32)
    assert sorted(path.name for path in folder.iterdir()) == [
        "TS_0.zarr", "TS_1.zarr", "TS_2.zarr", "index",
    ]  # fmt: skip


def test_rows_become_particles_of_their_tomograms(folder):
    index = open_index(folder)
    particles = index.particles([13, 4, 5], label=["b", "a", "b"], score=[0.9, 0.8, 0.7])
    assert particles.tomogram.tolist() == ["TS_2", "TS_0", "TS_2"]
    assert particles.label.tolist() == ["b", "a", "b"]
    whole, _ = read_candidates(folder / "TS_2.zarr")
    np.testing.assert_allclose(particles.position[[0, 2]], whole.position[[8, 0]], rtol=1e-6)
    np.testing.assert_array_equal(
        particles.extra["tomolocEdge"][:1], whole.extra["tomolocEdge"][8:]
    )
    np.testing.assert_array_equal(particles.extra["tomolocCenterProbability"][2], whole.score[0])
    frame = index.frames["TS_2"]
    assert (frame.shape, frame.voxel_spacing) == ((40, 50, 60), 9.5)


def test_nothing_is_read_that_is_known(folder, reads):
    open_index(folder)
    reads.clear()
    before = (folder / "index").stat().st_mtime_ns
    check(open_index(folder), folder)
    assert reads == []
    assert (folder / "index").stat().st_mtime_ns == before


def test_added_replaced_and_removed_tomograms(folder, reads):
    open_index(folder)
    reads.clear()
    add(folder, "TS_05", 7, seed=8)
    check(open_index(folder), folder)
    assert reads == ["TS_05.zarr"]
    reads.clear()
    add(folder, "TS_2", 3, seed=9)
    check(open_index(folder), folder)
    assert reads == ["TS_2.zarr"]
    reads.clear()
    shutil.rmtree(folder / "TS_0.zarr")
    check(open_index(folder), folder)
    assert reads == []


def test_a_folder_of_tomograms_without_candidates(tmp_path):
    add(tmp_path, "TS", 0)
    for _ in range(2):
        index = open_index(tmp_path)
        assert index.vector.shape == (0, 4)
        assert index.particles([], label=[], score=[]).tomograms == []
    add(tmp_path, "TS_1", 2)
    check(open_index(tmp_path), tmp_path)


def test_a_moved_folder_keeps_its_index(folder, tmp_path_factory, reads):
    open_index(folder)
    reads.clear()
    moved = tmp_path_factory.mktemp("other") / "embeddings"
    shutil.move(folder, moved)
    index = open_index(moved)
    assert reads == []
    assert index.embedding("TS_2").n_candidates == 9


def test_single_embeddings_are_joined_for_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    index = gather_index(["TS_0.zarr", folder / "TS_2.zarr"])
    assert len(index) == 14
    np.testing.assert_array_equal(index.vector[5:], read_candidates("TS_2.zarr")[1])
    assert index.embedding("TS_2").source.name == "TS_2"
    assert not (folder / "index").exists()


def test_where_nothing_may_be_written(folder, caplog, monkeypatch):
    def refuse(path):
        raise PermissionError(f"{path} may not be written to")

    monkeypatch.setattr(indexes, "check_writable", refuse)
    index = open_index(folder)
    assert len(index) == 14
    assert index.embedding("TS_2").n_candidates == 9
    assert not (folder / "index").exists()
    assert "its index is not kept" in caplog.text


def _cut(path):
    file = path / "vector.npy"
    file.write_bytes(file.read_bytes()[:-8])


def _garble(path):
    (path / "index.json").write_text("{", "utf-8")


def _other_format(path):
    head = (path / "index.json").read_text("utf-8")
    (path / "index.json").write_text(head.replace('"format": 1', '"format": 2'), "utf-8")


def _short(path):
    np.save(path / "score.npy", np.zeros(3, np.float32))


def _no_list(path):
    (path / "index.json").write_text('{"format": 1, "model": "", "tomograms": [3]}', "utf-8")


@pytest.mark.parametrize(
    "damage",
    [_cut, _garble, _other_format, _short, _no_list, lambda path: (path / "edge.npy").unlink()],
)
def test_a_damaged_index_is_made_anew(folder, damage, caplog):
    open_index(folder)
    damage(folder / "index")
    with pytest.raises(ValueError, match=r"index is damaged.*made anew") as caught:
        read_index(folder / "index")
    assert "\n" not in str(caught.value)
    check(open_index(folder), folder)
    assert "all embeddings are read again" in caplog.text
    check(read_index(folder / "index"), folder)


def test_one_model_one_name(folder):
    open_index(folder)
    path = add(folder, "TS_3", 2, model="other:4567")
    with pytest.raises(ValueError, match=r"TS_3.zarr: vectors of model other:4567"):
        open_index(folder)
    assert len(read_index(folder / "index")) == 14
    shutil.rmtree(path)
    shutil.copytree(folder / "TS_0.zarr", folder / "copy.zarr")
    with pytest.raises(ValueError, match=r"TS_0.zarr and copy.zarr are both of a tomogram TS_0"):
        open_index(folder)
    shutil.rmtree(folder / "copy.zarr")
    add(folder, "TS_4", 2, channels=6)
    with pytest.raises(
        ValueError, match=r"TS_4.zarr has vectors of length 6, TS_0.zarr of length 4"
    ):
        open_index(folder)


def test_what_is_no_folder_of_embeddings(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_index(tmp_path / "none")
    (tmp_path / "tomogram.zarr").mkdir()
    with pytest.raises(ValueError, match="holds no embeddings"):
        open_index(tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        gather_index([])


def test_who_fails_leaves_the_old_index(folder, monkeypatch):
    open_index(folder)
    add(folder, "TS_9", 4)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(indexes, "_create", fail)
    with pytest.raises(OSError, match="disk full"):
        open_index(folder)
    assert len(read_index(folder / "index")) == 14
    assert not list(folder.glob(".writing-*"))


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from tomoloc.io import indexes
folder = Path(sys.argv[1])
def peak():  # of this process alone: the peak that getrusage tells begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
indexes.open_index(folder)
before = peak()
(folder / "TS_0.zarr").rename(folder / "gone")
index = indexes.open_index(folder)
print(peak() - before, index.vector.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_updating_needs_little_memory(tmp_path):
    """Old and new index, 80 MB each, are in files."""
    for i in range(8):
        add(tmp_path, f"TS_{i}", 20_000, seed=i, channels=256)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path], text=True, capture_output=True, check=True
    )
    peak, n_bytes = map(int, re.findall(r"\d+", done.stdout))
    assert n_bytes == 7 * 20_000 * 256 * 2
    assert peak < 40_000  # KiB
