"""Search among candidates: exact whatever the parts, and examples found where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tomoloc.features import index as module
from tomoloc.features.candidates import look_up
from tomoloc.features.index import mean_directions, most_similar, reference_vectors
from tomoloc.io.embeddings import EmbeddingSource, write_embedding
from tomoloc.io.indexes import open_index
from tomoloc.types import Particles, Volume


def unit(values, axis=-1):
    return values / np.linalg.norm(values, axis=axis, keepdims=True)


class TestMostSimilar:
    @pytest.fixture
    def vectors(self, rng):
        return unit(rng.normal(size=(1000, 8))).astype(np.float16)

    @pytest.mark.parametrize("rows", [1 << 14, 1000, 77])
    def test_it_is_exact(self, vectors, rng, monkeypatch, rows):
        monkeypatch.setattr(module, "_ROWS", rows)
        direction = unit(rng.normal(size=(1, 8)))
        hits = most_similar(vectors, direction, n=50)
        cosine = vectors.astype(float) @ direction[0]
        expected = np.argsort(-cosine)[:50]
        np.testing.assert_array_equal(hits.row, expected)
        np.testing.assert_allclose(hits.similarity, cosine[expected], atol=1e-6)
        assert (hits.query == 0).all()

    def test_a_vector_counts_for_one_direction(self, vectors, rng, monkeypatch):
        monkeypatch.setattr(module, "_ROWS", 77)
        directions = unit(rng.normal(size=(3, 8)))
        directions[1] = unit(directions[0] + 0.1 * directions[1])
        hits = most_similar(vectors, directions, n=100)
        cosine = vectors.astype(float) @ directions.T
        assert len(set(hits.row)) == len(hits) == 300
        np.testing.assert_array_equal(hits.query, cosine.argmax(axis=1)[hits.row])
        for query in range(3):
            own = np.where(cosine.argmax(axis=1) == query, cosine[:, query], -2)
            np.testing.assert_array_equal(hits.row[hits.query == query], np.argsort(-own)[:100])
        assert (np.diff(hits.similarity) <= 0).all()

    def test_of_equals_the_first_are_taken(self, monkeypatch):
        vectors = np.tile(np.eye(3, dtype=np.float16), (40, 1))
        for rows in (7, 200):
            monkeypatch.setattr(module, "_ROWS", rows)
            hits = most_similar(vectors, [[0, 1, 0]], n=5)
            assert hits.row.tolist() == [1, 4, 7, 10, 13]
            assert hits.similarity.tolist() == [1] * 5

    def test_fewer_than_asked_for_and_none(self, vectors):
        assert len(most_similar(vectors[:4], vectors[:1], n=10)) == 4
        assert len(most_similar(vectors[:0], vectors[:1], n=10)) == 0
        assert len(most_similar(vectors, vectors[:0], n=10)) == 0

    def test_wrong_use_is_told(self, vectors):
        with pytest.raises(ValueError, match=r"shape \(k, 8\); got \(1, 9\)"):
            most_similar(vectors, np.ones((1, 9)), n=3)
        with pytest.raises(ValueError, match="at least 1"):
            most_similar(vectors, np.ones((1, 8)), n=0)


def test_mean_direction_ranks_as_the_mean_similarity(rng):
    examples, vectors = unit(rng.normal(size=(5, 8))), unit(rng.normal(size=(60, 8)))
    directions, labels = mean_directions(examples, ["b", "a", "b", "b", "a"])
    assert labels == ("a", "b")
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    mean = (vectors @ examples[[0, 2, 3]].T).mean(axis=1)
    np.testing.assert_array_equal(np.argsort(vectors @ directions[1]), np.argsort(mean))


class TestReferences:
    SHAPE = (12, 16, 20)

    @pytest.fixture
    def dense(self, rng):
        data = rng.normal(size=(7, *self.SHAPE))
        data[:6] = unit(data[:6], 0)
        data = data.astype(np.float16)
        return Volume(data=data, voxel_spacing=20.0, origin=(5, 5, 5), name="TS_1")

    @pytest.fixture
    def write(self, tmp_path, dense):
        """Embeddings of TS_1 and of TS_2, which is the same upside down."""

        def write(**how):
            for name, data in (("TS_1", dense.data), ("TS_2", dense.data[:, ::-1])):
                position = np.array([[100.0, 80, 60], [203, 154, 151], [300, 300, 200]])
                write_embedding(
                    tmp_path / f"{name}.zarr",
                    EmbeddingSource(
                        tomogram=Path(name),
                        name=name,
                        size=(40, 32, 24),
                        voxel_spacing=10.0,
                        contrast="dark",
                        model="general:0123",
                    ),
                    embedding=dense.with_data(data),
                    finds_centers=True,
                    particles=Particles(position=position, tomogram=name),
                    vectors=look_up(dense.with_data(data), position),
                    **how,
                )
            return open_index(tmp_path)

        return write

    def test_vectors_are_those_of_the_dense_embedding(self, write, dense):
        position = np.array([[33.0, 204, 111], [-5, -5, -5], [394.9, 314.9, 234.9]])
        names = np.array(["TS_2", "TS_1", "TS_1"])
        found = reference_vectors(write(), Particles(position=position, tomogram=names))
        upside_down = dense.with_data(dense.data[:, ::-1])
        np.testing.assert_allclose(found[:1], look_up(upside_down, position[:1]), atol=1e-6)
        np.testing.assert_allclose(found[1:], look_up(dense, position[1:]), atol=1e-6)

    def test_else_that_of_the_nearest_candidate(self, write):
        index = write(dense=False)
        references = Particles(position=[[210.0, 160, 140]], tomogram="TS_2")
        np.testing.assert_array_equal(
            reference_vectors(index, references), index.vector[4:5].astype(np.float32)
        )
        far = Particles(position=[[210.0, 160, 100]], tomogram="TS_2")
        with pytest.raises(ValueError, match="within 30 Å of the reference at 210 160"):
            reference_vectors(index, far)

    def test_places_that_are_not_there(self, write):
        index = write()
        with pytest.raises(ValueError, match="at 210 160 236 Å lies outside tomogram TS_1"):
            reference_vectors(index, Particles(position=[[210, 160, 236]], tomogram="TS_1"))
        with pytest.raises(ValueError, match=r"'TS_7', which is not among the 2.*TS_1, TS_2\)"):
            reference_vectors(index, Particles(position=[[210, 160, 100]], tomogram="TS_7"))
        assert reference_vectors(index, Particles(position=np.zeros((0, 3)))).shape == (0, 6)

    def test_one_tomogram_needs_no_name(self, write, tmp_path):
        from tomoloc.io.indexes import gather_index

        write()
        index = gather_index([tmp_path / "TS_1.zarr"])
        references = Particles(position=[[210, 160, 100]], tomogram="refs")
        named = Particles(position=[[210, 160, 100]], tomogram="TS_1")
        np.testing.assert_array_equal(
            reference_vectors(index, references), reference_vectors(index, named)
        )
