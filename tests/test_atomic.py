"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from tomoloc import atomic
from tomoloc.atomic import check_writable, remove_drafts, writing


def fail(path, error):
    with writing(path) as draft:
        draft.write_text("half")
        raise error


def test_replaces_a_file_when_all_is_written(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with writing(path) as draft:
        draft.write_text("first")
        assert not path.exists()
    with writing(path) as draft:
        draft.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_what_was_there_stays_when_something_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError) as caught:
        fail(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    with pytest.raises(KeyboardInterrupt):
        fail(path, KeyboardInterrupt())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_the_file_and_not_its_draft(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, writing(path) as draft:
        (draft / "below").write_text("x")
    assert caught.value.filename == str(path)


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    complaint = "data is a folder; give the name of a file"
    with pytest.raises(IsADirectoryError, match=complaint), writing(tmp_path / "data") as draft:
        draft.write_text("y")
    assert (tmp_path / "data" / "precious").read_text() == "x"


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(NotADirectoryError, match="file is a file, where a folder is needed"):
            check_writable(path)
    with pytest.raises(NotADirectoryError), writing(tmp_path / "file" / "a.txt"):
        pass
    # Root may write wherever the disk allows it, so permissions are not tried but pretended.
    monkeypatch.setattr(atomic.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="may not be written to; choose another folder"):
        check_writable(tmp_path / "new")


KILLED = """
import os, signal, sys
from tomoloc.atomic import writing
with writing(sys.argv[1]) as draft:
    draft.mkdir()
    (draft / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_drafts_of_killed_processes_are_removed_and_no_others(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "folder"], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with writing(tmp_path / "a.txt") as draft:
        draft.write_text("still at it")
        assert remove_drafts(tmp_path) == [left]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "still at it"
    assert remove_drafts(tmp_path) == remove_drafts(tmp_path / "none") == []


def test_drafts_without_locks_are_removed_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    with writing(tmp_path / "a.txt") as draft:
        draft.write_text("x")
        assert remove_drafts(tmp_path) == []
        (folder,) = tmp_path.iterdir()
        now = folder.stat().st_mtime
        os.utime(folder, (now, now - 90_000))
        assert remove_drafts(tmp_path) == [folder]
        draft.parent.mkdir(parents=True)
        draft.write_text("x")


def test_disks_without_locks_are_written_to_all_the_same(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(atomic.fcntl, "flock", fail)
    with writing(tmp_path / "a.txt") as draft:
        draft.write_text("x")
        assert remove_drafts(tmp_path) == []
    assert (tmp_path / "a.txt").read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1


class Interrupt:
    """Ctrl-C at one of the moments at which Python looks for signals: in a call, or after it."""

    def __init__(self, moment):
        self.left = moment

    def __call__(self, frame, event, _):
        code = frame.f_code
        known = code.co_filename.endswith(("atomic.py", "shutil.py", "pathlib.py", "contextlib.py"))
        # Python swallows what is raised in a generator that is thrown away.
        if known and event in ("call", "c_return") and code.co_name != "<genexpr>":
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


def write_interrupted(path, moment):
    """Write a folder; tell whether the interrupt came before the end."""
    sys.setprofile(Interrupt(moment))
    try:
        with writing(path) as draft:
            draft.mkdir()
            (draft / "a").touch()
            (draft / "b").touch()
    except (KeyboardInterrupt, OSError):  # shutil.rmtree may close a folder twice
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.filterwarnings("ignore:unclosed scandir:ResourceWarning")
@pytest.mark.parametrize("before", ["nothing", "an older folder"])
def test_an_interrupt_at_any_moment_leaves_the_old_or_the_new(tmp_path, before):
    moment, seen = 0, set()
    while True:
        moment += 1
        path = tmp_path / str(moment) / "data"
        if before == "an older folder":
            path.mkdir(parents=True)
            (path / "old").touch()
        came = write_interrupted(path, moment)
        left = sorted(str(x.relative_to(path.parent)) for x in path.parent.rglob("*"))
        assert left in ([], ["data", "data/old"], ["data", "data/a", "data/b"]), moment
        assert left or before == "nothing", moment
        seen.add(len(left))
        if not came:
            break
    assert moment > 50
    assert seen == {0 if before == "nothing" else 2, 3}
