"""The verb `cluster`."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tomoloc.features.clusters import Clusters
    from tomoloc.io.embeddings import StoredEmbedding
    from tomoloc.report.clusters import ClusterPictures
    from tomoloc.types import FloatArray, Particles

__all__ = ["cluster"]

logger = logging.getLogger(__name__)

TYPICAL, BORDERLINE, AVERAGED = 16, 8, 200
"""Members that are shown, and that are averaged."""
AT_PARTICLE = 60.0
"""Å from a particle to the candidate that is it."""
TURNED, FEWEST_TURNED = 40, 8
"""Members of one tomogram that are turned onto each other for the average, at most and at least."""
PICTURED = 60
"""Clusters with a picture of their own: the largest."""


def cluster(
    *embeddings: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    particles: Path | None = None,
    min_score: float | None = None,
    min_size: int | None = None,
    target: Literal["mean", "medoid"] = "mean",
    width: float = 320.0,
    pictures: bool = True,
    seed: int = 0,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Sort the candidates of embedded tomograms into kinds of particles, without any example.

    Writes targets.safetensors, with which tomoloc pick embedding --targets finds more of the same;
    for each tomogram a table of the candidates that belong to a cluster; and pictures: umap.png,
    clusters.png and, in the folder clusters, one for each cluster. The paths of targets and tables
    are printed.

    Parameters
    ----------
    embeddings
        Folders (.zarr) that tomoloc embed wrote with one model.
    output
        Folder for the results.
    particles
        Sort only the candidates at these particles, within 60 Å of them: picks of any method, a
        table or a folder of tables.
    min_score
        Candidates are background where the probability of a particle's centre is lower; 0.2 by
        default, 0 with --particles.
    min_size
        Of a cluster; 5, or more where there are many candidates, by default.
    target
        What stands for a cluster: the mean of its vectors, or the vector nearest to it.
    width
        Side of the pictures of particles in Å.
    pictures
        Draw pictures; all but umap.png need the tomograms.
    seed
        Of the plane's chance.
    overwrite
        Replace results that were made with other parameters.
    """
    from tomoloc.atomic import check_writable, remove_drafts
    from tomoloc.cli.runs import is_done
    from tomoloc.progress import show_progress

    if min_score is None:
        min_score = 0.2 if particles is None else 0.0
    _check_options(embeddings, min_score=min_score, min_size=min_size, width=width, seed=seed)
    parameters: dict[str, Any] = {"min_score": min_score, "target": target, "seed": seed}
    if min_size is not None:
        parameters["min_size"] = min_size
    stored = _open(embeddings)
    inputs = {
        "embeddings": [str(path.resolve()) for path in embeddings],
        "model": stored[0].source.model,
    }
    if particles is not None:
        inputs["particles"] = str(particles.resolve())
    shown = {"pictures": pictures, "width": width}
    record = {"inputs": inputs, "parameters": {**parameters, **shown}}
    files = [
        output / n for n in ("targets.safetensors", *(f"{s.source.name}.star" for s in stored))
    ]
    check_writable(output)
    _check_folder(output / "clusters")
    # All are looked at: tables may be there that something else has made.
    done = [
        not overwrite
        and is_done(file, method="cluster", parameters=record["parameters"], inputs=inputs)
        for file in files
    ]
    if not all(done):
        remove_drafts(output)
        start = time.perf_counter()
        with show_progress(sys.stderr.isatty()):
            pool = _read_pool(stored)
            if particles is not None:
                pool = _at_particles(pool, particles)
            clusters = _cluster(pool, parameters)
            if pictures:
                _write_pictures(pool, clusters, parameters, output, width=width)
        _write(pool, clusters, record, output, seconds=time.perf_counter() - start)
    for path in files:
        sys.stdout.write(f"{path}\n")


def _check_options(
    embeddings: Sequence[Path],
    *,
    min_score: float,
    min_size: int | None,
    width: float,
    seed: int,
) -> None:
    if not embeddings:
        raise ValueError("cluster needs at least one embedding (.zarr, as tomoloc embed writes it)")
    if not 0 <= min_score < 1:
        raise ValueError(f"--min-score is a probability, from 0 to below 1; got {min_score:g}")
    if min_size is not None and min_size < 2:
        raise ValueError(f"--min-size must be at least 2; got {min_size}")
    if not 20 <= width <= 1000:
        raise ValueError(f"--width is in Å, from 20 to 1000; got {width:g}")
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more; got {seed}")


