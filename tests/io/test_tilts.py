"""Tilt files by hand, in the conventions of each program."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoloc.io.tilts import find_tilt_files, list_tilt_series, read_tilt_series

ANGLES = [-40.0, -20.0, 0.0, 20.5, 60.0]
BEFORE = [9.3, 3.1, 0.0, 6.2, 12.4]  # exposure before each image, dose-symmetric
AFTER = [12.4, 6.2, 3.1, 9.3, 15.5]


@pytest.fixture
def make(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def loop(name, columns):
    head = "".join(f"_{key} #{i}\n" for i, key in enumerate(columns, start=1))
    rows = "".join(" ".join(map(str, row)) + "\n" for row in zip(*columns.values(), strict=True))
    return f"\ndata_{name}\n\nloop_\n{head}{rows}\n"


@pytest.mark.parametrize("name", ["TS_1.tlt", "TS_1.rawtlt", "TS_1.TLT"])
def test_imod(make, name):
    series = read_tilt_series(
        make(name, "# comment\n" + "\n".join(f"  {a:7.2f}" for a in ANGLES) + "\n\n")
    )
    np.testing.assert_array_equal(series.tilt_angles, ANGLES)
    assert series.dose_e_per_a2 is None
    assert series.ctf is None


def test_further_columns_are_not_angles(make):
    series = read_tilt_series(make("a.tlt", "-3.00 2\n0.00 1\n3.00 3\n"))
    np.testing.assert_array_equal(series.tilt_angles, [-3, 0, 3])


MDOC = """\
PixelSpacing = 1.7005
Voltage = 300
ImageFile = TS_1.mrc
ImageSize = 5760 4092
DataMode = 1

[T = SerialEM: Digitized on a microscope  30-Sep-21  10:00:00]

[T =     Tilt axis angle = -94.9, binning = 1  spot = 8  camera = 0]

