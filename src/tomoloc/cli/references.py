"""Particles that a user has marked: from a table and its tomograms to examples and annotations."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoloc.io.checks import check_tomogram
from tomoloc.io.stored import volume_name
from tomoloc.io.tables import read_particles
from tomoloc.io.targets import Targets
from tomoloc.io.tomograms import read_tomogram
from tomoloc.nn.stored import StoredModel
from tomoloc.physics.contrast import brighten
from tomoloc.pickers.embedding import embed_examples
from tomoloc.pickers.pick import choose_contrast
from tomoloc.train.frames import Views
from tomoloc.types import Particles, Tomogram

__all__ = ["read_marked", "read_references"]

logger = logging.getLogger(__name__)

_UNNAMED = "(no name)"
"""Where a table does not say which tomogram a particle lies in."""
_LABEL = "particle"
"""Where a table does not say what its particles are."""


def read_references(
    table: Path,
    *,
    model: StoredModel,
    tomograms: Sequence[Path],
    elsewhere: Sequence[Path] = (),
    voxel_spacing: float | None = None,
    contrast: Literal["auto", "dark", "light"] = "auto",
    views: Views | None = None,
    device: str = "auto",
) -> Targets:
    """Embed the examples of a table, in whichever tomogram they lie.

    Parameters
    ----------
    table : Path
        Of any dialect, or a folder of such tables.
    model : StoredModel
    tomograms : sequence of Path
        Those that are picked.
    elsewhere : sequence of Path
        Others, which only hold examples. A table that names no tomogram belongs to the only one of
        these, or, where there are none, to the only one that is picked.
    voxel_spacing : float, optional
        Of tomograms that are picked, and of the others where their files do not state it.
    contrast : {"auto", "dark", "light"}
        Of protein in all of them.
    views : {1, 2, 4}, optional
        As for `embed_examples`.
    device : {"auto", "cpu", "cuda"}

    Returns
    -------
    Targets
        One for each example, in the order of the table.

    Raises
    ------
    ValueError
        If the table is empty, names a tomogram that is not given, or an example lies outside its
        tomogram.
    OSError
        If a file cannot be read.
    """
    parts, rows = [], []
    for marked in read_marked(
        table,
        tomograms=tomograms,
        elsewhere=elsewhere,
        voxel_spacing=voxel_spacing,
        contrast=contrast,
        option="--reference-tomogram",
    ):
        try:
            parts.append(
                embed_examples(
                    marked.tomogram, marked.particles, model=model, views=views, device=device
                )
            )
        except ValueError as error:
            raise ValueError(f"{table}: {error}") from error
        rows.append(marked.rows)
    order = np.argsort(np.concatenate(rows))
    return Targets(
        vectors=np.concatenate([part.vectors for part in parts])[order],
        label=np.concatenate([np.asarray(part.label) for part in parts])[order],
        model=model.identity,
    )


class Marked(NamedTuple):
    """A tomogram, protein bright, the particles marked in it, and their rows in the table.

    `particles` are those of the whole table; those of other tomograms are of tomogram "-".
    """

    tomogram: Tomogram
    particles: Particles
    rows: NDArray[np.intp]


def read_marked(
    table: Path,
    *,
    tomograms: Sequence[Path],
    elsewhere: Sequence[Path] = (),
    voxel_spacing: float | None = None,
    contrast: Literal["auto", "dark", "light"] = "auto",
    option: str,
) -> Iterator[Marked]:
    """Read the particles of a table together with the tomograms that they lie in.

    Parameters
    ----------
    table, tomograms, elsewhere, voxel_spacing, contrast
        As for `read_references`.
    option : str
        With which a tomogram that is missing is given.

    Yields
    ------
    Marked
        One tomogram after the other.

    Raises
    ------
    ValueError
        If the table is empty, or names a tomogram that is not given.
    OSError
        If a file cannot be read.
    """
    particles = read_stated(table, tomogram=_UNNAMED)
    stated = particles is not None
    if particles is None:
        # For a start only the names matter; positions follow for each tomogram.
        particles = read_particles(table, tomogram=_UNNAMED, voxel_spacing=1, shape=(1 << 20,) * 3)
    if not len(particles):
        raise ValueError(f"{table} holds no particles; at least one example is needed")
    files = {
        name: _find_tomogram(name, table, tomograms=tomograms, elsewhere=elsewhere, option=option)
        for name in particles.tomograms
    }
    for path in elsewhere:
        if path not in files.values():
            logger.warning("%s: no example of %s lies in it", path, table)
    names = np.asarray(particles.tomogram)
    for name, path in files.items():
        tomogram = _read_bright(
            path,
            contrast=contrast,
            voxel_spacing=voxel_spacing,
            is_picked=path.resolve() in {path.resolve() for path in tomograms},
        )
        if not stated:
            particles = read_particles(
                table,
                tomogram=_UNNAMED,
                voxel_spacing=tomogram.voxel_spacing,
                shape=tomogram.shape,
            )
        own = replace(particles, tomogram=np.where(names == name, str(path), "-"))
        yield Marked(tomogram, _labelled(own), np.flatnonzero(names == name))


def read_stated(table: Path, *, tomogram: str) -> Particles | None:
    """Read a table by what it states; None if that is not enough.

    Parameters
    ----------
    table : Path
        Or a folder of tables.
    tomogram : str
        Name for where the table has none.
    """
    try:
        return read_particles(table, tomogram=tomogram)
    except ValueError:
        return None


def _labelled(particles: Particles) -> Particles:
    return replace(particles, label=_LABEL) if particles.labels == [""] else particles


def _find_tomogram(
    name: str,
    table: Path,
    *,
    tomograms: Sequence[Path],
    elsewhere: Sequence[Path],
    option: str,
) -> Path:
    """Find the file of a tomogram that a table names, or does not name."""
    if name == _UNNAMED:
        places = elsewhere or tomograms
        if len({path.resolve() for path in places}) == 1:
            return places[0]
        if table.stem not in {volume_name(path) for path in places}:
            raise ValueError(
                f"{table}: it does not say which tomogram its examples lie in, and there are"
                f" {_listed(places)}; name them in a column (rlnTomoName)"
            )
        name = table.stem
    known = list({path.resolve(): path for path in [*tomograms, *elsewhere]}.values())
    names = {name, volume_name(name).removesuffix(".tomostar")}
    # What was given for the examples comes first. Simulated tomograms are all called tomogram.mrc;
    # their folders tell them apart.
    for name_of in (volume_name, lambda path: path.resolve().parent.name):
        for paths in (elsewhere, known):
            found = {path.resolve(): path for path in paths if name_of(path) in names}
            if len(found) == 1:
                return next(iter(found.values()))
            if found:
                raise ValueError(
                    f"{table}: tomogram {name} may be {_listed(found.values())}; give one of them"
                )
    for path in known:
        if not path.exists():  # rather a slip in its name than a tomogram too few
            raise FileNotFoundError(f"no such file or folder: {path}")
    raise ValueError(
        f"{table}: its examples lie in tomogram {name}, which is not given (there is"
        f" {_listed(known)}); add its file with {option}"
    )


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


def _read_bright(
    path: Path,
    *,
    contrast: Literal["auto", "dark", "light"],
    voxel_spacing: float | None,
    is_picked: bool,
) -> Tomogram:
    """Read a tomogram and turn it so that protein is bright; tables count from its first voxel."""
    try:
        tomogram = read_tomogram(path, voxel_spacing=voxel_spacing if is_picked else None)
    except ValueError:
        if is_picked or voxel_spacing is None:
            raise
        tomogram = read_tomogram(path, voxel_spacing=voxel_spacing)
    tomogram = replace(tomogram, name=str(path), origin=np.zeros(3))
    check_tomogram(tomogram)
    sign = choose_contrast(tomogram, contrast)
    return tomogram.with_data(brighten(tomogram.data, contrast=sign))
