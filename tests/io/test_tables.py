"""Each dialect against a file written by hand."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoloc.io.tables import (
    DIALECTS,
    Frame,
    detect_dialect,
    read_particles,
    read_table,
    write_particles,
)
from tomoloc.types import Particles

GOLDEN = Path(__file__).parent / "golden"
SHAPE, SPACING = (40, 80, 100), 10.0
FRAMES = {"TS_01": Frame("TS_01", SHAPE, SPACING)}

# What all golden files say, in voxels of 10 Å from the centre of the first voxel.
INDEX = np.array([[10, 20, 30], [55.5, 3.5, 10.75], [0, 79, 39]])
LABELS = ["ribosome", "proteasome", "ribosome"]
SCORES = [0.9, 0.5, 0.1]


def about(axis, degrees):
    """Counter-clockwise rotation about one axis, from the textbook."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


MATRICES = np.array(
    [
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],  # x to y, y to z, z to x
        about("z", 30),
        about("z", -30) @ about("y", -20) @ about("z", -10),
    ]
)

FILES = {
    "tomoloc.star": ("tomoloc", {}, "label score rotation"),
    "relion3.star": ("relion3", {}, "label score rotation"),
    "relion4.star": ("relion4", {}, "label score rotation"),
    "relion5.star": ("relion5", {}, "label score rotation"),
    "relion5_optimisation_set.star": ("relion5", {}, "label score rotation"),
    "warp.star": ("warp", {"shape": SHAPE, "voxel_spacing": SPACING}, "score rotation"),
    "warptools.star": ("relion4", {}, "rotation"),
    "TS_01_info.json": ("eman-json", {"shape": SHAPE, "voxel_spacing": SPACING}, "label score"),
    "TS_01.box": ("eman-box", {"voxel_spacing": SPACING}, ""),
    "dynamo.tbl": ("dynamo", {}, "score rotation"),
    "TS_01.cbox": ("cbox", {"voxel_spacing": SPACING}, "score"),
    "TS_01.coords": ("coords", {"voxel_spacing": SPACING}, ""),
    "copick.json": ("copick", {}, "score rotation"),
    "TS_01.ndjson": ("ndjson", {"voxel_spacing": SPACING}, "rotation"),
    "voxels.csv": ("csv", {"voxel_spacing": SPACING}, "label score"),
    "TS_01.csv": ("csv", {"voxel_spacing": SPACING}, ""),
}


@pytest.mark.parametrize("name", FILES)
def test_known_answer(name):
    dialect, options, holds = FILES[name]
    assert detect_dialect(GOLDEN / name) == dialect
    table = read_table(GOLDEN / name, **options)
    n = 2 if dialect == "ndjson" else 3
    np.testing.assert_allclose(table.particles.position, INDEX[:n] * SPACING, atol=1e-9)
    suffix = ".tomostar" if "warp" in name else ""
    assert table.particles.tomograms == [f"TS_01{suffix}"]
    assert table.dialect == dialect
    if "label" in holds:
        assert list(table.particles.label) == LABELS
    if "score" in holds:
        np.testing.assert_allclose(table.particles.score, SCORES[:n])
    if "rotation" in holds:
        np.testing.assert_allclose(table.particles.rotation.as_matrix(), MATRICES[:n], atol=1e-8)
    else:
        assert table.particles.rotation is None


def test_every_dialect_has_a_golden_file():
    assert {dialect for dialect, _, _ in FILES.values()} | {"imod"} == set(DIALECTS)


def imod_file(path):
    """Write a model as IMOD's binspec.html says: id, model, and for each label object, contour."""
    sizes, view, scale = (100, 80, 40), (1, 2, 0, 255), (0, 0, 0, 1, 1, 1)
    tail = (0, 0, 0, 3, 128, 1.0, -9, 0, 0, 0, 0)  # voxels of 1.0 nm
    layout = ">128s 3i i I 4i 6f 5i f i i 3f"
    body = b"IMODV1.2" + struct.pack(layout, b"by hand", *sizes, 2, 1 << 10, *view, *scale, *tail)
    groups = {b"ribosome": [(10.5, 20.5, 30), (0.5, 79.5, 39)], b"proteasome": [(56, 4, 10.75)]}
    for name, points in groups.items():
        style = (0, 1, 0, 1, 0, 2, *[1] * 8, 0, 0)
        body += b"OBJT" + struct.pack(">64s 16I i I 2i 3f i 8B 2i", name, *[0] * 16, 1, 512, *style)
        flat = [x for point in points for x in point]
        body += b"CONT" + struct.pack(f">i I 2i {len(flat)}f", len(points), 0, 0, 0, *flat)
    path.write_bytes(body + b"IEOF")
    return path


