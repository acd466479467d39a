"""`tomoloc simulate`."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.io import samples
from tomoloc.io.samples import read_sample

TOML = """
name = "tiny"
species = [{ structure = "builtin:2", label = "pair", count = [2, 4] }]

[specimen]
shape = [24, 36, 40]

[microscope]
tilt_step = 10
defocus_um = [2, 4]
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def run(capsys):
    """Run the command; return exit code, stdout and stderr."""

    def call(*words):
        code = main(["simulate", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_samples_and_prints_their_folders(run, recipe, tmp_path):
    out = tmp_path / "out"
    code, said, _ = run(recipe, "-n", 2, "--seed", 1, "-o", out, "--density", "--tilt-series")
    assert code == 0
    assert said.splitlines() == [str(out / "tiny_000"), str(out / "tiny_001")]
    first, second = (read_sample(out / name) for name in ("tiny_000", "tiny_001"))
    assert first.tomogram.shape == (24, 36, 40)
    assert 2 <= len(first.particles) <= 4
    assert first.density is not None
    assert first.tomogram.tilt_series.images.shape == (13, 36, 40)
    assert not np.array_equal(first.tomogram.data, second.tomogram.data)


def test_goes_on_where_it_stopped(run, recipe, tmp_path):
    out = tmp_path / "out"
    run(recipe, "-n", 3, "-o", out)
    whole = {name: content(out / name) for name in ("tiny_000", "tiny_001", "tiny_002")}
    shutil.rmtree(out / "tiny_001")
    stamp = (out / "tiny_000" / "tomogram.mrc").stat().st_mtime_ns
    code, said, _ = run(recipe, "-n", 3, "-o", out)
    assert code == 0
    assert len(said.splitlines()) == 3
    assert (out / "tiny_000" / "tomogram.mrc").stat().st_mtime_ns == stamp
    assert {name: content(out / name) for name in whole} == whole
    code, _, _ = run(recipe, "-n", 1, "-o", out, "--density")  # asks for one file more
    assert code == 0
    assert (out / "tiny_000" / "density.mrc").is_file()


def test_resolved_recipe_makes_the_sample_again(run, recipe, tmp_path):
    run(recipe, "-n", 2, "-o", tmp_path / "out")
    made = tmp_path / "out" / "tiny_001"
    code, said, _ = run(made / "recipe.toml", "-o", tmp_path / "again")
    assert code == 0
    assert said.splitlines() == [str(tmp_path / "again" / "tiny_001")]
    assert content(tmp_path / "again" / "tiny_001") == content(made)


def test_jobs_make_the_same_samples(run, recipe, tmp_path):
    run(recipe, "-n", 3, "-o", tmp_path / "one")
    code, said, complaint = run(recipe, "-n", 3, "-o", tmp_path / "two", "--jobs", 2)
    assert (code, complaint) == (0, "")
    names = [f"tiny_{i:03d}" for i in range(3)]
    assert said.splitlines() == [str(tmp_path / "two" / name) for name in names]
    for name in names:
        assert content(tmp_path / "two" / name) == content(tmp_path / "one" / name)


COMMAND = "import sys; from tomoloc.cli.main import main; sys.exit(main())"


def start(*words):
    """Run the command as a process, the leader of a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return found


def group_is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def worker_of(pid):
    """Find one worker; `multiprocessing` has another child, which tracks resources."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            return int(child)
    raise AssertionError("no worker")


def _drafts(folder: Path) -> list[Path]:
    """Files that are being written; one may get its name while the folder is being read."""
    try:
        return list(folder.glob(".writing-*/*/*/*"))
    except FileNotFoundError:
        return []


@pytest.mark.parametrize(
    ("jobs", "victim", "how"),
    [
        (1, "parent", signal.SIGKILL),
        (2, "all", signal.SIGINT),
        (2, "parent", signal.SIGKILL),
        (2, "worker", signal.SIGKILL),
    ],
)
def test_a_killed_command_leaves_whole_samples_and_goes_on(
    run, recipe, tmp_path, whole, jobs, victim, how
):
    out, words = tmp_path / "out", ["simulate", recipe, "-n", 20, "-o", tmp_path / "out"]
    process = start(*words, "--jobs", jobs)
    # In the middle of the work, and if possible in the middle of a sample that is being written.
    wait_for(lambda: len(list(out.glob("tiny_*"))) >= 2 and _drafts(out))
    if victim == "all":  # as a terminal does
        os.killpg(process.pid, how)
    else:
        os.kill(process.pid if victim == "parent" else worker_of(process.pid), how)
    _, complaint = process.communicate(timeout=60)
    wait_for(lambda: group_is_gone(process.pid))
    finished = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    assert 2 <= len(finished) < 20
    for name in finished:
        assert content(out / name) == whole[name]
    if victim == "parent":
        assert (process.returncode, complaint) == (-how, "")
    else:  # who is left has cleared away
        assert not list(out.glob(".*"))
        assert complaint.count("\n") == 1
        expected = {"all": (130, "interrupted"), "worker": (2, "was killed (SIGKILL)")}[victim]
        assert process.returncode == expected[0]
        assert expected[1] in complaint
    code, said, _ = run(*words[1:])  # how many at a time makes no difference
    assert code == 0
    assert said.splitlines() == [str(out / name) for name in whole]
    assert {path.name: content(path) for path in out.iterdir()} == whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What 20 samples hold if nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(TOML)
    assert main(["simulate", str(folder / "tiny.toml"), "-n", "20", "-o", str(folder)]) == 0
    return {path.name: content(path) for path in sorted(folder.glob("tiny_*"))}


def test_other_settings_are_not_mixed(run, recipe, tmp_path):
    out = tmp_path / "out"
    run(recipe, "-o", out)
    before = content(out / "tiny_000")
    code, said, complaint = run(recipe, "-o", out, "--seed", 9)
    assert (code, said) == (2, "")
    assert "made with other settings" in complaint
    assert content(out / "tiny_000") == before
    code, _, _ = run(recipe, "-o", out, "--seed", 9, "--overwrite")
    assert code == 0
    assert content(out / "tiny_000") != before


def test_list(run):
    code, said, _ = run("--list")
    assert code == 0
    assert {line.split("\t")[0] for line in said.splitlines()} >= {"demo", "crowded"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["crowdd", "-o", "out"], "did you mean 'crowded'"),
        (["nothing.toml", "-o", "out"], "No such file"),
        (["demo"], "needs a recipe and -o DIR"),
        (["-o", "out"], "needs a recipe and -o DIR"),
        (["demo", "-o", "out", "-n", "0"], "--number must be at least 1"),
        (["demo", "-o", "out", "--jobs", "0"], "--jobs must be at least 1"),
        (["demo", "-o", "out", "--sed", "1"], "sed"),
    ],
)
def test_wrong_use_is_one_line(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, said, complaint = run(*words)
    assert (code, said) == (2, "")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_particle_too_large_is_one_line(run, recipe, tmp_path):
    recipe.write_text(TOML.replace("builtin:2", "builtin:4").replace("24, 36", "8, 36"))
    code, _, complaint = run(recipe, "-o", tmp_path / "out")
    assert code == 2
    assert "complex-4 does not fit into the ice of 400 x 360 x 80 Å" in complaint
    assert not (tmp_path / "out").exists()


def test_a_missing_structure_is_one_line(run, recipe, tmp_path):
    recipe.write_text(TOML.replace("builtin:2", "none.pdb"))
    code, _, complaint = run(recipe, "-o", tmp_path / "out")
    assert code == 2
    assert "none.pdb" in complaint
    assert complaint.count("\n") == 1


def test_a_full_disk_leaves_only_whole_samples(run, recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write = samples.write_volume

    def fail(volume, path, **options):
        if "tiny_001" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(volume, path, **options)

    monkeypatch.setattr(samples, "write_volume", fail)
    code, said, complaint = run(recipe, "-n", 3, "-o", out)
    assert code == 2
    assert said.splitlines() == [str(out / "tiny_000")]
    assert "No space left" in complaint
    assert complaint.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["tiny_000"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(run, recipe, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    code, _, complaint = run(recipe, "-o", out)
    assert code == 2
    assert "Permission denied" in complaint


def test_a_file_in_the_way_is_one_line(run, recipe, tmp_path):
    (tmp_path / "out").write_text("a file")
    code, _, complaint = run(recipe, "-o", tmp_path / "out")
    assert code == 2
    assert complaint.count("\n") == 1