def _check_folder(folder: Path) -> None:
    """Refuse to replace a folder that holds more than pictures of clusters."""
    others = [path for path in folder.glob("*") if not path.match("cluster_*.png")]
    if others:
        raise FileExistsError(f"{others[0]} would be lost; give another -o")


def _open(embeddings: Sequence[Path]) -> list[StoredEmbedding]:
    """Open all embeddings; refuse those that do not go together."""
    from tomoloc.io.embeddings import read_embedding
    from tomoloc.io.targets import check_model

    stored = [read_embedding(path) for path in embeddings]
    for item in stored[1:]:
        check_model(item.source.model, stored[0].source.model, what=str(item.path))
    counts = Counter(item.source.name for item in stored)
    name, most = counts.most_common(1)[0]
    if most > 1:
        raise ValueError(
            f"{most} embeddings are of tomograms called {name}, whose tables would be one; embed"
            " them in one go, which names them after their folders, or rename the files"
        )
    return stored


@dataclass(frozen=True, eq=False, kw_only=True)
class _Pool:
    """The candidates of all tomograms, one tomogram after the other."""

    stored: Sequence[StoredEmbedding]
    particles: Particles
    vectors: NDArray[np.float16]
    tomogram: NDArray[np.int64]
    """Number of each candidate's tomogram."""
    edge: NDArray[np.bool_] = field(repr=False)

    @property
    def scores(self) -> FloatArray:
        return np.asarray(self.particles.score)


def _read_pool(stored: Sequence[StoredEmbedding]) -> _Pool:
    from tomoloc.io.embeddings import read_candidates
    from tomoloc.localize import EDGE_COLUMN
    from tomoloc.types import Particles

    tables, vectors = zip(*(read_candidates(item.path) for item in stored), strict=True)
    particles = Particles.concatenate(list(tables))
    if not len(particles):
        raise ValueError("the embeddings hold no candidates; embed with a lower --threshold")
    return _Pool(
        stored=stored,
        particles=particles,
        vectors=np.concatenate(vectors),
        tomogram=np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
        edge=np.asarray(particles.extra[EDGE_COLUMN], dtype=bool),
    )


def _at_particles(pool: _Pool, table: Path) -> _Pool:
    """Keep the candidates that lie at the particles of a table, one for each."""
    from tomoloc.cli.references import read_stated
    from tomoloc.evaluate import match_particles
    from tomoloc.io.tables import read_particles

    rows, n_particles = [], 0
    # A table without names is of the tomogram, if there is but one.
    unnamed = pool.stored[0].source.name if len(pool.stored) == 1 else "-"
    stated = read_stated(table, tomogram=unnamed)
    for number, stored in enumerate(pool.stored):
        source = stored.source
        marked = stated
        if marked is None:  # its voxels are those of the tomogram that was embedded
            marked = read_particles(
                table, voxel_spacing=source.voxel_spacing, shape=source.size[::-1], tomogram=unnamed
            )
        names = [source.name, source.tomogram.name]
        marked = marked[np.isin(np.asarray(marked.tomogram), names)]
        own = np.flatnonzero(pool.tomogram == number)
        pairs = match_particles(_bare(pool.particles[own]), _bare(marked), radius=AT_PARTICLE).pairs
        rows.append(own[np.sort(pairs[:, 0])])
        n_particles += len(marked)
    if not n_particles:
        known = ", ".join(stored.source.name for stored in pool.stored[:3])
        raise ValueError(
            f"--particles {table}: it holds no particles of the embedded tomograms ({known})"
        )
    kept = np.concatenate(rows)
    logger.info("candidates at %d of %d particles of %s", len(kept), n_particles, table)
    return replace(
        pool,
        particles=pool.particles[kept],
        vectors=pool.vectors[kept],
        tomogram=pool.tomogram[kept],
        edge=pool.edge[kept],
    )


def _bare(particles: Particles) -> Particles:
    return replace(particles, label="", tomogram="", extra={})


def _cluster(pool: _Pool, parameters: Mapping[str, Any]) -> Clusters:
    from tomoloc.features.clusters import cluster_candidates

    found = cluster_candidates(
        pool.vectors,
        pool.scores,
        whole=~pool.edge,
        spread=pool.stored[0].source.spread,
        **parameters,
    )
    if not len(found):
        n = int((pool.scores >= parameters["min_score"]).sum())
        raise ValueError(
            f"no clusters among {n} candidates of {parameters['min_score']:g} or more; give more"
            " tomograms, or a lower --min-score"
        )
    n_clustered = int((found.label >= 0).sum())
    logger.info("%d clusters hold %d of %d candidates", len(found), n_clustered, len(found.label))
    return found


