"""The verb `search`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tomoloc.io.indexes import CandidateIndex
    from tomoloc.io.tables import ParticleTable

__all__ = ["search"]

logger = logging.getLogger(__name__)


def search(
    *embeddings: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    reference: Path | None = None,
    targets: Path | None = None,
    label: Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)] = None,
    max_particles: Annotated[int, Parameter(name=["--max-particles", "-n"])] = 1000,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Find more of a kind in all tomograms that were embedded, best first.

    Every candidate of every tomogram is compared with the mean of the examples; the score is their
    similarity, from -1 to 1. Candidates of a folder are kept in an index in it, which is brought
    up to date by itself, so that a thousand tomograms are searched in about a second.

    Parameters
    ----------
    embeddings
        Folder that tomoloc embed wrote, or .zarr embeddings.
    output
        Table of particles (.star) to write.
    reference
        Table of one or more example positions for each label, in any of the embedded tomograms.
    targets
        Targets that tomoloc cluster made, instead of a reference.
    label
        Look for this label of the examples only; may be given several times.
    max_particles
        Particles to find of each label.
    overwrite
        Replace the table if it exists.
    """
    from tomoloc.features.index import mean_directions, most_similar
    from tomoloc.io.tables import write_particles
    from tomoloc.progress import show_progress

    if not embeddings:
        raise ValueError("search needs the folder that tomoloc embed wrote, or embeddings")
    examples = [path for path in (reference, targets) if path is not None]
    if len(examples) != 1:
        raise ValueError("search needs either --reference or --targets")
    if not examples[0].exists():
        raise FileNotFoundError(f"{examples[0]}: no such file")
    if max_particles < 1:
        raise ValueError(f"-n must be at least 1; got {max_particles}")
    if output.suffix.lower() != ".star":
        raise ValueError(f"-o {output}: the table must be a .star file")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; choose another name or give --overwrite")
    with show_progress(sys.stderr.isatty()):
        index = _open(embeddings)
        look_up = _of_targets if reference is None else _of_references
        vectors, labels = look_up(index, examples[0], label)
        directions, names = mean_directions(vectors, labels)
        hits = most_similar(index.vector, directions, n=max_particles)
    particles = index.particles(
        hits.row, label=np.array(names, dtype=np.str_)[hits.query], score=hits.similarity
    )
    write_particles(particles, output, frames=index.frames, overwrite=overwrite)
    sys.stdout.write(f"{output}\n")
    logger.info(
        "%d particles of %s among %d candidates in %d tomograms, in %d of them",
        len(particles),
        ", ".join(names),
        len(index),
        len(index.tomograms),
        len(particles.tomograms),
    )
    return 0


def _open(embeddings: tuple[Path, ...]) -> CandidateIndex:
    """Open the index of a folder, or join single embeddings."""
    from tomoloc.io.indexes import gather_index, open_index

    folders = [path for path in embeddings if path.suffix != ".zarr"]
    if not folders:
        return gather_index(embeddings)
    if len(embeddings) > 1:
        raise ValueError(
            f"give one folder of embeddings, or only .zarr embeddings; got {folders[0]} and"
            f" {len(embeddings) - 1} more"
        )
    return open_index(folders[0])


def _of_references(
    index: CandidateIndex, path: Path, chosen: list[str] | None
) -> tuple[NDArray[Any], NDArray[np.str_]]:
    """Vectors at the positions of a table, and their labels."""
    from tomoloc.features.index import reference_vectors

    particles = _read_references(path, index).particles
    if not len(particles):
        raise ValueError(f"{path} holds no particles: one example of each label is needed")
    label = np.asarray(particles.label)
    kept = _chosen(label, chosen, path)
    try:
        return reference_vectors(index, particles[kept]), label[kept]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_references(path: Path, index: CandidateIndex) -> ParticleTable:
    """Read a table; what it does not say of the tomogram may be known from the embeddings."""
    from tomoloc.report.gather import gather_table

    try:
        return gather_table(path)
    except ValueError:
        frames = index.frames.values()
        grids = {(frame.voxel_spacing, frame.shape) for frame in frames}
        if len(grids) > 1:
            raise
        spacing, shape = grids.pop()
        return gather_table(path, voxel_spacing=spacing, shape=shape)


def _of_targets(
    index: CandidateIndex, path: Path, chosen: list[str] | None
) -> tuple[NDArray[Any], NDArray[np.str_]]:
    from tomoloc.io.targets import check_model, read_targets

    targets = read_targets(path)
    check_model(targets.model, index.model, what=str(path))
    label = np.asarray(targets.label)
    kept = _chosen(label, chosen, path)
    return targets.vectors[kept], label[kept]


def _chosen(label: NDArray[np.str_], chosen: list[str] | None, path: Path) -> NDArray[np.bool_]:
    """Rows with one of the chosen labels."""
    if chosen is None:
        return np.ones(len(label), dtype=bool)
    there = sorted(set(map(str, label)))
    for name in chosen:
        if name not in there:
            raise ValueError(f"--label {name}: {path} has {', '.join(there) or 'no labels'}")
    return np.isin(label, chosen)
