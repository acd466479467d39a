"""Volume files: what other programs write, byte by byte, and what we write ourselves."""

from __future__ import annotations

import gzip
import io
import logging
import struct
import warnings

import mrcfile
import numpy as np
import pytest
import tifffile

from tomoloc import arrays
from tomoloc.io import stored
from tomoloc.io.tomograms import open_volume, read_tomogram, read_volume, volume_name, write_volume
from tomoloc.types import Tomogram, Volume

SHAPE = (5, 7, 11)  # z, y, x
CODES = {0: "i1", 1: "i2", 2: "f4", 4: "c8", 6: "u2", 12: "f2"}


def mrc_bytes(
    data,
    *,
    mode=2,
    order="<",
    spacing=(13.48, 13.48, 13.48),
    stamp=None,
    map_id=b"MAP ",
    extended=b"",
    axes=(1, 2, 3),
    ispg=1,
    mz=None,
    dmax=0.0,
    imod_flags=None,
    origin=(40.0, 50.0, 60.0),
):
    """Lay out an MRC file by hand after the MRC 2014 paper, doi:10.1016/j.jsb.2015.04.002."""
    z, y, x = data.shape
    mz = z if mz is None else mz
    cell = [n * s for n, s in zip((x, y, mz), spacing, strict=True)]
    head = struct.pack(f"{order}10i", x, y, z, mode, 3, 4, 5, x, y, mz)
    head += struct.pack(f"{order}6f3i", *cell, 90, 90, 90, *axes)
    head += struct.pack(f"{order}3f2i", 0.0, dmax, 0.0, ispg, len(extended))
    head = head.ljust(152, b"\0")
    head += b"\0" * 8 if imod_flags is None else struct.pack(f"{order}2i", 1146047817, imod_flags)
    head = head.ljust(196, b"\0") + struct.pack(f"{order}3f", *origin) + map_id
    head += stamp if stamp is not None else (b"DD\0\0" if order == "<" else b"\x11\x11\0\0")
    head = head.ljust(1024, b"\0")
    code = CODES.get(mode, "u1")
    return head + extended + data.astype(f"{order}{code}").tobytes()


@pytest.fixture
def values(rng):
    return rng.normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def make(tmp_path):
    def write(content, name="TS_1.mrc"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", [0, 1, 2, 6, 12])
def test_every_mode_in_either_byte_order(make, rng, mode, order):
    numbers = rng.integers(0, 100, SHAPE)
    tomogram = read_tomogram(make(mrc_bytes(numbers, mode=mode, order=order)))
    assert isinstance(tomogram, Tomogram)
    np.testing.assert_array_equal(tomogram.data, numbers)
    assert tomogram.data.dtype == np.dtype(CODES[mode])
    assert tomogram.data.dtype.isnative
    assert tomogram.voxel_spacing == 13.48
    assert tomogram.name == "TS_1"
    # Tables count from the first voxel: the header's origin and start fields have no say.
    np.testing.assert_array_equal(tomogram.origin, 0)


@pytest.mark.parametrize("name", ["a.mrc", "a.rec", "a.map", "a.st", "a.ali", "a.mrcs", "a.REC"])
def test_every_ending_and_gzip(make, values, name):
    content = mrc_bytes(values, extended=b"SERI" * 20)
    plain = read_tomogram(make(content, name))
    assert isinstance(plain.data, np.memmap)
    packed = read_tomogram(make(gzip.compress(content), name + ".gz"))
    for tomogram in (plain, packed):
        np.testing.assert_array_equal(tomogram.data, values)
        assert tomogram.name == "a"
    unmapped = read_tomogram(make(content, name), mmap=False)
    assert not isinstance(unmapped.data, np.memmap)
    np.testing.assert_array_equal(unmapped.data, values)


def test_gzip_is_known_by_content(make, values):
    read = read_volume(make(gzip.compress(mrc_bytes(values)), "a.mrc"))
    np.testing.assert_array_equal(read.data, values)


def test_large_packed_volumes_go_to_a_mapped_file(make, values, monkeypatch):
    monkeypatch.setattr(arrays, "LARGE_BYTES", 1)
    monkeypatch.setattr(stored, "SLAB_BYTES", 7 * 11 * 8 * 2)
    packed = read_tomogram(make(gzip.compress(mrc_bytes(values)), "a.mrc.gz"))
    big_endian = read_tomogram(make(mrc_bytes(values, order=">")))
    for tomogram in (packed, big_endian):
        assert isinstance(tomogram.data, np.memmap)
        np.testing.assert_array_equal(tomogram.data, values)


@pytest.mark.parametrize(
    ("marks", "first"),
    [
        ({}, -56),  # MRC 2014: signed
        ({"dmax": 200.0}, 200),  # older: the maximum tells
        ({"imod_flags": 0}, 200),  # IMOD: unsigned unless bit 0 is set
        ({"imod_flags": 1}, -56),
        ({"imod_flags": 1, "dmax": 200.0}, -56),
    ],
)
def test_signedness_of_bytes(make, marks, first):
    numbers = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 100
    numbers[0, 0, 0] = 200
    read = read_volume(make(mrc_bytes(numbers.astype(np.uint8), mode=0, **marks)))
    assert int(read.data[0, 0, 0]) == first
    np.testing.assert_array_equal(read.data.ravel()[1:], numbers.ravel()[1:])


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        ({"stamp": b"\0\0\0\0"}, "machine stamp 0000"),
        ({"map_id": b"\0\0\0\0"}, "no MAP id"),
        ({"order": ">", "stamp": b"DD\0\0"}, "big endian"),
        ({"order": "<", "stamp": b"\x11\x11\0\0"}, "little endian"),
    ],
)
def test_odd_headers_are_logged_and_forgiven(make, values, caplog, marks, said):
    with caplog.at_level(logging.WARNING):
        read = read_tomogram(make(mrc_bytes(values, **marks)))
    np.testing.assert_array_equal(read.data, values)
    assert said in caplog.text