"""


def mdoc(prior=None, dates=None):
    text = MDOC
    for i, angle in enumerate(ANGLES):
        text += f"[ZValue = {i}]\nTiltAngle = {angle}\nExposureDose = 3.1\nUnknownThing = 5\n"
        text += f"PriorRecordDose = {prior[i]}\n" if prior else ""
        text += f"DateTime = {dates[i]}\n" if dates else ""
        text += "\n"
    return text


@pytest.mark.parametrize("year", ["21", "2021"])
def test_mdoc(make, capfd, year):
    dates = [f"30-Sep-{year}  10:{minute:02d}:05" for minute in (8, 2, 1, 4, 11)]
    for text in (mdoc(prior=BEFORE), mdoc(dates=dates)):
        series = read_tilt_series(make("TS_1.mrc.mdoc", text))
        np.testing.assert_array_equal(series.tilt_angles, ANGLES)
        np.testing.assert_allclose(series.dose_e_per_a2, AFTER)
        assert (series.tilt_axis_angle, series.pixel_spacing) == (-94.9, 1.7005)
    in_file_order = read_tilt_series(make("a.mdoc", mdoc()))
    np.testing.assert_allclose(in_file_order.dose_e_per_a2, 3.1 * np.arange(1, 6))
    assert capfd.readouterr().err == ""


def relion5_series(**extra):
    return loop("TS_1", {"rlnMicrographName": [f"{i}.mrc" for i in range(5)], **extra})


def relion5_project(make, where="Job/job053/tomograms.star"):
    row = {
        "rlnTomoName": ["TS_1", "TS_2"],
        "rlnTomoTiltSeriesStarFile": [f"Job/job053/tilt_series/TS_{i}.star" for i in (1, 2)],
        "rlnVoltage": [200, 200],
        "rlnSphericalAberration": [2.6, 2.6],
        "rlnAmplitudeContrast": [0.1, 0.1],
        "rlnTomoTiltSeriesPixelSize": [2.39, 2.39],
        "rlnTomoImportFractionalDose": [3.1, 3.1],
    }
    series = relion5_series(
        rlnTomoNominalStageTiltAngle=[a + 1 for a in ANGLES],
        rlnTomoYTilt=ANGLES,
        rlnTomoZRot=[85.0, 85.2, 85.4, 85.2, 85.2],
        rlnMicrographPreExposure=BEFORE,
        rlnDefocusU=[33_000, 32_000, 31_000, 30_000, 29_000],
        rlnDefocusV=[32_000] * 5,
        rlnDefocusAngle=[10, 20, 30, 40, 50],
    )
    make("Job/job053/tilt_series/TS_1.star", series)
    make("Job/job053/tilt_series/TS_2.star", relion5_series(rlnTomoYTilt=[-a for a in ANGLES]))
    return make(where, loop("global", row))


def test_relion5_tomograms(make):
    path = relion5_project(make)
    assert list_tilt_series(path) == ["TS_1", "TS_2"]
    series = read_tilt_series(path, tomogram="TS_1_10.00Apx")
    np.testing.assert_array_equal(series.tilt_angles, ANGLES)  # refined before nominal
    np.testing.assert_allclose(series.dose_e_per_a2, AFTER)
    assert series.tilt_axis_angle == pytest.approx(85.2)
    assert series.pixel_spacing == 2.39
    np.testing.assert_allclose(series.ctf.defocus_u_um, [3.3, 3.2, 3.1, 3.0, 2.9])
    np.testing.assert_allclose(series.ctf.defocus_angle, [10, 20, 30, 40, 50])
    assert (series.ctf.voltage_kv, series.ctf.spherical_aberration_mm) == (200, 2.6)
    assert series.ctf.amplitude_contrast == 0.1
    other = read_tilt_series(path, tomogram="TS_2.tomostar")
    np.testing.assert_array_equal(other.tilt_angles, [-a for a in ANGLES])
    assert other.dose_e_per_a2 is None


def test_relion5_needs_to_know_which(make):
    path = relion5_project(make)
    with pytest.raises(ValueError, match=r"describes 2 tomograms \(TS_1, TS_2\)"):
        read_tilt_series(path)
    with pytest.raises(ValueError, match="does not describe TS_3; it has TS_1, TS_2"):
        read_tilt_series(path, tomogram="TS_3")


def test_relion5_series_beside_its_overview(make):
    path = relion5_project(make, where="moved/tomograms.star")
    assert len(read_tilt_series(path, tomogram="TS_1")) == 5  # from a folder above
    for number in (1, 2):
        (path.parents[1] / f"Job/job053/tilt_series/TS_{number}.star").unlink()
    with pytest.raises(FileNotFoundError, match=r"names Job/job053/tilt_series/TS_1\.star"):
        read_tilt_series(path, tomogram="TS_1")
    make("moved/tilt_series/TS_1.star", relion5_series(rlnTomoYTilt=ANGLES))
    assert len(read_tilt_series(path, tomogram="TS_1")) == 5


def test_relion5_single_series(make):
    nominal = make(
        "a.star",
        relion5_series(rlnTomoNominalStageTiltAngle=ANGLES, rlnMicrographPreExposure=BEFORE),
    )
    series = read_tilt_series(nominal)
    np.testing.assert_array_equal(series.tilt_angles, ANGLES)
    np.testing.assert_allclose(series.dose_e_per_a2, AFTER)  # the step is found from the numbers


@pytest.mark.parametrize("other", [0.0, 7.0])
def test_relion4_projection_matrices(make, other):
    """A projects the tomogram: Rz(axis) Ry(tilt) Rx(other), row by row."""
    rows = []
    for angle in ANGLES:
        matrix = Rotation.from_euler("xyz", [other, angle, -84.0], degrees=True).as_matrix()
        # The geometry of TiltSeries: x falls on x cos t + z sin t before the image is turned.
        if other == 0:
            t = np.radians(angle)
            along = np.array([np.cos(t), 0, np.sin(t)])
            turn = Rotation.from_euler("z", -84.0, degrees=True).as_matrix()[:2, 0]
            np.testing.assert_allclose(matrix[:2] @ along, turn, atol=1e-12)
        rows.append(["[" + ",".join(f"{v:.9g}" for v in row) + ",0]" for row in matrix])
    columns = {f"rlnTomoProj{axis}": [row[i] for row in rows] for i, axis in enumerate("XYZ")}
    overview = {
        "rlnTomoName": ["TS_1.tomostar"],
        "rlnTomoTiltSeriesName": ["dummy.mrc"],
        "rlnVoltage": [300],
        "rlnTomoImportFractionalDose": [3.1],
    }
    more = {"rlnMicrographPreExposure": BEFORE}
    text = loop("global", overview) + loop("TS_1.tomostar", {**columns, **more})
    series = read_tilt_series(make("tomograms.star", text), tomogram="TS_1")
    np.testing.assert_allclose(series.tilt_angles, ANGLES, atol=1e-5)
    assert series.tilt_axis_angle == pytest.approx(-84.0, abs=1e-5)
    np.testing.assert_allclose(series.dose_e_per_a2, AFTER)


def test_tomostar(make):
    columns = {
        "wrpMovieName": [f"{i}.mrc" for i in range(5)],
        "wrpAngleTilt": ANGLES,
        "wrpDose": BEFORE,
        "wrpAxisAngle": [-95.0] * 5,
    }
    series = read_tilt_series(make("TS_1.tomostar", loop("", columns)))
    np.testing.assert_array_equal(series.tilt_angles, [-a for a in ANGLES])
    np.testing.assert_allclose(series.dose_e_per_a2, AFTER)
    assert series.tilt_axis_angle == pytest.approx(-95)


def warp(*, angles=ANGLES, used=(True,) * 5, grids=True):
    def lines(values):
        return "\n".join(map(str, values))

    def grid(name, values):
        nodes = "".join(f'<Node X="0" Y="0" Z="{z}" Value="{v}" />' for z, v in enumerate(values))
        return f'<{name} Width="1" Height="1" Depth="{len(values)}">{nodes}</{name}>'

    text = f"""<?xml version="1.0" encoding="utf-8"?>
