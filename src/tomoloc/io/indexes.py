"""Candidates of many embedded tomograms side by side on disk, so that all are searched at once.

index/
  index.json                  which embeddings, in which order, of which model
  vector.npy                  (n, channels) float16, of length 1
  position.npy                (n, 3) float32, xyz in Å from the centre of the first voxel
  score.npy                   (n,) float32, probability of a particle's centre
  edge.npy                    (n,) bool

Plain arrays, read through the page cache. To add or replace tomograms, all is written anew beside
the old index, and renamed: rows that stay are copied as they are, which for a thousand tomograms
takes a second, and no reader ever sees half an index.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tomoloc.arrays import allocate, release
from tomoloc.atomic import check_writable, remove_drafts, writing
from tomoloc.io.embeddings import StoredEmbedding, read_embedding
from tomoloc.io.frames import Frame
from tomoloc.io.targets import check_model
from tomoloc.progress import progress
from tomoloc.types import Particles

__all__ = ["CandidateIndex", "IndexedTomogram", "gather_index", "open_index", "read_index"]

logger = logging.getLogger(__name__)

FOLDER = "index"
EDGE = "tomolocEdge"  # as localize names the column; io may not import it
PROBABILITY = "tomolocCenterProbability"
_FORMAT = 1
_COLUMNS = {"vector": np.float16, "position": np.float32, "score": np.float32, "edge": np.bool_}
_WIDTHS = {"position": (3,), "score": (), "edge": ()}
_WHAT_TO_DO = "delete it, and it is made anew"


@dataclass(frozen=True, kw_only=True)
class IndexedTomogram:
    """Where the rows of an index come from.

    Parameters
    ----------
    embedding : str
        Path of the embedding, from the folder that holds the index.
    name : str
        Of the tomogram, as particle tables give it.
    size : tuple of int
        Voxels along x, y and z.
    voxel_spacing : float
        In angstrom.
    n : int
        Candidates.
    stamp : tuple of int
        Time and size of the embedding's head: an embedding made anew has another.
    """

    embedding: str
    name: str
    size: tuple[int, int, int]
    voxel_spacing: float
    n: int
    stamp: tuple[int, int]

    @property
    def frame(self) -> Frame:
        """Grid of the tomogram."""
        x, y, z = self.size
        return Frame(self.name, (z, y, x), self.voxel_spacing)


@dataclass(frozen=True, eq=False, kw_only=True)
class CandidateIndex:
    """Candidates of many tomograms, one tomogram after the other.

    Parameters
    ----------
    folder : Path
        What the paths of embeddings start from.
    model : str
        Identity of the model of all vectors.
    tomograms : tuple of IndexedTomogram
        In the order of their rows.
    vector : ndarray of float16, shape (n, channels)
        Of length 1; often memory-mapped, as the others are.
    position : ndarray of float32, shape (n, 3)
    score : ndarray of float32, shape (n,)
    edge : ndarray of bool, shape (n,)
    """

    folder: Path
    model: str
    tomograms: tuple[IndexedTomogram, ...]
    vector: NDArray[np.float16]
    position: NDArray[np.float32]
    score: NDArray[np.float32]
    edge: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.vector)

    @property
    def frames(self) -> dict[str, Frame]:
        """Grids by the names of the tomograms."""
        return {entry.name: entry.frame for entry in self.tomograms}

    def rows(self, name: str) -> slice:
        """Rows of a tomogram."""
        number = [entry.name for entry in self.tomograms].index(name)
        starts = self._starts
        return slice(starts[number], starts[number + 1])

    def embedding(self, name: str) -> StoredEmbedding:
        """Open the embedding of a tomogram."""
        entry = next(entry for entry in self.tomograms if entry.name == name)
        return read_embedding(self.folder / entry.embedding)

    def particles(self, rows: ArrayLike, *, label: ArrayLike, score: ArrayLike) -> Particles:
        """Make a table of some rows, of any tomograms.

        Parameters
        ----------
        rows : array_like of int, shape (n,)
        label : array_like of str, shape (n,), or str
        score : array_like, shape (n,)
            What they are ranked by; the probability of a centre is kept beside it.
        """
        chosen = np.asarray(rows, dtype=np.intp)
        names = np.array([entry.name for entry in self.tomograms], dtype=np.str_)
        return Particles(
            position=self.position[chosen],
            label=np.asarray(label, dtype=np.str_),
            tomogram=names[np.searchsorted(self._starts, chosen, side="right") - 1],
            score=np.asarray(score, dtype=float),
            extra={EDGE: self.edge[chosen].astype(int), PROBABILITY: self.score[chosen]},
        )

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(entry.n for entry in self.tomograms)]


def open_index(folder: str | Path) -> CandidateIndex:
    """Open the index of all embeddings in a folder, after bringing it up to date.

    What is new or was made anew is added, what is gone is left out. Where nothing may be written,
    the index is made for this once.

    Parameters
    ----------
    folder : path
        That `tomoloc embed` wrote to. The index lies in it.

    Raises
    ------
    ValueError
        If there are no embeddings, or not all are of one model and of tomograms that have
        different names.
    OSError
        If something cannot be read or written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of embeddings")
    paths = sorted(path for path in folder.glob("*.zarr") if (path / "candidates").is_dir())
    if not paths:
        raise ValueError(f"{folder} holds no embeddings (.zarr): tomoloc embed makes them")
    place, old = folder / FOLDER, None
    if place.exists():
        try:
            old = read_index(place)
        except ValueError as error:
            logger.warning("%s; all embeddings are read again", error)
    known = {} if old is None else {entry.embedding: entry for entry in old.tomograms}
    stamps = {path.name: _stamp(path) for path in paths}
    if old is not None and stamps == {name: entry.stamp for name, entry in known.items()}:
        return old
    try:
        check_writable(folder)
    except PermissionError:
        logger.warning("%s may not be written to: its index is not kept", folder)
        return gather_index(paths)
    remove_drafts(folder)
    kept = {name: entry for name, entry in known.items() if stamps.get(name) == entry.stamp}
    sources = [
        _Kept(kept[path.name], old)
        if old is not None and path.name in kept
        else _new(path, folder=folder)
        for path in progress(paths, "embeddings")
    ]
    model = _check(sources)
    with writing(place) as draft:
        draft.mkdir()
        _fill(sources, lambda name, shape, dtype: _create(draft / f"{name}.npy", shape, dtype))
        head = {
            "format": _FORMAT,
            "model": model,
            "tomograms": [asdict(source.entry) for source in sources],
        }
        (draft / "index.json").write_text(json.dumps(head, ensure_ascii=False), "utf-8")
    logger.info("%s: %d tomograms, %d of them new", place, len(sources), len(sources) - len(kept))
    return read_index(place)


