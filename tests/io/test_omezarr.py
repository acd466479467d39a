"""OME-Zarr as the CryoET Data Portal (0.4) and newer programs (0.5) lay it out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import zarr

from tomoloc import arrays
from tomoloc.io import omezarr
from tomoloc.io.tomograms import open_volume, read_tomogram, read_volume

SHAPE = (12, 20, 28)
BASE = 10.012


def axes(unit="angstrom", names="zyx"):
    kinds = {"c": "channel", "t": "time"}
    return [
        {
            "name": n,
            "type": kinds.get(n, "space"),
            **({} if n in kinds or not unit else {"unit": unit}),
        }
        for n in names
    ]


def write(path, levels, transformations, *, version="0.4", axes_=None, shared=None, chunks=None):
    """Write groups and attributes by hand; only the arrays go through the library."""
    form = 2 if version == "0.4" else 3
    group = zarr.open_group(str(path), mode="w", zarr_format=form)
    for name, data in levels.items():
        array = group.create_array(
            name, shape=data.shape, chunks=chunks or (7,) * data.ndim, dtype=data.dtype
        )
        array[...] = data
    datasets = [
        {"path": name, "coordinateTransformations": steps}
        for name, steps in zip(levels, transformations, strict=True)
    ]
    image = {"axes": axes_ or axes(), "datasets": datasets, "name": "/"}
    if shared:
        image["coordinateTransformations"] = shared
    if version == "0.4":
        attributes = {"multiscales": [{"version": "0.4", **image}]}
        (path / ".zattrs").write_text(json.dumps(attributes))
    else:
        content = json.loads((path / "zarr.json").read_text())
        content["attributes"] = {"ome": {"version": "0.5", "multiscales": [image]}}
        (path / "zarr.json").write_text(json.dumps(content))
    return path


def scale(*sizes):
    return {"type": "scale", "scale": list(sizes)}


def bin_mean(data, n):
    z, y, x = (size // n for size in data.shape)
    return data.reshape(z, n, y, n, x, n).mean(axis=(1, 3, 5)).astype(data.dtype)


@pytest.fixture
def values(rng):
    return rng.normal(size=SHAPE).astype(np.float32)


@pytest.fixture(params=["0.4", "0.5"])
def portal(request, tmp_path, values):
    """Three levels of 1, 2 and 4 times the voxel size, made by local means, without translation."""
    levels = {str(i): bin_mean(values, 2**i) for i in range(3)}
    steps = [[scale(*(BASE * 2**i,) * 3)] for i in range(3)]
    return write(tmp_path / "TS_100_3.zarr", levels, steps, version=request.param)


def test_finest_level_by_default(portal, values):
    tomogram = read_tomogram(portal)
    np.testing.assert_array_equal(tomogram.data, values)
    assert tomogram.voxel_spacing == BASE
    assert tomogram.name == "TS_100_3"
    np.testing.assert_array_equal(tomogram.origin, 0)
    assert open_volume(portal).levels == (BASE, 2 * BASE, 4 * BASE)


@pytest.mark.parametrize(
    ("wanted", "level"),
    [(5.0, 0), (10.0, 0), (19.0, 0), (20.0, 1), (30.0, 1), (40.0, 2), (99.0, 2)],
)
def test_level_by_voxel_spacing(portal, values, wanted, level, caplog):
    tomogram = read_tomogram(portal, level_spacing=wanted)
    assert tomogram.voxel_spacing == pytest.approx(BASE * 2**level)
    np.testing.assert_allclose(tomogram.data, bin_mean(values, 2**level))
    assert ("finest level" in caplog.text) == (wanted < 9)


def test_levels_share_their_corner(portal):
    """A mean over 4 x 4 x 4 voxels sits at their middle, not at the first of them."""
    finest = read_tomogram(portal)
    coarse = read_tomogram(portal, level_spacing=40.0)
    middle = finest.to_position([1.5, 1.5, 1.5])
    np.testing.assert_allclose(coarse.to_position([0, 0, 0]), middle)
    np.testing.assert_allclose(coarse.center, finest.center)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_scale_and_translation_of_level_and_image(tmp_path, values, version):
    own = [scale(1, 1, 1), {"type": "translation", "translation": [1, 2, 3]}]
    shared = [scale(0.5, 0.5, 0.5), {"type": "translation", "translation": [10, 20, 30]}]
    path = write(
        tmp_path / "a.zarr",
        {"s0": values},
        [own],
        version=version,
        axes_=axes("nanometer"),
        shared=shared,
    )
    tomogram = read_tomogram(path)
    assert tomogram.voxel_spacing == 5.0
    np.testing.assert_allclose(tomogram.origin, [315.0, 210.0, 105.0])  # xyz, from nm


def test_a_given_spacing_scales_the_origin(tmp_path, values):
    own = [scale(2, 2, 2), {"type": "translation", "translation": [20, 40, 60]}]
    tomogram = read_tomogram(write(tmp_path / "a.zarr", {"0": values}, [own]), voxel_spacing=4.0)
    assert tomogram.voxel_spacing == 4.0
    np.testing.assert_allclose(tomogram.origin, [120, 80, 40])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_channels_and_time_lead(tmp_path, values, version):
    five = values[None, None]
    steps = [[scale(1, 1, 5, 5, 5)]]
    one = write(tmp_path / "a.zarr", {"0": five}, steps, version=version, axes_=axes(names="tczyx"))
    np.testing.assert_array_equal(read_tomogram(one).data, values)
    two = np.stack([values, -values])[None]
    more = write(tmp_path / "b.zarr", {"0": two}, steps, version=version, axes_=axes(names="tczyx"))
    np.testing.assert_array_equal(read_volume(more).data, two[0])
    with pytest.raises(ValueError, match="expected one volume"):
        read_tomogram(more)


def test_axes_in_another_order(tmp_path, values):
    turned = np.ascontiguousarray(values.transpose(2, 1, 0))
    steps = [[scale(5, 5, 5), {"type": "translation", "translation": [1, 2, 3]}]]
    tomogram = read_tomogram(
        write(tmp_path / "a.zarr", {"0": turned}, steps, axes_=axes(names="xyz"))
    )
    np.testing.assert_array_equal(tomogram.data, values)
    np.testing.assert_array_equal(tomogram.origin, [1, 2, 3])


def test_scale_one_is_not_a_size(tmp_path, values):
    levels = {"0": values, "1": bin_mean(values, 2)}
    path = write(
        tmp_path / "a.zarr", levels, [[scale(1, 1, 1)], [scale(2, 2, 2)]], axes_=axes(None)
    )
    for wanted in (None, 2.0):
        with pytest.raises(ValueError, match="not recorded"):
            read_tomogram(path, level_spacing=wanted)
    coarse = read_tomogram(path, level_spacing=2.0, voxel_spacing=14.0)
    assert coarse.voxel_spacing == 14.0
    np.testing.assert_allclose(coarse.origin, 3.5)  # half a voxel of 7 Å
    nanometres = write(
        tmp_path / "b.zarr", {"0": values}, [[scale(1, 1, 1)]], axes_=axes("nanometer")
    )
    assert read_tomogram(nanometres).voxel_spacing == 10.0


def test_anisotropic_levels_are_refused(tmp_path, values):
    path = write(tmp_path / "a.zarr", {"0": values}, [[scale(10, 5, 5)]])
    with pytest.raises(ValueError, match=r"equal sides.*5 x 5 x 10"):
        read_tomogram(path)


@pytest.mark.parametrize("form", [2, 3])
def test_plain_array(tmp_path, values, form):
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=SHAPE, chunks=(5, 6, 7), dtype=">f4", zarr_format=form
    )
    array[...] = values
    with pytest.raises(ValueError, match="voxel size not recorded"):
        read_tomogram(tmp_path / "a.zarr")
    tomogram = read_tomogram(tmp_path / "a.zarr", voxel_spacing=8.0)
    np.testing.assert_array_equal(tomogram.data, values)
    assert tomogram.data.dtype.isnative


def test_unpacking_is_block_by_block(portal, values, monkeypatch):
    monkeypatch.setattr(omezarr, "SLAB_BYTES", 7 * 7 * 28 * 4)
    monkeypatch.setattr(arrays, "LARGE_BYTES", 1)
    tomogram = read_tomogram(portal)
    assert isinstance(tomogram.data, np.memmap)
    np.testing.assert_array_equal(tomogram.data, values)


def test_missing_chunks_are_logged(portal, caplog):
    chunk = next(
        p
        for p in (portal / "0").rglob("*")
        if p.is_file() and "." not in p.name[0] and p.suffix != ".json"
    )
    chunk.unlink()
    read_tomogram(portal)
    assert "1 of 24 chunks are missing" in caplog.text


def test_damaged_chunk(portal):
    chunk = next(
        p
        for p in (portal / "0").rglob("*")
        if p.is_file() and "." not in p.name[0] and p.suffix != ".json"
    )
    chunk.write_bytes(b"\0" * 37)
    with pytest.raises(ValueError, match="damaged"):
        read_tomogram(portal)


def test_folders_that_are_no_image(tmp_path, portal, values):
    with pytest.raises(ValueError, match="not a Zarr image"):
        read_tomogram(tmp_path)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="not a Zarr image"):
        read_tomogram(tmp_path / "empty.zarr")
    zarr.open_group(str(tmp_path / "b.zarr"), mode="w").create_group("inner")
    with pytest.raises(ValueError, match=r"multiscales.*inner"):
        read_tomogram(tmp_path / "b.zarr")
    shutil.rmtree(portal / "0")
    with pytest.raises(ValueError, match="level 0 is missing"):
        read_tomogram(portal)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes_": axes("furlong")}, "unknown unit of length 'furlong'"),
        ({"axes_": axes(names="yx")}, "expected axes z, y, x"),
        (
            {"shared": [{"type": "affine", "affine": []}]},
            "cannot read the coordinate transformation",
        ),
        ({"shared": [scale(1, 1)]}, "cannot read the coordinate transformation"),
    ],
)
def test_what_cannot_be_understood(tmp_path, values, changes, said):
    with pytest.raises(ValueError, match=said):
        read_tomogram(write(tmp_path / "a.zarr", {"0": values}, [[scale(5, 5, 5)]], **changes))
