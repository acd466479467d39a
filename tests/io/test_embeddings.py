"""Embeddings on disk: what is written comes back, what is broken is said in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tomoloc.io import embeddings
from tomoloc.io.embeddings import (
    EmbeddingSource,
    read_candidates,
    read_embedding,
    write_embedding,
)
from tomoloc.localize import EDGE_COLUMN
from tomoloc.types import Particles, Volume

SHAPE = (20, 41, 70)
SOURCE = EmbeddingSource(
    tomogram=Path("/data/TS_1.mrc"),
    name="TS_1",
    size=(140, 82, 40),
    voxel_spacing=10.0,
    contrast="dark",
    model="general-0123",
    views=4,
)


def _unit(values, axis):
    return values / np.linalg.norm(values, axis=axis, keepdims=True)


@pytest.fixture
def dense(rng):
    data = rng.normal(size=(9, *SHAPE)).astype(np.float32)
    data[:8] = _unit(data[:8], 0)
    return Volume(data=data.astype(np.float16), voxel_spacing=20.0, origin=(5, 5, 5), name="TS_1")


@pytest.fixture
def table(rng):
    particles = Particles(
        position=rng.uniform(0, 800, (13, 3)),
        label="candidate",
        tomogram="TS_1",
        score=rng.uniform(size=13),
        extra={EDGE_COLUMN: rng.uniform(size=13) > 0.5},
    )
    return particles, _unit(rng.normal(size=(13, 8)), 1)


@pytest.fixture
def written(tmp_path, dense, table):
    path = tmp_path / "TS_1.zarr"
    particles, vectors = table
    write_embedding(
        path, SOURCE, embedding=dense, finds_centers=True, particles=particles, vectors=vectors
    )
    return path


def test_what_is_written_comes_back(written, dense, table):
    stored = read_embedding(written)
    assert stored.source == SOURCE
    assert (stored.shape, stored.channels, stored.n_candidates) == (SHAPE, 8, 13)
    assert stored.finds_centers
    assert stored.is_dense
    whole = stored.read()
    np.testing.assert_array_equal(whole.data, dense.data)
    np.testing.assert_array_equal(whole.origin, dense.origin)
    assert (whole.voxel_spacing, whole.name) == (20.0, "TS_1")
    assert whole.data[:, 0, 0, 0].flags.c_contiguous
    particles, vectors = read_candidates(written)
    np.testing.assert_array_equal(particles.position, table[0].position)
    np.testing.assert_allclose(particles.score, table[0].score, rtol=1e-6)
    np.testing.assert_array_equal(particles.extra[EDGE_COLUMN], table[0].extra[EDGE_COLUMN])
    np.testing.assert_allclose(vectors, table[1], atol=1e-3)
    assert particles.labels == ["candidate"]
    assert particles.tomograms == ["TS_1"]
    assert embeddings.EDGE == EDGE_COLUMN


def test_a_part_knows_its_place(written, dense):
    places = dense.to_position([[10, 20, 40], [12.5, 25.5, 60.5]])
    part = read_embedding(written).read(around=places, margin=30)
    low = dense.to_index(part.origin).astype(int)
    np.testing.assert_array_equal(low, [8, 18, 38])
    z, y, x = (slice(a, a + n) for a, n in zip(low, part.shape, strict=True))
    np.testing.assert_array_equal(part.data, dense.data[:, z, y, x])
    assert part.shape == (7, 10, 25)
    with pytest.raises(ValueError, match="outside the tomogram"):
        read_embedding(written).read(around=[[-500.0, 0, 0]])


def test_candidates_alone_are_small_and_may_be_none(tmp_path, dense):
    path, none = tmp_path / "TS_1.zarr", Particles(position=np.zeros((0, 3)))
    write_embedding(
        path,
        SOURCE,
        embedding=dense,
        finds_centers=True,
        particles=none,
        vectors=np.zeros((0, 8)),
        dense=False,
    )
    stored = read_embedding(path)
    assert not stored.is_dense
    assert stored.n_candidates == 0
    particles, vectors = read_candidates(path)
    assert len(particles) == 0
    assert vectors.shape == (0, 8)
    with pytest.raises(ValueError, match="--candidates-only"):
        stored.read()
    assert sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) < 20_000


def test_an_older_embedding_is_replaced_but_nothing_else(written, dense, table):
    particles, vectors = table
    contents = {"embedding": dense, "finds_centers": True}
    write_embedding(
        written,
        replace(SOURCE, model="other"),
        particles=particles[:3],
        vectors=vectors[:3],
        dense=False,
        **contents,
    )
    assert read_embedding(written).source.model == "other"
    assert not read_embedding(written).is_dense
    foreign = written.with_name("work.zarr")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="no embedding"):
        write_embedding(foreign, SOURCE, particles=particles, vectors=vectors, **contents)
    with pytest.raises(ValueError, match=r"expected vectors of shape \(13, 8\)"):
        write_embedding(written, SOURCE, particles=particles, vectors=vectors[:, 1:], **contents)
    assert read_embedding(written).n_candidates == 3


def _forget(path):
    shutil.rmtree(path)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def _scribble(path):
    path.write_text("{")


def _poison(path):
    path.write_bytes(np.full(path.stat().st_size // 2, np.nan, np.float16).tobytes())


def _change(path, **changes):
    content = json.loads(path.read_text())
    content["attributes"]["tomoloc"] |= changes
    path.write_text(json.dumps(content))


def _read_all(path):
    read_candidates(path)
    read_embedding(path).read()


@pytest.mark.parametrize(
    ("spoil", "place", "message"),
    [
        (_forget, "candidates/score", "candidates/score is missing"),
        (_cut, "candidates/vector/c/0/0", "a chunk of vector cannot be read"),
        (Path.unlink, "candidates/vector/c/0/0", "1 of 1 chunks of vector are missing"),
        (_poison, "candidates/vector/c/0/0", "candidates/vector holds NaN"),
        (Path.unlink, "embedding/c/0/1/1/0", "1 of 6 chunks of embedding are missing"),
        (_cut, "embedding/c/0/1/1/0", "a chunk of embedding cannot be read"),
        (_scribble, "zarr.json", "zarr.json cannot be read"),
        (_scribble, "candidates/score/zarr.json", "candidates/score cannot be read"),
        (lambda path: _change(path, format=7), "zarr.json", "format 7"),
        (lambda path: _change(path, grid={}), "zarr.json", "its attributes"),
        (_forget, "candidates", "not an embedding"),
    ],
)
def test_damage_is_said_in_one_line(written, spoil, place, message):
    spoil(written / place)
    with pytest.raises(ValueError, match=message) as caught:
        _read_all(written)
    assert str(written) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_embedding(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such embedding"):
        read_embedding(tmp_path / "nothing.zarr")
    file = tmp_path / "TS.mrc"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="not an embedding"):
        read_embedding(file)