def gather_index(embeddings: Sequence[str | Path]) -> CandidateIndex:
    """Make an index of some embeddings that is not kept.

    Raises
    ------
    ValueError, OSError
        As `open_index`.
    """
    if not embeddings:
        raise ValueError("an index needs at least one embedding")
    here = Path.cwd()
    sources = [_new(Path(path).absolute(), folder=here) for path in embeddings]
    model = _check(sources)
    columns = _fill(sources, lambda _, shape, dtype: allocate(shape, dtype))
    entries = tuple(source.entry for source in sources)
    return CandidateIndex(folder=here, model=model, tomograms=entries, **columns)


def read_index(path: str | Path) -> CandidateIndex:
    """Read an index as it is.

    Raises
    ------
    ValueError
        If it is something else, damaged, or of another version.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    try:
        head = json.loads((path / "index.json").read_text("utf-8"))
        if head["format"] != _FORMAT:
            raise ValueError(f"format {head['format']!r}; this version reads format {_FORMAT}")
        model, tomograms = str(head["model"]), tuple(_entry(row) for row in head["tomograms"])
        n = sum(entry.n for entry in tomograms)
        columns = {name: _load(path / f"{name}.npy", n, dtype) for name, dtype in _COLUMNS.items()}
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is damaged, or no index of embeddings ({reason}); {_WHAT_TO_DO}"
        ) from error
    return CandidateIndex(folder=path.parent, model=model, tomograms=tomograms, **columns)


@dataclass(frozen=True, eq=False)
class _New:
    """Rows to take from an embedding."""

    entry: IndexedTomogram
    stored: StoredEmbedding

    @property
    def model(self) -> str:
        return self.stored.source.model

    @property
    def channels(self) -> int:
        return self.stored.channels

    def column(self, name: str) -> NDArray[Any]:
        return self.stored.column(name)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Rows to take from the index as it was."""

    entry: IndexedTomogram
    index: CandidateIndex

    @property
    def model(self) -> str:
        return self.index.model

    @property
    def channels(self) -> int:
        return int(self.index.vector.shape[1])

    def column(self, name: str) -> NDArray[Any]:
        values: NDArray[Any] = getattr(self.index, name)
        release(values)
        return values[self.index.rows(self.entry.name)]