# ------------------------------------------------------------------------------------- pictures


def _write_pictures(
    pool: _Pool, clusters: Clusters, parameters: Mapping[str, Any], output: Path, *, width: float
) -> None:
    from tomoloc.atomic import writing
    from tomoloc.features.clusters import lay_out
    from tomoloc.report.clusters import draw_cluster, draw_map, draw_overview

    n_tomograms = len(pool.stored)
    where = pool.stored[0].source.name if n_tomograms == 1 else f"{n_tomograms} tomograms"
    title = f"{len(clusters)} clusters of candidates in {where}"
    how = {name: parameters[name] for name in ("min_score", "seed")}
    coordinates = lay_out(pool.vectors, pool.scores, whole=~pool.edge, **how)
    with writing(output / "umap.png") as draft:
        draw_map(coordinates, clusters.label, title=title).savefig(draft, dpi=150)
    shown = _collect(pool, clusters, width=width)
    if not shown:
        return
    with writing(output / "clusters.png") as draft:
        note = "" if len(shown) == len(clusters) else f" (the largest {len(shown)} are shown)"
        draw_overview(shown, title=title + note).savefig(draft, dpi=150)
    with writing(output / "clusters") as folder:
        folder.mkdir()
        for item in shown:
            draw_cluster(item).savefig(folder / f"{item.name}.png", dpi=150)


def _collect(pool: _Pool, clusters: Clusters, *, width: float) -> list[ClusterPictures]:
    """Cut what is shown of each cluster from the tomograms, each of which is read once."""
    from tomoloc.progress import progress
    from tomoloc.report.clusters import (
        ClusterPictures,
        average_turned,
        cut_boxes,
        cut_slices,
    )

    chosen = [_choose(clusters, i) for i in range(min(len(clusters), PICTURED))]
    spacing = min(item.grid_spacing for item in pool.stored) / 2
    side = 2 * int(width / spacing / 2) + 1
    sums = np.zeros((len(chosen), side, side, side))
    counts = np.zeros_like(sums)
    slices: dict[int, FloatArray] = {}
    turned: dict[int, tuple[FloatArray, int, str]] = {}
    missing = []
    for number, stored in enumerate(progress(pool.stored, "cutting out particles")):
        try:
            tomogram = _read_tomogram(stored)
        except (OSError, ValueError) as error:
            missing.append(f"{stored.source.tomogram} ({error})")
            continue
        turning: dict[int, NDArray[np.int64]] = {}
        for i, (typical, borderline, averaged) in enumerate(chosen):
            rows = np.unique(np.concatenate([typical, borderline, averaged]))
            rows = rows[pool.tomogram[rows] == number]
            position = pool.particles.position[rows]
            boxes = cut_boxes(tomogram, position, width=width, spacing=spacing)
            if stored.source.contrast == "light":  # all are shown as a microscope gives them
                boxes *= -1
            slices |= dict(zip(rows.tolist(), cut_slices(boxes, spacing), strict=True))
            boxes = boxes[np.isin(rows, averaged)]
            sums[i] += np.nansum(boxes, axis=0)
            counts[i] += np.isfinite(boxes).sum(axis=0)
            own = averaged[pool.tomogram[averaged] == number][:TURNED]
            most = np.bincount(pool.tomogram[averaged]).argmax()
            if number == most and len(own) >= FEWEST_TURNED:
                turning[i] = own
        averages = average_turned(
            tomogram,
            [pool.particles.position[own] for own in turning.values()],
            dark=stored.source.contrast != "light",
            width=width,
            spacing=spacing,
        )
        for (i, own), average in zip(turning.items(), averages, strict=True):
            turned[i] = average, len(own), stored.source.name
    if missing:
        logger.warning(
            "no pictures of particles from %d of %d tomograms, which cannot be read: %s",
            len(missing), len(pool.stored), ", ".join(missing[:3]),
        )  # fmt: skip
    if len(missing) == len(pool.stored):
        return []
    return [
        ClusterPictures(
            name=clusters.names[i],
            number=i,
            n_members=int(clusters.n_members[i]),
            n_tomograms=len(np.unique(pool.tomogram[clusters.label == i])),
            typical=[slices[row] for row in typical.tolist() if row in slices],
            borderline=[slices[row] for row in borderline.tolist() if row in slices],
            **_average(turned.get(i), sums[i] / np.maximum(counts[i], 1), averaged, slices),
            spacing=spacing,
        )
        for i, (typical, borderline, averaged) in enumerate(chosen)
    ]


