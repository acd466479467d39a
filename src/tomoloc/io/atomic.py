"""Write files whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

__all__ = ["check_writable", "writing"]

PREFIX = ".writing-"


@contextmanager
def writing(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it to `path` once the block succeeds.

    Whatever goes wrong inside the block (a full disk, Ctrl-C), an older file or folder at `path`
    stays as it was and the temporary one is removed.

    Parameters
    ----------
    path : path
        Where the finished file or folder shall lie. Its parent folders are made.
    overwrite : bool
        Whether an existing `path` may be replaced.

    Yields
    ------
    Path
        Same file name, in a hidden folder beside `path`; write a file or make a folder there.

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
    workplace = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(mkdtemp(prefix=PREFIX, dir=target.parent))
        draft = workplace / target.name
        yield draft
        if target.is_dir() and not target.is_symlink():
            if not draft.is_dir():
                raise IsADirectoryError(f"{target} is a folder; give the name of a file")
            target.replace(workplace / "replaced")
        draft.replace(target)
    except OSError as error:
        # Of a full disk, Python says no name, else that of the draft, which is gone by now.
        if error.errno and (error.filename is None or PREFIX in str(error.filename)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        if workplace is not None:
            shutil.rmtree(workplace, ignore_errors=True)


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
