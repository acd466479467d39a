"""Write files whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

__all__ = ["writing"]


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
    OSError
        If the folder cannot be made or written to.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target} already exists; use a different name, delete it first, or allow overwriting"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        draft = workplace / target.name
        yield draft
        if target.is_dir() and not target.is_symlink():
            target.replace(workplace / "replaced")
        draft.replace(target)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