def test_good_headers_are_not_worth_a_word(make, values, caplog):
    read_tomogram(make(mrc_bytes(values)))
    assert not caplog.records


@pytest.mark.parametrize(
    ("mode", "what"), [(4, "Fourier"), (3, "Fourier"), (16, "RGB"), (7, "unknown")]
)
def test_modes_without_real_numbers_are_refused(make, values, mode, what):
    path = make(mrc_bytes(values, mode=mode))
    with pytest.raises(ValueError, match=rf"mode {mode} .*{what}.*0, 1, 2, 6, 12"):
        read_tomogram(path)


@pytest.mark.parametrize("said", [0.0, 1.0, -2.0])
def test_voxel_size_must_be_recorded_or_given(make, values, said):
    path = make(mrc_bytes(values, spacing=(said,) * 3))
    with pytest.raises(ValueError, match=rf"header says {said:g}.*--voxel-spacing"):
        read_tomogram(path)
    with pytest.raises(ValueError, match="not recorded"):
        read_volume(path)
    assert read_tomogram(path, voxel_spacing=10.5).voxel_spacing == 10.5
    assert read_tomogram(path, voxel_spacing=1.0).voxel_spacing == 1.0
    with pytest.raises(ValueError, match="must be positive"):
        read_tomogram(path, voxel_spacing=0.0)


def test_unequal_voxel_sizes(make, values, caplog):
    almost = make(mrc_bytes(values, spacing=(10.0, 10.05, 10.09)))
    assert read_tomogram(almost).voxel_spacing == pytest.approx(10.05)
    flat = make(mrc_bytes(values, spacing=(10.0, 10.0, 20.0)))
    with pytest.raises(ValueError, match=r"equal sides.*10 x 10 x 20"):
        read_tomogram(flat)
    assert read_tomogram(flat, voxel_spacing=10.0).voxel_spacing == 10.0


def test_a_spacing_that_contradicts_the_header_is_logged(make, values, caplog):
    assert read_tomogram(make(mrc_bytes(values)), voxel_spacing=6.74).voxel_spacing == 6.74
    assert "6.74 given; the file says 13.48" in caplog.text


@pytest.mark.parametrize("spacing", [7.84, 13.48, 10.012, 1.667, 9.99, 23.2, 1.34567])
def test_spacing_survives_single_precision(tmp_path, values, spacing):
    path = tmp_path / "a.mrc"
    write_volume(Volume(data=values, voxel_spacing=spacing), path)
    assert read_tomogram(path).voxel_spacing == pytest.approx(spacing, rel=1e-12, abs=0)


@pytest.mark.parametrize("kept", [0, 100, 1023, 1024, 1500])
def test_truncated(make, values, kept):
    content = mrc_bytes(values)
    expected = 1024 if kept < 1024 else len(content)
    with pytest.raises(ValueError, match=f"truncated: expected {expected} bytes.*found {kept}"):
        read_tomogram(make(content[:kept]))


