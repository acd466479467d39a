"""Lists written by RELION, Warp and others: all read, converted and back."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tomoloc.io.tables import DIALECTS, detect_dialect, read_table, write_particles

WARPTOOLS = "warptools_test_4-tomos_10-ptcls_box-32_angpix-12"
LISTS = {
    "rubisco.star": ("relion4", {"voxel_spacing": 1.96, "shape": (2000, 4100, 4104)}),
    "ps2.star": ("relion4", {"voxel_spacing": 1.96, "shape": (2000, 4100, 4104)}),
    "mitoribosome.star": ("relion4", {"voxel_spacing": 1.96, "shape": (2000, 4100, 4104)}),
    "hsp60.star": ("relion4", {"voxel_spacing": 1.96, "shape": (2000, 4100, 4104)}),
    "mtfit_SPEF1MT2_001_8.48Apx_particles.star": ("relion3", {"shape": (250, 1440, 850)}),
    f"{WARPTOOLS}.star": ("relion4", {}),
    f"{WARPTOOLS}_optimisation_set.star": ("relion4", {}),
    "czii_train_particles.csv": ("csv", {"voxel_spacing": 10.012, "shape": (184, 630, 631)}),
}


@pytest.fixture
def lists(shared):
    folder = shared / "real" / "star"
    if not folder.is_dir():
        pytest.skip("the real particle lists are not here")
    return folder


@pytest.mark.parametrize("name", LISTS)
def test_reads(lists, name):
    dialect, options = LISTS[name]
    assert detect_dialect(lists / name) == dialect
    table = read_table(lists / name, **options)
    assert len(table.particles) > 20
    for frame in table.frames.values():
        assert frame.extent is not None
    assert (table.particles.rotation is None) == (dialect == "csv")


def test_what_they_say(lists):
    table = read_table(lists / f"{WARPTOOLS}_optimisation_set.star")
    frame = table.frames["Unt_083.tomostar"]
    assert frame.voxel_spacing == 12.0  # of the exported particles: 1.667 Å times 7.19856
    assert frame.shape == (194, 834, 611)
    np.testing.assert_allclose(frame.extent, np.array([4400, 6000, 1400]) * 1.667)
    np.testing.assert_allclose(
        table.particles.position[0], np.array([494.521, 564.065, 28.146]) * 12
    )
    assert table.particles.extra["rlnVoltage"][0] == 300
    table = read_table(lists / "mtfit_SPEF1MT2_001_8.48Apx_particles.star")
    assert table.frames["SPEF1MT2_001_8.48Apx"].voxel_spacing == 8.48
    assert table.particles.score[0] == 0.582118
    assert read_table(lists / "hsp60.star", voxel_spacing=1.96).particles.labels == ["hsp60"]
    table = read_table(lists / "czii_train_particles.csv", voxel_spacing=10.0)
    assert len(table.frames) == 7
    assert len(table.particles.labels) == 6
    assert list(table.particles.extra["id"][:3]) == [0, 1, 2]
    with pytest.raises(ValueError, match="no particle coordinates"):
        read_table(lists / f"{WARPTOOLS}_tomograms.star")
    with pytest.raises(ValueError, match="--voxel-spacing"):
        read_table(lists / "rubisco.star")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", LISTS)
def test_there_and_back(lists, tmp_path, name, dialect):
    before = read_table(lists / name, **LISTS[name][1])
    kind, frame = DIALECTS[dialect], next(iter(before.frames.values()))
    options = {"dialect": dialect, "frames": before.frames, "box_size": 20}
    write_particles(before.particles, tmp_path / "list", **options)
    known = {"voxel_spacing": frame.voxel_spacing, "dialect": dialect}
    if dialect in {"relion5", "warp"}:
        write_tomograms(tmp_path / "tomograms.star", before.frames, warp=dialect == "warp")
    else:
        known["shape"] = frame.shape
    after = read_table(tmp_path / "list", **known).particles
    a, b = (order(p) for p in (after, before.particles))
    np.testing.assert_allclose(
        after.position[a], before.particles.position[b], atol=0.01 * frame.voxel_spacing
    )
    if "rotation" in kind.holds and before.particles.rotation is not None:
        turn = (after[a].rotation.inv() * before.particles[b].rotation).magnitude()
        assert np.degrees(turn).max() < 0.01
    if "extra" in kind.holds:
        for column, values in before.particles.extra.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(after.extra[column][a], values[b], rtol=1e-6)
            else:
                assert list(after.extra[column][a]) == list(values[b])


def write_tomograms(path, frames, *, warp):
    """State sizes exactly, as RELION does, in a unit of 1 Å."""
    lines = ["data_global", "", "loop_", "_rlnTomoName #1", "_rlnTomoTiltSeriesPixelSize #2"]
    lines += [f"_rlnTomoSize{axis} #{k}" for k, axis in enumerate("XYZ", 3)]
    for name, frame in frames.items():
        shown = f"{name.removesuffix('.tomostar')}.tomostar" if warp else name
        lines.append(" ".join(map(str, [shown, 1.0, *frame.extent])))
    path.write_text("\n".join(lines) + "\n")


def order(particles):
    return np.lexsort((*np.round(particles.position, 0).T, particles.tomogram))


def test_large_list_reads_fast(lists):
    read_table(lists / "hsp60.star", voxel_spacing=1.96)
    start = time.perf_counter()
    table = read_table(lists / "rubisco.star", voxel_spacing=1.96)
    assert len(table.particles) == 13946
    assert time.perf_counter() - start < 3  # 0.3 s on an idle machine