def test_imod_known_answer(tmp_path):
    path = imod_file(tmp_path / "TS_01.mod")
    assert detect_dialect(path) == "imod"
    table = read_table(path)
    np.testing.assert_allclose(table.particles.position, INDEX[[0, 2, 1]] * SPACING, atol=1e-5)
    assert list(table.particles.label) == ["ribosome", "ribosome", "proteasome"]
    assert table.frames == FRAMES


def test_headers_and_optics_become_frames_and_columns():
    table = read_table(GOLDEN / "relion5.star")
    assert table.frames["TS_01"] == Frame("TS_01", SHAPE, SPACING, (1000.0, 800.0, 400.0))
    assert list(table.particles.extra["rlnTomoTiltSeriesPixelSize"]) == [2.5] * 3
    table = read_table(GOLDEN / "tomoloc.star")
    assert table.frames == FRAMES
    assert list(table.particles.extra["someColumn"]) == [7, 8, 9]
    assert read_table(GOLDEN / "relion4.star").frames["TS_01"].voxel_spacing == 2.5
    assert list(read_particles(GOLDEN / "copick.json").extra["portalInstance"]) == [4, 5, 6]


def test_picker_center_is_one_unbinned_voxel_away():
    half = read_particles(GOLDEN / "relion5.star").position
    picker = read_particles(GOLDEN / "relion5.star", center="picker").position
    np.testing.assert_allclose(half - picker, 2.5)
    with pytest.raises(ValueError, match="center must be one of half, picker"):
        read_particles(GOLDEN / "relion5.star", center="middle")


def test_given_sizes_come_before_stated_ones():
    table = read_table(GOLDEN / "relion4.star", voxel_spacing=5.0)
    np.testing.assert_allclose(table.particles.position[1], [1110, 70, 215])
    shifted = read_table(GOLDEN / "relion5.star", voxel_spacing=10.0, shape=(42, 80, 104))
    np.testing.assert_allclose(shifted.particles.position[0], [120, 200, 310])


def written(tmp_path, dialect, **options):
    particles = Particles(
        position=INDEX * SPACING,
        label=LABELS,
        tomogram="TS_01",
        score=SCORES,
        rotation=Rotation.from_matrix(MATRICES),
    )
    path = tmp_path / f"out{DIALECTS[dialect].suffixes[0]}"
    write_particles(particles, path, dialect=dialect, frames=FRAMES, **options)
    return path.read_text()


def rows(text, *, start):
    """Numbers of the lines from the first one that starts so."""
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith(start))
    return [line.split() for line in lines[first:] if line.strip()][:3]


def assert_angles(actual, expected):
    turn = np.mod(np.array(actual) - expected + 180, 360) - 180
    np.testing.assert_allclose(turn, 0, atol=1e-6)


def test_written_tomoloc(tmp_path):
    text = written(tmp_path, "tomoloc")
    assert text.index("data_tomoloc") < text.index("data_particles")
    names = [line.split()[0] for line in text.splitlines() if line.startswith("_rln")]
    assert names[1:8] == [
        "_rlnTomoName",
        *(f"_rlnCoordinate{a}" for a in "XYZ"),
        *(f"_rlnCenteredCoordinate{a}Angst" for a in "XYZ"),
    ]
    first = rows(text, start="TS_01")[0]
    assert [float(v) for v in first[1:7]] == [10, 20, 30, -400, -200, 100]
    assert first[7:9] == ["ribosome", "0.9"]
    assert_angles([float(v) for v in first[9:]], [90, 90, 180])
    assert "2026" not in text  # no dates: the same picks give the same bytes