def test_truncated_gzip(make, values):
    content = mrc_bytes(values)
    whole_stream = make(gzip.compress(content[:-100]), "a.mrc.gz")
    with pytest.raises(ValueError, match=r"truncated: expected 1540 bytes of data, found 1440"):
        read_tomogram(whole_stream)
    cut_stream = make(gzip.compress(content)[:-200], "b.mrc.gz")
    with pytest.raises(ValueError, match="truncated"):
        read_tomogram(cut_stream)
    damaged = bytearray(gzip.compress(content))
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="damaged"):
        read_tomogram(make(bytes(damaged), "c.mrc.gz"))


def test_more_bytes_than_expected_are_logged(make, values, caplog):
    read = read_tomogram(make(mrc_bytes(values) + b"extra"))
    np.testing.assert_array_equal(read.data, values)
    assert "5 bytes more" in caplog.text


@pytest.mark.parametrize("text", ["short\n", "a long text\n" * 200])
def test_text_is_not_mrc(make, text):
    with pytest.raises(ValueError, match="it looks like text"):
        read_tomogram(make(text.encode()))


def test_rubbish_is_not_mrc(make, rng):
    with pytest.raises(ValueError, match="not an MRC file, or its header is damaged"):
        read_tomogram(make(rng.integers(0, 255, 4096, dtype=np.uint8).tobytes()))


def test_one_section_is_an_image(make, values):
    path = make(mrc_bytes(values[:1]))
    with pytest.raises(ValueError, match="single image of 7 x 11 pixels"):
        read_tomogram(path)
    assert read_volume(path).shape == (1, 7, 11)


def test_stacks_of_volumes(make, rng):
    four = rng.normal(size=(6, 7, 11)).astype(np.float32)
    path = make(mrc_bytes(four, ispg=401, mz=3))
    assert read_volume(path).data.shape == (2, 3, 7, 11)
    with pytest.raises(ValueError, match="one volume"):
        read_tomogram(path)
    single = make(mrc_bytes(four, ispg=401, mz=6))
    assert read_tomogram(single).data.shape == (6, 7, 11)


def test_axes_in_another_order(make, values):
    # Stored with z fastest: column = z, row = x, section = y.
    stored_order = np.ascontiguousarray(values.transpose(1, 2, 0))
    path = make(mrc_bytes(stored_order, axes=(3, 1, 2), spacing=(0, 0, 0)))
    np.testing.assert_array_equal(read_volume(path, voxel_spacing=2.0).data, values)


def test_missing_files_and_unknown_kinds(tmp_path, make, values):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_tomogram(tmp_path / "none.mrc")
    with pytest.raises(ValueError, match="unknown kind of volume"):
        read_tomogram(make(b"hello", "a.xyz"))
    with pytest.raises(ValueError, match="download it first"):
        read_tomogram("s3://bucket/a.zarr")
    # A name without an ending will do where the content says MRC.
    np.testing.assert_array_equal(read_tomogram(make(mrc_bytes(values), "scan")).data, values)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/TS_1_10.00Apx.mrc", "TS_1_10.00Apx"),
        ("TS_1.mrc.gz", "TS_1"),
        ("TS_1.rec", "TS_1"),
        ("b/TS_1.zarr", "TS_1"),
        ("TS_1.ome.zarr", "TS_1"),
        ("TS_1_10.00", "TS_1_10.00"),
        ("1bxn.cif.gz", "1bxn"),
        (".mrc", ".mrc"),
    ],
)
def test_names(path, name):
    assert volume_name(path) == name


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16", "uint16", "int8"])
@pytest.mark.parametrize("name", ["a.mrc", "b.rec.gz"])
def test_round_trip_is_exact(tmp_path, rng, dtype, name):
    path = tmp_path / name
    data = (100 * rng.normal(size=SHAPE)).astype(dtype)
    write_volume(Volume(data=data, voxel_spacing=7.84, origin=[8.0, -16.5, 24.25]), path)
    read = read_volume(path)
    np.testing.assert_array_equal(read.data, data)
    assert read.data.dtype == data.dtype
    assert read.voxel_spacing == 7.84
    # A crop is not lost, but a tomogram always counts from its first voxel.
    np.testing.assert_array_equal(read.origin, [8.0, -16.5, 24.25])
    np.testing.assert_array_equal(read_tomogram(path).origin, 0)


