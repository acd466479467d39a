"""What a hostile or a hasty user types: one line, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

import errno
import os

import mrcfile
import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.io import mrc, tables

SHAPE = (20, 24, 28)
NO_COORDINATES = "data_\n\nloop_\n_rlnFoo #1\n_rlnBar #2\n1 2\n3 4\n"
KNOT = "--template builtin:58 --symmetry D4 --angular-step 60"
PICK = f"pick template {{}} -o out --tilt-range -60 60 {KNOT}"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, rng):
    """Folder with good and bad files, which the tests run in."""
    monkeypatch.chdir(tmp_path)
    data = rng.normal(size=SHAPE).astype(np.float32)
    bad = data.copy()
    bad[3, 4, 5] = np.nan
    contents = {
        "good": (data, 10),
        "no_size": (data, 0),
        "size_1": (data, 1),
        "nan": (bad, 10),
        "constant": (np.full(SHAPE, 3, dtype=np.float32), 10),
        "image": (data[0], 10),
        "small_mask": (np.ones((19, 24, 28), dtype=np.int8), 10),
        "empty_mask": (np.zeros(SHAPE, dtype=np.int8), 10),
    }
    for name, (values, spacing) in contents.items():
        with mrcfile.new(tmp_path / f"{name}.mrc") as file:
            values = np.nan_to_num(values) if name == "nan" else values
            file.set_data(values)
            file.voxel_size = spacing
    whole = (tmp_path / "good.mrc").read_bytes()
    (tmp_path / "truncated.mrc").write_bytes(whole[:5000])
    place = 1024 + 4 * int(np.ravel_multi_index((3, 4, 5), SHAPE))
    nan = np.float32(np.nan).tobytes()
    (tmp_path / "nan.mrc").write_bytes(whole[:place] + nan + whole[place + 4 :])
    texts = {
        "text.mrc": "no tomogram\n" * 200,
        "empty.mrc": "",
        "empty.star": "",
        "no_coordinates.star": NO_COORDINATES,
        "words.tlt": "abc\n",
        "empty.cif": "",
        "words.pdb": "hello\n",
        "file": "in the way",
        "unknown_key.toml": 'name = "a"\ncolour = "red"\n[specimen]\nshape = [24, 24, 24]\n',
        "broken.toml": "name = [",
        "good.toml": 'name = "a"\n[specimen]\nshape = [24, 28, 32]\n'
        '[[species]]\nstructure = "builtin:58"\ncount = 2\n',
        "points.csv": "x,y,z\n1,2,3\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    return tmp_path


def listing(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


CASES = [
    # tomograms
    (PICK.format("none.mrc"), "no such file or folder: none.mrc"),
    (PICK.format("truncated.mrc"), "truncated.mrc is truncated: expected 54784 bytes, found 5000"),
    (PICK.format("text.mrc"), "text.mrc is not an MRC file: it looks like text"),
    (PICK.format("empty.mrc"), "empty.mrc is truncated: expected 1024 bytes of MRC header"),
    (PICK.format("no_size.mrc"), "voxel size not recorded (header says 0); pass --voxel-spacing"),
    (PICK.format("size_1.mrc"), "voxel size not recorded (header says 1); pass --voxel-spacing"),
    (PICK.format("nan.mrc"), "nan.mrc: expected finite values; 1 of 13,440 voxels are NaN"),
    (PICK.format("constant.mrc"), "constant.mrc: every voxel is 3; an empty file or a failed"),
    (PICK.format("image.mrc"), "expected a tomogram; it holds a single image of 24 x 28 pixels"),
    (PICK.format("folder"), "folder is a folder, but not a Zarr image"),
    (PICK.format("points.csv"), "points.csv: unknown kind of volume; expected a name that ends in"),
    (PICK.format(""), "pick template needs at least one tomogram"),
    # templates
    (
        PICK.format("good.mrc").replace("builtin:58", "none.pdb"),
        "--template: no such file: none.pdb",
    ),
    (PICK.format("good.mrc").replace("builtin:58", "builtin:x"), "builtin:SEED, a whole number"),
    (
        PICK.format("good.mrc").replace("builtin:58", "text.mrc"),
        "--template: text.mrc is not an MRC",
    ),
    (
        PICK.format("good.mrc").replace("builtin:58", "no_size.mrc"),
        "--template: no_size.mrc: voxel size not recorded (header says 0); write it into the map's",
    ),
    (
        PICK.format("good.mrc").replace("builtin:58", "nan.mrc"),
        "--template: nan.mrc: expected finite",
    ),
    (PICK.format("good.mrc").replace("builtin:58", "image.mrc"), "image.mrc is a single image"),
    (PICK.format("good.mrc").replace("builtin:58", "words.pdb"), "words.pdb holds no atoms"),
    (PICK.format("good.mrc").replace("builtin:58", "empty.cif"), "empty.cif is empty"),
    (
        PICK.format("good.mrc").replace("builtin:58", "file"),
        "expected a structure (.pdb, .ent, .cif",
    ),
    (
        PICK.format("good.mrc").replace("builtin:58", "builtin:4"),
        "a particle of 276 Å is larger than the tomogram",
    ),
    # masks and tilts
    (
        PICK.format("good.mrc --mask small_mask.mrc"),
        "the mask has 28 x 24 x 19 voxels, the tomogram 28 x 24 x 20 (x y z); they must agree",
    ),
    (PICK.format("good.mrc --mask empty_mask.mrc"), "empty_mask.mrc is zero everywhere"),
    (PICK.format("good.mrc --mask none.mrc"), "no such file or folder: none.mrc"),
    (f"pick template good.mrc -o out {KNOT}", "give --tilt-range LO HI or --tilt-file"),
    (f"pick template good.mrc -o out {KNOT} --tilt-file none.tlt", "no such file: none.tlt"),
    (
        f"pick template good.mrc -o out {KNOT} --tilt-file words.tlt",
        "words.tlt, line 1: expected a tilt angle; found 'abc'",
    ),
    (
        f"pick template good.mrc -o out {KNOT} --tilt-range 60 -60",
        "--tilt-range needs -90 <= LO < HI <= 90; got 60 -60",
    ),
    (PICK.format("good.mrc --tilt-file words.tlt"), "give --tilt-range or --tilt-file, not both"),
    # numbers
    (PICK.format("good.mrc --voxel-spacing 0"), "--voxel-spacing must be positive; got 0"),
    (PICK.format("good.mrc --min-distance nan"), "--min-distance needs a finite number; got nan"),
    (PICK.format("good.mrc --max-particles 0"), "--max-particles must be positive; got 0"),
    (PICK.format("good.mrc --threshold nan"), "--threshold needs a finite number; got nan"),
    (PICK.format("good.mrc --low-pass abc"), "--low-pass needs a number; got 'abc'"),
    (PICK.format("good.mrc --false-positives nan"), "--false-positives needs a finite number"),
    (PICK.format("good.mrc --seed -1"), "--seed must be 0 or more; got -1"),
    (PICK.format("good.mrc --device tpu"), "device must be auto, cpu or cuda; got 'tpu'"),
    (
        PICK.format("good.mrc").replace("D4", "X9"),
        "symmetry must be C1, C2, ..., D2, D3, ..., T, O",
    ),
    (PICK.format("good.mrc --colour red"), "Unknown option: --colour"),
    ("pick magic good.mrc -o out", 'Unknown command "magic". Available commands: template'),
    # records
    (PICK.format("--config none.toml"), "none.toml: No such file or directory"),
    (PICK.format("--config broken.toml"), "broken.toml is not the record of a run, or is damaged"),
    (
        PICK.format("--config good.toml"),
        "good.toml is not the record of a run (.run.toml): no [tom",
    ),
    # output
    (PICK.format("good.mrc").replace("-o out", "-o file"), "file is a file, where a folder is"),
    (PICK.format("good.mrc").replace("-o out", "-o file/out"), "file is a file, where a folder is"),
    ("simulate good.toml -o file/out", "file is a file, where a folder is needed"),
    ("convert points.csv folder --to tomoloc --voxel-spacing 10 --overwrite", "folder is a folder"),
    # recipes
    (
        "simulate none -o out",
        "no recipe is called none; shipped are crowded, cytoplasm, demo",
    ),
    ("simulate deno -o out", "no recipe is called deno (did you mean 'demo'?)"),
    ("simulate none.toml -o out", "none.toml: No such file or directory"),
    ("simulate unknown_key.toml -o out", "a: unknown key 'colour'; known are name, description"),
    ("simulate broken.toml -o out", "broken.toml is no valid TOML"),
    ("simulate folder -o out", "no recipe is called folder"),
    ("simulate good.toml -n 0 -o out", "--number must be at least 1; got 0"),
    # tables
    ("convert none.star out --to csv", "none.star: no such file"),
    ("convert empty.star out --to csv", "empty.star: the file is empty"),
    ("convert no_coordinates.star out --to csv", "no particle coordinates (rlnCoordinateX/Y/Z"),
    ("convert points.csv out --to excel --voxel-spacing 10", "unknown format 'excel'"),
    ("convert points.csv out --to csv --from excel", "unknown format 'excel'"),
    ("convert good.mrc out --to csv", "good.mrc"),
    ("evaluate empty.star points.csv --radius 30", "empty.star: the file is empty"),
    ("evaluate none.star points.csv --radius 30", "none.star: no such file"),
    ("report folder", "folder holds no picks"),
    ("report none", "none: no such folder"),
    ("info none", "no such file or folder: none"),
    ("info truncated.mrc", "truncated.mrc is truncated"),
    ("info empty.star", "empty.star is not a STAR file, or is empty"),
]


@pytest.mark.parametrize(("words", "complaint"), CASES, ids=[words for words, _ in CASES])
def test_one_line_and_nothing_written(words, complaint, home, capsys):
    before = listing(home)
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    *log, line = said.err.splitlines()
    assert complaint in line
    assert line.startswith("tomoloc: ")
    assert not any(entry.startswith("tomoloc: ") for entry in log)
    assert "Traceback" not in said.err
    assert listing(home) == before
    assert not (home / "out").exists()


def no_space(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "function", "file"),
    [(mrc, "_write_blocks", "good.scores.mrc"), (tables, "_warn_of_losses", "good.star")],
)
def test_a_full_disk_spares_the_picks_of_an_earlier_run(
    module, function, file, home, capsys, monkeypatch
):
    words = PICK.format("good.mrc --save-scores --threshold 0").split()
    assert main(words) == 0
    before = listing(home)
    assert len(before) > 3
    monkeypatch.setattr(module, function, no_space)
    capsys.readouterr()
    assert main([*words, "--overwrite", "--max-particles", "2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == f"tomoloc: out/{file}: No space left on device"
    assert listing(home) == before


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_file_that_may_not_grow_further(home, capsys):
    """The system itself refuses in the middle of a file, as a full disk does."""
    import resource
    import signal

    # Compiled code is cached in files, too, and those are not what is tested.
    assert main(["simulate", "good.toml", "-o", "before"]) == 0
    capsys.readouterr()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        assert main(["simulate", "good.toml", "-o", "out"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    line = capsys.readouterr().err
    assert line.startswith("tomoloc: cannot write the sample out/a_000: File too large")
    assert line.count("\n") == 1
    assert list((home / "out").iterdir()) == []


def test_a_place_without_permission_is_told_before_the_work(home, capsys, monkeypatch):
    # Root may write everywhere, so permissions are not taken away but said to be.
    monkeypatch.setattr(os, "access", lambda *_: False)
    for words in (PICK.format("good.mrc").split(), ["simulate", "good.toml", "-o", "out"]):
        assert main(words) == 2
        line = capsys.readouterr().err
        assert line == f"tomoloc: {home} may not be written to; choose another folder\n"
    assert not (home / "out").exists()