def test_written_numbers(tmp_path):
    def first(dialect, **options):
        text = written(tmp_path, dialect, **options)
        values = rows(text, start={"relion5": "TS_01"}.get(dialect, ""))[0]
        return [float(v) for v in values if v.replace(".", "").lstrip("-").isdigit()]

    assert first("coords") == [10, 20, 30]
    assert first("eman-box", box_size=8) == [6, 16, 26, 8, 8, 8]
    dynamo = first("dynamo")
    assert len(dynamo) == 42
    assert_angles(dynamo[6:9], [90, 90, 180])
    assert dynamo[9] == 0.9
    assert dynamo[23:26] == [11, 21, 31]
    assert (tmp_path / "out.doc").read_text() == "1 TS_01\n"
    assert first("relion5")[:3] == [-400, -200, 100]
    assert first("relion5", center="picker")[:3] == [-390, -190, 110]
    text = written(tmp_path, "warp")
    warp = next(line for line in text.splitlines() if "tomostar" in line).split()
    assert [float(v) for v in warp[:3]] == [0.1, 0.25, 0.75]
    assert warp[3] == "TS_01.tomostar"


def test_written_spacing_is_stated_or_as_asked(tmp_path):
    particles = read_particles(GOLDEN / "relion4.star")
    path = tmp_path / "list.star"
    write_particles(particles, path, dialect="relion4", frames=FRAMES)
    assert rows(path.read_text(), start="TS_01")[0][1:4] == ["40", "80", "120"]
    assert "data_optics" in path.read_text()
    write_particles(particles, path, dialect="relion4", frames=FRAMES, voxel_spacing=5.0)
    assert rows(path.read_text(), start="TS_01")[0][1:4] == ["20", "40", "60"]
    np.testing.assert_allclose(read_particles(path).position, INDEX * SPACING, atol=1e-6)


def test_losses_are_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        written(tmp_path, "coords")
    assert "left out, as coords cannot hold it: labels; scores; poses" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        written(tmp_path, "relion5")
    assert caplog.text == ""


def test_strays_are_reported(caplog):
    with caplog.at_level(logging.WARNING):
        read_table(GOLDEN / "TS_01.coords", shape=SHAPE, voxel_spacing=SPACING)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        read_table(GOLDEN / "relion5.star", shape=SHAPE, voxel_spacing=2.5)
    assert "3 of 3 particles lie outside their tomogram" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.star", "", "the file is empty"),
        ("x.star", "hello\n", "not a STAR file"),
        ("x.star", "data_a\n\nloop_\n_rlnAngleRot #1\n_rlnTomoName #2\n1 a\n", "no particle coord"),
        ("x.star", "data_a\n", r"not a valid STAR file \(block data_a is empty\)"),
        ("x.star", "data_a\nloop_\n_rlnCoordinateX\n1\n\ndata_b\n# version 30001\n\n",
         r"not a valid STAR file \(block data_b is empty\)"),
        ("x.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnCoordinateZ\n1 2 3 4\n1\n",
         "not a valid STAR file"),
        ("x.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnCoordinateZ\na 2 3\n",
         "should be numbers"),
        ("x.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnCoordinateZ\n5 2 3\n",
         "--voxel-spacing"),
        ("x.star", "data_\nloop_\n_rlnCenteredCoordinateXAngst\n_rlnCenteredCoordinateYAngst\n"
         "_rlnCenteredCoordinateZAngst\n5 2 3\n", "--tomogram-size X Y Z"),
        ("x.json", '{"a": 1}\n', "a JSON file without particles"),
        ("x.json", '{"a": \n', "Expecting value"),
        ("x.csv", "a,b\n1,2\n", "expected columns x, y, z; columns are: a, b"),
        ("x.tbl", "1 2 3\n", "at least 26 numbers"),
        ("x.box", "1 2 3 4\n", "boxes of flat images have no z"),
        ("x.coords", "1 2\n", "expected lines of x y z"),
        ("x.mod", "IMODV1.2", "not a whole IMOD model"),
        ("x.cbox", "data_cryolo\nloop_\n_CoordinateX\n1\n", "no block data_cryolo with"),
        ("x.ndjson", '{"type": "point"}\n', "no location with x, y and z"),
        ("x.abc", "who knows\n", "not like any particle list"),
    ],
)  # fmt: skip
def test_bad_files_give_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    spacing = None if "spacing" in words else 10.0
    with pytest.raises(ValueError, match=words) as caught:
        read_table(path, voxel_spacing=spacing)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["5'cap", 'x"y', "a#b", "a\tb", "a\nb"])