def test_another_library_agrees(tmp_path, values):
    path = tmp_path / "a.mrc"
    write_volume(Volume(data=values, voxel_spacing=7.84), path)
    complaints = io.StringIO()
    assert mrcfile.validate(path, print_file=complaints), complaints.getvalue()
    with mrcfile.open(path) as mrc:
        np.testing.assert_array_equal(mrc.data, values)
        assert mrc.header.dmin == values.min()
        assert mrc.header.rms == pytest.approx(values.std(), rel=1e-5)
        assert float(mrc.voxel_size.x) == pytest.approx(7.84)
    with mrcfile.new(tmp_path / "b.mrc", data=values) as mrc:
        mrc.voxel_size = 5.1
    read = read_tomogram(tmp_path / "b.mrc")
    np.testing.assert_array_equal(read.data, values)
    assert read.voxel_spacing == 5.1


def test_channels_round_trip(tmp_path, rng):
    data = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    write_volume(Volume(data=data, voxel_spacing=10.0), tmp_path / "a.mrc")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mrc").data, data)
    assert mrcfile.validate(tmp_path / "a.mrc", print_file=io.StringIO())


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (np.ones(SHAPE, dtype=bool), "int8"),
        (np.full(SHAPE, 255, dtype=np.uint8), "int16"),
        (np.full(SHAPE, -7, dtype=np.int64), "int16"),
        (np.full(SHAPE, 40_000, dtype=np.int32), "uint16"),
        (np.full(SHAPE, 70_000, dtype=np.int32), "float32"),
        (np.full(SHAPE, 0.5), "float32"),
    ],
)
def test_other_types_are_stored_without_loss(tmp_path, data, dtype):
    write_volume(Volume(data=data, voxel_spacing=10.0), tmp_path / "a.mrc")
    read = read_volume(tmp_path / "a.mrc")
    assert read.data.dtype == dtype
    np.testing.assert_array_equal(read.data, data)