def _choose(clusters: Clusters, number: int) -> tuple[NDArray[np.int64], ...]:
    """Rows of the members that are shown as typical and as borderline, and that are averaged."""
    rows = np.flatnonzero(clusters.label == number)
    rows = rows[np.argsort(-clusters.similarity[rows], kind="stable")]
    typical = rows[: min(TYPICAL, len(rows) - min(BORDERLINE, len(rows) // 3))]
    borderline = rows[len(typical) :][-BORDERLINE:]
    return typical, borderline, rows[:AVERAGED]


def _average(
    turned: tuple[FloatArray, int, str] | None,
    still: FloatArray,
    averaged: NDArray[np.intp],
    slices: Mapping[int, FloatArray],
) -> dict[str, Any]:
    """The average that is shown: of members turned onto each other, or else as they lie."""
    if turned is not None:
        return {"average": turned[0], "n_averaged": turned[1], "turned": turned[2]}
    seen = int(np.isin(averaged, list(slices)).sum())
    return {"average": still, "n_averaged": seen, "turned": ""}


def _read_tomogram(stored: StoredEmbedding) -> Any:
    from tomoloc.io.tomograms import read_tomogram

    source = stored.source
    tomogram = read_tomogram(source.tomogram, voxel_spacing=source.voxel_spacing)
    if tomogram.shape[::-1] != source.size:
        raise ValueError("its size has changed since it was embedded")
    return replace(tomogram, origin=np.zeros(3))


# --------------------------------------------------------------------------------------- tables


def _write(
    pool: _Pool,
    clusters: Clusters,
    record: Mapping[str, Any],
    output: Path,
    *,
    seconds: float,
) -> None:
    """Write tables, then targets with the record of the whole: what is there when all is done."""
    import tomli_w

    from tomoloc import __version__
    from tomoloc.atomic import writing
    from tomoloc.cli.runs import peak_memory_gib
    from tomoloc.io.targets import Targets, write_targets

    head = {
        "tomoloc": {"version": __version__, "command": "cluster", "format": 1},
        "method": {"name": "cluster"},
        **record,
    }
    for number, stored in enumerate(pool.stored):
        _write_table(pool, clusters, head, number, output / f"{stored.source.name}.star")
    results = {
        "n_clusters": len(clusters),
        "n_members": clusters.n_members.tolist(),
        "n_candidates": len(clusters.label),
        "seconds": round(seconds, 2),
    }
    if (peak := peak_memory_gib()) is not None:
        results["peak_memory_gib"] = round(peak, 3)
    path = output / "targets.safetensors"
    with writing(path.with_suffix(".run.toml")) as draft:
        draft.write_text(tomli_w.dumps({**head, "results": results}), "utf-8")
        targets = Targets(
            vectors=clusters.targets,
            label=np.array(clusters.names),
            model=pool.stored[0].source.model,
            n_members=clusters.n_members,
        )
        write_targets(targets, path)


def _write_table(
    pool: _Pool, clusters: Clusters, head: Mapping[str, Any], number: int, path: Path
) -> None:
    """Write one tomogram's members, best first, and a record as a table of picks has it."""
    import tomli_w

    from tomoloc.atomic import writing
    from tomoloc.io.tables import Frame, write_particles

    source = pool.stored[number].source
    rows = np.flatnonzero((pool.tomogram == number) & (clusters.label >= 0))
    rows = rows[np.lexsort((-pool.scores[rows], clusters.label[rows]))]
    names = np.array(clusters.names)
    particles = pool.particles[rows]
    extra = {**particles.extra, "tomolocSimilarity": clusters.similarity[rows]}
    particles = replace(particles, label=names[clusters.label[rows]], extra=extra)
    inputs = {
        **head["inputs"],
        "tomogram": str(source.tomogram),
        "size": list(source.size),
        "voxel_spacing": source.voxel_spacing,
        "contrast": source.contrast,
    }
    record = {**head, "inputs": inputs, "results": {"n_particles": len(particles)}}
    frame = Frame(source.name, source.size[::-1], source.voxel_spacing)
    with writing(path.with_suffix(".run.toml")) as draft:
        draft.write_text(tomli_w.dumps(record), "utf-8")
        write_particles(particles, path, frames={frame.name: frame})