def _new(path: Path, *, folder: Path) -> _New:
    stored, stamp = read_embedding(path), _stamp(path)
    source = stored.source
    name = path.name if path.parent == folder else str(path)
    entry = IndexedTomogram(
        embedding=name,
        name=source.name,
        size=source.size,
        voxel_spacing=source.voxel_spacing,
        n=stored.n_candidates,
        stamp=stamp,
    )
    return _New(entry, stored)


def _check(sources: Sequence[_New | _Kept]) -> str:
    """Return the identity of the one model of all."""
    seen: dict[str, str] = {}
    first = sources[0]
    for source in sources:
        entry = source.entry
        if entry.name in seen:
            raise ValueError(
                f"{seen[entry.name]} and {entry.embedding} are both of a tomogram {entry.name};"
                " keep one of them"
            )
        seen[entry.name] = entry.embedding
        check_model(source.model, first.model, what=entry.embedding)
        if source.channels != first.channels:
            raise ValueError(
                f"{entry.embedding} has vectors of length {source.channels},"
                f" {first.entry.embedding} of length {first.channels}; embed them again"
            )
    return first.model


def _fill(
    sources: Sequence[_New | _Kept],
    make: Callable[[str, tuple[int, ...], DTypeLike], NDArray[Any]],
) -> dict[str, Any]:
    """Put the rows of all sources one after the other."""
    n = sum(source.entry.n for source in sources)
    widths = {"vector": (sources[0].channels,), **_WIDTHS}
    columns = {name: make(name, (n, *widths[name]), dtype) for name, dtype in _COLUMNS.items()}
    start = 0
    for source in progress(sources, "candidates"):
        stop = start + source.entry.n
        for name, values in columns.items():
            values[start:stop] = source.column(name)
            release(values)
        start = stop
    return columns


def _create(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    if 0 in shape:  # there is nothing to map
        np.save(path, np.empty(shape, dtype))
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


def _load(path: Path, n: int, dtype: DTypeLike) -> NDArray[Any]:
    values = np.load(path, mmap_mode="r" if n else None, allow_pickle=False)
    if len(values) != n or values.dtype != dtype:
        raise ValueError(
            f"{path.name} has {len(values)} rows of {values.dtype}, not {n} of {np.dtype(dtype)}"
        )
    return values


def _entry(row: dict[str, Any]) -> IndexedTomogram:
    x, y, z = row.pop("size")
    time, length = row.pop("stamp")
    return IndexedTomogram(size=(x, y, z), stamp=(time, length), **row)


def _stamp(embedding: Path) -> tuple[int, int]:
    try:
        status = (embedding / "zarr.json").stat()
    except (FileNotFoundError, NotADirectoryError):
        return 0, 0  # reading it will say what is wrong
    return status.st_mtime_ns, status.st_size
