"""Embedded tomograms on disk: a Zarr v3 group with candidates and, on request, the dense array.

<name>.zarr                   attributes: where it comes from, and its grid
  candidates/position         (n, 3) float64, xyz in Å from the centre of the first voxel
  candidates/vector           (n, channels) float16, of length 1
  candidates/score            (n,) float32, probability of a particle's centre
  candidates/edge             (n,) bool
  embedding                   (z, y, x, channels + 1) float16, the vectors, then the score
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoloc.arrays import allocate
from tomoloc.atomic import writing
from tomoloc.io.stored import decoding
from tomoloc.types import Particles, Volume

__all__ = [
    "EmbeddingSource",
    "StoredEmbedding",
    "read_candidates",
    "read_embedding",
    "write_embedding",
]

logger = logging.getLogger(__name__)

LABEL = "candidate"
EDGE = "tomolocEdge"  # as localize names the column; io may not import it
_FORMAT = 1
_KEY = "tomoloc"
_SIDE = 32
"""Grid points along each side of a chunk: 2 MB, as much as a disk reads at a time."""
_ROWS = 1 << 16
_COLUMNS = {"position": np.float64, "vector": np.float16, "score": np.float32, "edge": np.bool_}
_WHAT_TO_DO = "embed the tomogram again"


@dataclass(frozen=True, kw_only=True)
class EmbeddingSource:
    """What was embedded, and by which model.

    Parameters
    ----------
    tomogram : Path
        File that was read.
    name : str
        Of the tomogram, as particle tables give it.
    size : tuple of int
        Voxels along x, y and z.
    voxel_spacing : float
        In angstrom.
    contrast : {"dark", "light"}
        Of protein in the file.
    model : str
        Identity of the model; vectors of different models have nothing to do with each other.
    views : int
        How many views they are means over; they can be compared with those of other numbers.
    spread : float
        How far vectors lie from the mean of their kind, as 1 - cosine; 0 where that is not known.
    """

    tomogram: Path
    name: str
    size: tuple[int, int, int]
    voxel_spacing: float
    contrast: str
    model: str
    views: int = 1
    spread: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredEmbedding:
    """An embedding on disk; values are read when they are asked for.

    Parameters
    ----------
    path : Path
    source : EmbeddingSource
    shape : tuple of int
        Points of the grid along z, y and x.
    grid_spacing : float
        Between points of the grid, in angstrom.
    origin : ndarray, shape (3,)
        Position xyz of the grid's first point from the centre of the tomogram's first voxel.
    channels : int
        Length of the vectors.
    finds_centers : bool
        Whether the dense array has one more channel with the probability of a centre.
    n_candidates : int
    is_dense : bool
        Whether the dense array is there.
    """

    path: Path
    source: EmbeddingSource
    shape: tuple[int, int, int]
    grid_spacing: float
    origin: NDArray[np.float64]
    channels: int
    finds_centers: bool
    n_candidates: int
    is_dense: bool

    def column(self, name: str) -> NDArray[Any]:
        """Read `position`, `vector`, `score` or `edge` of all candidates.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        array = _member(self.path, f"candidates/{name}")
        _check_complete(array, self.path)
        values = _read(array, (slice(None),), self.path)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{self.path}: candidates/{name} holds NaN; {_WHAT_TO_DO}")
        return values

    def read(self, *, around: ArrayLike | None = None, margin: float = 0.0) -> Volume:
        """Read the dense array, or the part of it around some positions.

        Parameters
        ----------
        around : array_like, shape (n, 3), optional
            xyz in angstrom from the centre of the tomogram's first voxel.
        margin : float
            How far around them, in angstrom; at least the grid points next to each are read.

        Returns
        -------
        Volume, data of float16, shape (channels + 1, z, y, x)
            The numbers of one place lie side by side in memory, or in a temporary file where they
            are many.

        Raises
        ------
        ValueError
            If only candidates were kept, a chunk is missing or damaged, or all positions lie
            outside.
        """
        if not self.is_dense:
            raise ValueError(
                f"{self.path} holds candidates only; embed the tomogram without --candidates-only"
            )
        array = _member(self.path, "embedding")
        _check_complete(array, self.path)
        low, high = np.zeros(3, dtype=int), np.array(self.shape)
        if around is not None:
            places = (np.reshape(np.asarray(around, float), (-1, 3)) - self.origin)[:, ::-1]
            first = np.floor((places.min(axis=0) - margin) / self.grid_spacing).astype(int)
            last = np.ceil((places.max(axis=0) + margin) / self.grid_spacing).astype(int)
            low, high = np.maximum(first, 0), np.minimum(last + 1, self.shape)
            if (high <= low).any():
                raise ValueError(f"{self.path}: the positions lie outside the tomogram")
        data = allocate((*(high - low).tolist(), array.shape[-1]), np.float16)
        for part in _blocks(tuple((high - low).tolist()), _SIDE):
            there = tuple(
                slice(s.start + a, s.stop + a) for s, a in zip(part, low.tolist(), strict=True)
            )
            data[part] = _read(array, there, self.path)
        return Volume(
            data=np.moveaxis(data, -1, 0),
            voxel_spacing=self.grid_spacing,
            origin=self.origin + low[::-1] * self.grid_spacing,
            name=self.source.name,
        )