def test_what_mrc_cannot_hold(tmp_path):
    path = tmp_path / "a.mrc"
    for data in (np.full(SHAPE, 1 << 25), np.full(SHAPE, 1j)):
        with pytest.raises(ValueError, match=r"cannot hold|real"):
            write_volume(Volume(data=data, voxel_spacing=10.0), path)
    with pytest.raises(ValueError, match="name that ends in"):
        write_volume(Volume(data=np.zeros(SHAPE), voxel_spacing=10.0), tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, values):
    path = tmp_path / "a.mrc"
    write_volume(Volume(data=values, voxel_spacing=10.0), path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        write_volume(Volume(data=values + 1, voxel_spacing=10.0), path, overwrite=False)
    with pytest.raises(ValueError, match="cannot hold"):
        write_volume(Volume(data=np.full(SHAPE, 1 << 25), voxel_spacing=10.0), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_same_volume_same_bytes(tmp_path, values):
    for name in ("a.mrc", "b.mrc", "a.mrc.gz", "b.mrc.gz"):
        write_volume(Volume(data=values, voxel_spacing=10.0), tmp_path / name)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()
    assert (tmp_path / "a.mrc.gz").read_bytes() == (tmp_path / "b.mrc.gz").read_bytes()


def test_numpy_files(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match="voxel size not recorded; pass --voxel-spacing"):
        read_tomogram(tmp_path / "a.npy")
    tomogram = read_tomogram(tmp_path / "a.npy", voxel_spacing=10.0)
    assert isinstance(tomogram.data, np.memmap)
    np.testing.assert_array_equal(tomogram.data, values)
    np.savez(tmp_path / "b.npz", data=values, voxel_spacing=8.5, origin=[1.0, 2.0, 3.0])
    tomogram = read_tomogram(tmp_path / "b.npz")
    np.testing.assert_array_equal(tomogram.data, values)
    assert (tomogram.voxel_spacing, tomogram.name) == (8.5, "b")
    np.testing.assert_array_equal(tomogram.origin, [1, 2, 3])
    np.savez(tmp_path / "c.npz", one=values, two=values)
    with pytest.raises(ValueError, match="array named data; it holds one, two"):
        read_tomogram(tmp_path / "c.npz")
    np.save(tmp_path / "d.npy", values.astype(complex))
    with pytest.raises(ValueError, match="real numbers"):
        read_tomogram(tmp_path / "d.npy", voxel_spacing=1.0)
    np.save(tmp_path / "e.npy", np.array([{"a": 1}]))
    (tmp_path / "f.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-50])
    (tmp_path / "g.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:-50])
    damaged = bytearray((tmp_path / "b.npz").read_bytes())
    damaged[300] ^= 0xFF
    (tmp_path / "h.npz").write_bytes(damaged)
    # the flag that says that it is encrypted
    content = (tmp_path / "b.npz").read_bytes()
    entry = content.index(b"PK\1\2") + 8
    (tmp_path / "i.npz").write_bytes(content[:entry] + b"\1" + content[entry + 1 :])
    for name in ("e.npy", "f.npy", "g.npz", "h.npz", "i.npz"):
        with pytest.raises(ValueError, match="not a NumPy file of numbers"):
            read_tomogram(tmp_path / name, voxel_spacing=1.0)


def test_damaged_metadata_of_ome_tiff(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros(SHAPE, dtype=np.float32), metadata={"axes": "ZYX"})
    path.write_bytes(path.read_bytes().replace(b"<Pixels", b"<Pix<ls"))
    with pytest.raises(ValueError, match=r"not a TIFF file, or is damaged \(not well-formed"):
        read_tomogram(path, voxel_spacing=1.0)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_with_imagej_sizes(tmp_path, rng, compression):
    data = rng.integers(0, 255, SHAPE, dtype=np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        imagej=True,
        compression=compression,
        resolution=(1 / 1.052, 1 / 1.052),
        metadata={"axes": "ZYX", "spacing": 1.052, "unit": "nm"},
    )
    tomogram = read_tomogram(tmp_path / "a.tif")
    np.testing.assert_array_equal(tomogram.data, data)
    assert tomogram.voxel_spacing == pytest.approx(10.52)
    assert isinstance(tomogram.data, np.memmap) == (compression is None)


def test_tiff_with_ome_sizes(tmp_path, values):
    sizes = {f"PhysicalSize{axis}": 0.00134 for axis in "XYZ"}
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "ZYX", **sizes}, ome=True)
    tomogram = read_tomogram(tmp_path / "a.ome.tif")
    assert tomogram.voxel_spacing == pytest.approx(13.4)
    assert tomogram.name == "a"


def test_tiff_without_sizes(tmp_path, rng):
    data = rng.integers(0, 60_000, SHAPE, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(ValueError, match="not recorded"):
        read_tomogram(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_tomogram(tmp_path / "a.tif", voxel_spacing=2.0).data, data)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((7, 11, 3), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match="colour"):
        read_volume(tmp_path / "b.tif")
    (tmp_path / "c.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:400])
    (tmp_path / "d.tif").write_text("no picture\n")
    for name in ("c.tif", "d.tif"):
        with pytest.raises(ValueError, match="not a TIFF file, or is damaged"):
            read_volume(tmp_path / name, voxel_spacing=2.0)


def test_real_volumes(shared):
    files = [*shared.glob("real/**/*.mrc"), *shared.glob("real/**/*.rec")]
    files += [*shared.glob("real/**/*.tif"), *shared.glob("maps/*.mrc")]
    assert len(files) >= 18
    for file in files:
        assert open_volume(file).data.ndim == 3


def test_real_spacings_and_bytes(shared):
    microtubule = read_tomogram(shared / "real/microtubule/13pf_MT.tif")
    assert microtubule.voxel_spacing == pytest.approx(10.52)
    assert microtubule.shape == (36, 206, 94)
    # The header states minimum 141, maximum 163, mean 152.5: bytes from before MRC 2014.
    serialem = read_tomogram(shared / "real/tardis/rec3D.rec")
    assert (int(serialem.data.min()), int(serialem.data.max())) == (141, 163)
    assert serialem.voxel_spacing == pytest.approx(23.2, abs=1e-4)
    assert read_volume(shared / "maps/hsp60.mrc").voxel_spacing == 7.84
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mrcfile.open(shared / "maps/hsp60.mrc") as mrc:
            np.testing.assert_array_equal(read_volume(shared / "maps/hsp60.mrc").data, mrc.data)


def test_a_sample_is_told_from_a_volume(tmp_path):
    (tmp_path / "tomogram.mrc").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a sample, not a volume; give .*tomogram\.mrc"):
        open_volume(tmp_path)