@pytest.mark.parametrize("column", ["label", "tomogram"])
def test_names_that_star_cannot_hold_are_refused(tmp_path, name, column):
    particles = Particles(position=[[10, 20, 30]], **{"label": "a", "tomogram": "b", column: name})
    frames = {particles.tomograms[0]: Frame(particles.tomograms[0], (9, 8, 7), 10.0)}
    with pytest.raises(ValueError, match="STAR tables cannot hold the name"):
        write_particles(particles, tmp_path / "a.star", frames=frames)
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_mended_is_read_anew(tmp_path):
    head = "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnCoordinateZ\n"
    (tmp_path / "a.star").write_text(f"{head}1 2 3 4\n1\n")
    with pytest.raises(ValueError, match="not a valid STAR file"):
        read_table(tmp_path / "a.star", voxel_spacing=10.0)
    (tmp_path / "a.star").write_text(f"{head}1 2 3\n")
    assert len(read_table(tmp_path / "a.star", voxel_spacing=10.0).particles) == 1


def test_columns_are_named_where_coordinates_lack(tmp_path):
    path = tmp_path / "x.star"
    path.write_text("data_a\n\nloop_\n_rlnAngleRot #1\n_rlnTomoName #2\n1 a\n")
    with pytest.raises(ValueError, match="columns are: rlnAngleRot, rlnTomoName"):
        read_table(path)


def test_missing_file_and_unknown_dialect(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_table(tmp_path / "none.star")
    with pytest.raises(ValueError, match="unknown format 'relion6'; it must be one of tomoloc"):
        read_table(GOLDEN / "relion4.star", dialect="relion6")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_needs_are_said(tmp_path, dialect):
    kind, path = DIALECTS[dialect], tmp_path / "out"
    particles = Particles(position=[[1.0, 2.0, 3.0]], tomogram="TS_01")
    lacking = {
        "voxel_spacing": ({}, "--voxel-spacing"),
        "extent": ({"TS_01": Frame("TS_01", None, SPACING)}, "--tomogram-size X Y Z"),
        "box_size": (FRAMES, "--box-size"),
    }
    for need in kind.needs:
        frames, words = lacking[need]
        with pytest.raises(ValueError, match=f"cannot write {dialect}: .*{words}"):
            write_particles(particles, path, dialect=dialect, frames=frames)
        assert not list(tmp_path.iterdir())


def test_frames_check_themselves():
    with pytest.raises(ValueError, match="voxel size must be positive"):
        Frame("a", SHAPE, 0.0)
    with pytest.raises(ValueError, match="three positive numbers"):
        Frame("a", (0, 1, 2), 1.0)


@pytest.mark.parametrize("name", FILES)
def test_content_alone_tells_the_dialect(tmp_path, name):
    """Names may lie or lack endings; only lists of bare numbers need one."""
    dialect = FILES[name][0]
    if dialect == "eman-box" or "optimisation" in name:
        pytest.skip("nothing in the content tells")
    (tmp_path / "list").write_bytes((GOLDEN / name).read_bytes())
    assert detect_dialect(tmp_path / "list") == dialect


@pytest.mark.parametrize("name", [*FILES, "TS_01.mod"])
def test_truncated_and_mangled_files_never_crash(tmp_path, name, rng):
    """Whatever is wrong with a file is a ValueError of one line, or a shorter list."""
    source = imod_file(tmp_path / "whole.mod") if name.endswith(".mod") else GOLDEN / name
    whole, path = source.read_bytes(), tmp_path / name
    cuts = [whole[:n] for n in rng.integers(1, len(whole), 12)]
    swaps = [
        whole.replace(a, b) for a, b in [(b"0", b"x"), (b" ", b"\t\t"), (b"[", b"{"), (b":", b"")]
    ]
    for content in (
        *cuts,
        *swaps,
        b"\x00\xff" * 40,
        b"[1, 2]",
        b'{"points": [1], "boxes_3d": [1]}',
    ):
        path.write_bytes(content)
        message = ""
        try:
            read_table(path, voxel_spacing=SPACING, shape=SHAPE)
        except (ValueError, FileNotFoundError) as error:
            message = str(error)
        assert not message or (message.startswith(str(path)) and "\n" not in message)
