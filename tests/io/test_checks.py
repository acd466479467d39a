"""Statistics of volumes and what makes a tomogram useless."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.io import stored
from tomoloc.io.checks import check_tomogram, measure
from tomoloc.io.stored import slabs
from tomoloc.types import Tomogram

SHAPE = (9, 6, 7)


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    monkeypatch.setattr(stored, "SLAB_BYTES", 2 * 6 * 7 * 8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint16", "float64"])
def test_statistics_match_numpy(rng, dtype):
    data = (1000 + 10 * rng.normal(size=(2, *SHAPE))).clip(0, 100 if dtype == "int8" else 9e9)
    data = data.astype(dtype)
    found = measure(data)
    wide = data.astype(float)
    assert (found.minimum, found.maximum, found.n_bad) == (wide.min(), wide.max(), 0)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert found.std == pytest.approx(wide.std(), rel=1e-9)


def test_a_large_offset_does_not_drown_the_deviation(rng):
    data = (1e6 + rng.normal(size=SHAPE)).astype(np.float64)
    assert measure(data).std == pytest.approx(data.std(), rel=1e-9)


def test_bad_values_are_counted_and_left_out(rng):
    data = rng.normal(size=SHAPE).astype(np.float32)
    data[0, 0, 0], data[8, 5, 6], data[4] = np.nan, np.inf, -np.inf
    found = measure(data)
    rest = data[np.isfinite(data)]
    assert found.n_bad == 44
    assert found.mean == pytest.approx(rest.mean(dtype=float))
    assert np.isnan(measure(np.full(SHAPE, np.nan)).mean)


def test_slabs_cover_each_voxel_once():
    seen = np.zeros((2, *SHAPE), dtype=int)
    for slab in slabs(seen):
        assert seen[slab].size <= 2 * 6 * 7
        seen[slab] += 1
    assert (seen == 1).all()


def test_each_section_is_read_once(tmp_path, rng):
    reads = []

    class Counting(np.ndarray):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    data = rng.normal(size=SHAPE).view(Counting)
    check_tomogram(Tomogram(data=data, voxel_spacing=10.0))
    assert [index[-1].start for index in reads] == [0, 2, 4, 6, 8]


def test_good_tomogram_passes(rng):
    check_tomogram(Tomogram(data=rng.normal(size=SHAPE), voxel_spacing=10.0))
    check_tomogram(Tomogram(data=np.arange(378, dtype=np.uint16).reshape(SHAPE), voxel_spacing=1.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_voxel_is_refused(rng, bad):
    data = rng.normal(size=SHAPE).astype(np.float32)
    data[7, 1, 2] = bad
    with pytest.raises(ValueError, match=r"TS_3: .*1 of 378 voxels are NaN or infinite"):
        check_tomogram(Tomogram(data=data, voxel_spacing=10.0, name="TS_3"))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_constant_volume_is_refused(dtype):
    with pytest.raises(ValueError, match="every voxel is 3"):
        check_tomogram(Tomogram(data=np.full(SHAPE, 3, dtype=dtype), voxel_spacing=10.0))
