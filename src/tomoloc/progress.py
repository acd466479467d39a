"""One progress bar for all long work: silent in a library, shown by the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["progress", "show_progress"]

Item = TypeVar("Item")
_shown: ContextVar[bool] = ContextVar("tomoloc_progress_shown", default=False)


@contextmanager
def show_progress(shown: bool = True) -> Iterator[None]:  # noqa: FBT001, FBT002
    """Show (or hide) the bars of all `progress` loops inside the block."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


def progress(
    items: Iterable[Item], description: str, *, total: int | None = None
) -> Iterator[Item]:
    """Iterate over `items` with a progress bar on stderr where bars are shown.

    Parameters
    ----------
    items : iterable
        What to iterate over.
    description : str
        A few words in front of the bar.
    total : int, optional
        Number of items, if `items` has no length.
    """
    if not _shown.get():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total)
        for item in items:
            yield item
            bars.advance(task)