<TiltSeries AreAnglesInverted="True" PlaneNormal="0, 0, 1">
  <Angles>{lines(angles)}</Angles>
  <Dose>{lines(BEFORE)}</Dose>
  <UseTilt>{lines(used)}</UseTilt>
  <AxisAngle>{lines([85.5] * 5)}</AxisAngle>
  <CTF><Param Name="Voltage" Value="200" /><Param Name="Cs" Value="2.6" />
    <Param Name="Amplitude" Value="0.08" /></CTF>
"""
    if grids:
        text += grid("GridCTF", [3.0, 3.1, 3.2, 3.3, 3.4])
        text += grid("GridCTFDefocusDelta", [0.2] * 5)
        text += grid("GridCTFDefocusAngle", [45.0])
        text += grid("GridCTFPhase", [0.5] * 5)
    return text + "</TiltSeries>\n"


def test_warp(make):
    series = read_tilt_series(make("TS_1.xml", "\ufeff" + warp()))
    # Warp's matrices put a point at x cos t - z sin t.
    np.testing.assert_array_equal(series.tilt_angles, [-a for a in ANGLES])
    np.testing.assert_allclose(series.dose_e_per_a2, AFTER)
    assert series.tilt_axis_angle == pytest.approx(85.5)
    np.testing.assert_allclose(series.ctf.defocus_u_um, [3.1, 3.2, 3.3, 3.4, 3.5])
    np.testing.assert_allclose(series.ctf.defocus_v_um, [2.9, 3.0, 3.1, 3.2, 3.3])
    np.testing.assert_allclose(series.ctf.defocus_angle, 45)
    np.testing.assert_allclose(series.ctf.phase_shift, 90)
    assert series.ctf.voltage_kv == 200
    assert series.ctf.amplitude_contrast == 0.08


def test_warp_leaves_out_tilts(make):
    series = read_tilt_series(
        make("a.xml", warp(used=(False, True, True, True, False), grids=False))
    )
    np.testing.assert_array_equal(series.tilt_angles, [20, 0, -20.5])
    np.testing.assert_allclose(series.dose_e_per_a2, AFTER[1:4])
    assert series.ctf is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tlt", "", "holds no tilt angles"),
        ("a.tlt", "1.0\ntwo\n", "line 2: expected a tilt angle; found 'two'"),
        ("a.tlt", "120.0\n", "-90 to 90"),
        ("a.tlt", "nan\n", "-90 to 90"),
        ("a.mdoc", "hello\n", "not an mdoc file"),
        ("a.mdoc", "DataMode = 1\n", "TiltAngle in each section"),
        ("a.star", "hello\n", "not a STAR file"),
        ("a.star", "", "not a STAR file"),
        ("a.star", loop("particles", {"rlnCoordinateX": [1, 2]}), "it has none"),
        ("a.star", loop("", {f"rlnTomoProj{axis}": ["[1,x]"] for axis in "XYZ"}), "projection"),
        ("a.star", loop("", {"rlnTomoProjX": ["[1,0]"]}), "rlnTomoProjY"),
        ("a.xml", warp().replace("utf-8", "utfz8"), "damaged"),
        ("a.tomostar", loop("", {"rlnCoordinateX": [1, 2]}), "wrpAngleTilt"),
        ("a.xml", "<TiltSeries><Angles>1", "not XML"),
        ("a.xml", "<Movie></Movie>", "no Angles"),
        ("a.txt", "1.0\n", "expected a tilt file"),
    ],
)  # fmt: skip
def test_what_is_no_tilt_file(make, name, text, said):
    with pytest.raises(ValueError, match=said):
        read_tilt_series(make(name, text))


def test_files_beside_a_tomogram(make):
    for name in ("rec/TS_1.mrc.mdoc", "rec/TS_1_10.00Apx.tlt", "rec/TS_1.xml", "rec/TS_11.tlt"):
        make(name, "0\n")
    tomogram = make("rec/TS_1_10.00Apx.mrc", "")
    names = [path.name for path in find_tilt_files(tomogram)]
    assert names == ["TS_1.xml", "TS_1_10.00Apx.tlt", "TS_1.mrc.mdoc"]
    assert find_tilt_files(tomogram.parent / "TS_2.mrc") == []


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tilt_series(tmp_path / "none.tlt")


def test_real_warptools_tomograms(shared):
    name = "warptools_test_4-tomos_10-ptcls_box-32_angpix-12_tomograms.star"
    path = shared / "real/star" / name
    assert list_tilt_series(path) == [f"Unt_{n}.tomostar" for n in ("083", "050", "076", "088")]
    series = read_tilt_series(path, tomogram="Unt_050_10.00Apx")
    assert len(series) == 37
    assert -62 < series.tilt_angles.min() < series.tilt_angles.max() < 62
    first = series.dose_e_per_a2.argmin()
    assert series.dose_e_per_a2[first] == pytest.approx(2.556)
    assert series.dose_e_per_a2.max() == pytest.approx(37 * 2.556, abs=0.01)
    assert abs(series.tilt_angles[first]) < 7  # dose-symmetric: taken first, near the middle
    assert 2 < series.ctf.defocus_v_um.min() < series.ctf.defocus_u_um.max() < 5
