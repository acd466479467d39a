"""Write files whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_writable", "remove_drafts", "writing"]

PREFIX = ".writing-"
LOCK = ".lock"
REPLACED = "replaced"
ABANDONED = 24 * 3600.0
"""Seconds after which a draft whose writer could not lock it counts as left behind."""


@contextmanager
def writing(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it to `path` once the block succeeds.

    Whatever goes wrong inside the block (a full disk, Ctrl-C), an older file or folder at `path`
    stays as it was and the temporary one is removed. Who is killed leaves it; `remove_drafts`
    clears it away.

    Parameters
    ----------
    path : path
        Where the finished file or folder shall lie. Its parent folders are made.
    overwrite : bool
        Whether an existing `path` may be replaced.

    Yields
    ------
    Path
        Same file name, in an empty folder; write a file or make a folder there.

    Raises
    ------
    FileExistsError
        If `path` exists and `overwrite` is false.
    IsADirectoryError
        If `path` is a folder and a file was written.
    OSError
        If the folder cannot be made or written to; it names `path`.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target} already exists; use a different name, delete it first, or allow overwriting"
        )
    check_writable(target.parent)
    # The name is known before the folder is there: Ctrl-C may come at any moment.
    workplace, lock = target.parent / f"{PREFIX}{token_hex(6)}", None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workplace.mkdir(mode=0o700)
        lock = _lock(workplace)
        draft = workplace / "new" / target.name
        draft.parent.mkdir()
        yield draft
        if target.is_dir() and not target.is_symlink():
            if not draft.is_dir():
                raise IsADirectoryError(f"{target} is a folder; give the name of a file")
            target.replace(workplace / REPLACED)
        draft.replace(target)
    except OSError as error:
        # Of a full disk, Python says no name, else that of the draft, which is gone by now.
        if error.errno and (error.filename is None or PREFIX in str(error.filename)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        try:
            _clear(workplace, target)
        except BaseException:  # Ctrl-C, of which shutil may make an OSError
            _clear(workplace, target)
            raise
        if lock is not None:
            os.close(lock)


def _clear(workplace: Path, target: Path) -> None:
    old = workplace / REPLACED
    if old.exists() and not target.exists():  # interrupted between one renaming and the next
        old.replace(target)
    shutil.rmtree(workplace, ignore_errors=True)


def remove_drafts(folder: str | Path) -> list[Path]:
    """Remove what killed processes were writing in a folder; leave what others still write.

    Parameters
    ----------
    folder : path
        Need not exist. The parent of what `writing` was to make.

    Returns
    -------
    list of Path
        What was removed.
    """
    drafts = [path for path in Path(folder).glob(f"{PREFIX}*") if _is_left_behind(path)]
    for draft in drafts:
        shutil.rmtree(draft, ignore_errors=True)
    return drafts


def _lock(workplace: Path) -> int | None:
    """Lock a draft for as long as this process lives; None where there are no locks.

    Locks end with their process, however it ends and on whatever machine, which the number of a
    process does not tell.
    """
    if fcntl is None:
        return None
    free = workplace / f"{LOCK}-free"
    lock = os.open(free, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # some network disks have none
        os.close(lock)
        return None
    free.rename(workplace / LOCK)  # only now may others try it
    return lock


def _is_left_behind(draft: Path) -> bool:
    if fcntl is not None and (draft / LOCK).is_file():
        with suppress(OSError), (draft / LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False
    with suppress(FileNotFoundError):
        return time.time() - draft.stat().st_mtime > ABANDONED
    return False


def check_writable(folder: str | Path) -> None:
    """Complain before long work where its results could not be written; makes nothing.

    Parameters
    ----------
    folder : path
        Need not exist.

    Raises
    ------
    OSError
        If it is no folder, or may not be made or written to.
    """
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file, where a folder is needed")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{nearest} may not be written to; choose another folder")