def write_embedding(
    path: str | Path,
    source: EmbeddingSource,
    *,
    embedding: Volume,
    finds_centers: bool,
    particles: Particles,
    vectors: ArrayLike,
    dense: bool = True,
) -> None:
    """Write an embedding: all of it or nothing; one that is there already is replaced.

    Parameters
    ----------
    path : path
        Folder to make; its name should end in .zarr.
    source : EmbeddingSource
    embedding : Volume, data shape (channels + 1, z, y, x)
        May be memory-mapped: it is copied block by block. Positions count from the centre of the
        tomogram's first voxel.
    finds_centers : bool
        Whether the last channel is the probability of a centre.
    particles : Particles
        The candidates, with scores and, in `extra`, whether they touch the edge.
    vectors : array_like, shape (n, channels)
    dense : bool
        Whether to write the dense array, not the candidates alone.

    Raises
    ------
    ValueError
        If particles and vectors disagree.
    OSError
        If it cannot be written, or something that is no embedding stands there.
    """
    path, vectors = Path(path), np.asarray(vectors)
    n_channels = len(embedding.data) - finds_centers
    if vectors.shape != (len(particles), n_channels):
        raise ValueError(
            f"expected vectors of shape {(len(particles), n_channels)}; got {vectors.shape}"
        )
    if path.exists() and not _is_embedding(path):
        raise FileExistsError(f"{path} exists and is no embedding; choose another folder")
    score = np.ones(len(particles)) if particles.score is None else particles.score
    edge = particles.extra.get(EDGE, np.zeros(len(particles)))
    columns = {"position": particles.position, "vector": vectors, "score": score, "edge": edge}
    import zarr

    with writing(path) as draft:
        group = zarr.create_group(str(draft), zarr_format=3)
        group.attrs.update(_attributes(source, embedding, finds_centers=finds_centers))
        candidates = group.create_group("candidates")
        for name, values in columns.items():
            values = np.asarray(values).astype(_COLUMNS[name])
            array = _create(candidates, name, values.shape, values.dtype, chunk=_ROWS)
            if len(values):
                array[:] = values
        if dense:
            shape = (*embedding.shape, len(embedding.data))
            array = _create(group, "embedding", shape, np.dtype(np.float16), chunk=_SIDE)
            for part in _blocks(embedding.shape, _SIDE):
                array[part] = np.moveaxis(embedding.data[(slice(None), *part)], 0, -1)


def read_embedding(path: str | Path) -> StoredEmbedding:
    """Open an embedding; no more than its attributes are read.

    Raises
    ------
    ValueError
        If it is something else, damaged, or of a newer version.
    OSError
        If it is not there or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such embedding")
    if not _is_embedding(path):
        raise ValueError(f"{path} is not an embedding, the .zarr folder that tomoloc embed writes")
    attributes = _open(path).attrs.get(_KEY)
    if not isinstance(attributes, dict):
        raise ValueError(f"{path} is not an embedding, the .zarr folder that tomoloc embed writes")
    if attributes.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is of format {attributes.get('format')!r}, this version of tomoloc reads"
            f" format {_FORMAT}: update tomoloc, or {_WHAT_TO_DO}"
        )
    try:
        stored = _stored(path, attributes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: its attributes; {_WHAT_TO_DO}") from error
    for name in _COLUMNS:
        length = _member(path, f"candidates/{name}").shape[0]
        if length != stored.n_candidates:
            raise ValueError(
                f"{path} is damaged: candidates/{name} has {length} rows of"
                f" {stored.n_candidates}; {_WHAT_TO_DO}"
            )
    return stored


def read_candidates(path: str | Path) -> tuple[Particles, NDArray[np.float16]]:
    """Read the candidates of an embedding.

    Returns
    -------
    particles : Particles
        Of label "candidate", with scores; positions count from the centre of the tomogram's first
        voxel.
    vectors : ndarray of float16, shape (n, channels)

    Raises
    ------
    ValueError, OSError
        As `read_embedding`, or if a column is damaged.
    """
    stored = read_embedding(path)
    particles = Particles(
        position=stored.column("position"),
        label=LABEL,
        tomogram=stored.source.name,
        score=stored.column("score"),
        extra={EDGE: stored.column("edge").astype(np.int8)},
    )
    return particles, stored.column("vector")


def _attributes(
    source: EmbeddingSource, embedding: Volume, *, finds_centers: bool
) -> dict[str, Any]:
    return {
        _KEY: {
            "format": _FORMAT,
            "tomogram": {
                "path": str(source.tomogram),
                "name": source.name,
                "size": list(source.size),
                "voxel_spacing": source.voxel_spacing,
                "contrast": source.contrast,
            },
            "model": source.model,
            "views": source.views,
            "spread": source.spread,
            "finds_centers": finds_centers,
            "grid": {
                "shape": list(embedding.shape),
                "spacing": embedding.voxel_spacing,
                "origin": embedding.origin.tolist(),
            },
        }
    }


def _stored(path: Path, attributes: Mapping[str, Any]) -> StoredEmbedding:
    tomogram, grid = attributes["tomogram"], attributes["grid"]
    x, y, z = (int(n) for n in tomogram["size"])
    n_z, n_y, n_x = (int(n) for n in grid["shape"])
    vectors = _member(path, "candidates/vector")
    return StoredEmbedding(
        path=path,
        source=EmbeddingSource(
            tomogram=Path(tomogram["path"]),
            name=str(tomogram["name"]),
            size=(x, y, z),
            voxel_spacing=float(tomogram["voxel_spacing"]),
            contrast=str(tomogram["contrast"]),
            model=str(attributes["model"]),
            views=int(attributes.get("views", 1)),
            spread=float(attributes.get("spread", 0)),
        ),
        shape=(n_z, n_y, n_x),
        grid_spacing=float(grid["spacing"]),
        origin=np.array(grid["origin"], dtype=float).reshape(3),
        channels=int(vectors.shape[1]),
        finds_centers=bool(attributes["finds_centers"]),
        n_candidates=int(vectors.shape[0]),
        is_dense=(path / "embedding").is_dir(),
    )


def _create(
    group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, chunk: int
) -> Any:
    """Make an array, uncompressed: 16-bit vectors have nothing to compress."""
    lengths = shape[:-1] if len(shape) > 1 else shape
    chunks = [max(1, min(n, chunk)) for n in lengths] + list(shape[len(lengths) :])
    # What is all zero is written too, so that a chunk that is not there is one that was lost.
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=tuple(chunks),
        compressors=None,
        fill_value=0,
        config={"write_empty_chunks": True},
    )


def _is_embedding(path: Path) -> bool:
    return (path / "zarr.json").is_file() and (path / "candidates").is_dir()


def _open(path: Path) -> Any:
    import zarr

    message = f"{path} is damaged: zarr.json cannot be read; {_WHAT_TO_DO}"
    with decoding(message, but=(MemoryError,)):
        return zarr.open_group(str(path), mode="r", zarr_format=3)


def _member(path: Path, name: str) -> Any:
    group = _open(path)
    with decoding(f"{path} is damaged: {name} cannot be read; {_WHAT_TO_DO}", but=(MemoryError,)):
        node = group.get(name)
    if not hasattr(node, "nchunks"):
        raise ValueError(f"{path} is damaged: {name} is missing; {_WHAT_TO_DO}")
    return node


def _check_complete(array: Any, path: Path) -> None:
    """Refuse what lacks chunks, which Zarr would fill with zeros."""
    missing = array.nchunks - array.nchunks_initialized if array.size else 0
    if missing:
        raise ValueError(
            f"{path} is damaged: {missing} of {array.nchunks} chunks of {array.basename} are"
            f" missing; {_WHAT_TO_DO}"
        )


def _read(array: Any, part: tuple[slice, ...], path: Path) -> NDArray[Any]:
    with decoding(f"{path} is damaged: a chunk of {array.basename} cannot be read; {_WHAT_TO_DO}"):
        return np.asarray(array[part])


def _blocks(shape: tuple[int, ...], side: int) -> Iterator[tuple[slice, ...]]:
    for corner in itertools.product(*(range(0, n, side) for n in shape)):
        yield tuple(slice(a, min(a + side, n)) for a, n in zip(corner, shape, strict=True))
