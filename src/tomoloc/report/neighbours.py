"""How the particles of a tomogram lie to each other: neighbours, clusters, filaments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from tomoloc.report.page import Block, Note, Section, Table
from tomoloc.types import Particles

if TYPE_CHECKING:
    from tomoloc.report.gather import Run

__all__ = ["find_groups", "make_section", "nearest_distances"]

_FILAMENT, _ARC = "tomolocFilament", "tomolocArcLength"
REACH = 500.0
"""Å to the next particle of a cluster."""
LEAST = 3
"""Particles of a cluster."""


def nearest_distances(position: ArrayLike) -> NDArray[np.floating[Any]]:
    """Distance of each place to the nearest other one.

    Parameters
    ----------
    position : array_like, shape (n, 3)
        In angstrom.

    Returns
    -------
    ndarray, shape (n,)
        In angstrom; empty where there are fewer than two.
    """
    places = np.reshape(np.asarray(position, dtype=float), (-1, 3))
    if len(places) < 2:
        return np.zeros(0)
    distance = np.asarray(KDTree(places).query(places, k=2)[0])
    return distance[:, 1]


def find_groups(
    position: ArrayLike, *, reach: float = REACH, least: int = LEAST
) -> NDArray[np.intp]:
    """Gather places into clusters by density: DBSCAN [1]_.

    Parameters
    ----------
    position : array_like, shape (n, 3)
        In angstrom.
    reach : float
        Distance within which places are neighbours.
    least : int
        Places within the reach of one, itself included, that make it the middle of a cluster.

    Returns
    -------
    ndarray of int, shape (n,)
        Number of each place's cluster from 0 on; -1 for none.

    References
    ----------
    .. [1] Ester, Kriegel, Sander & Xu, A density-based algorithm for discovering clusters in large
       spatial databases with noise, KDD (1996).
    """
    from sklearn.cluster import DBSCAN

    places = np.reshape(np.asarray(position, dtype=float), (-1, 3))
    if not len(places):
        return np.zeros(0, dtype=np.intp)
    return np.asarray(DBSCAN(eps=reach, min_samples=least).fit(places).labels_, dtype=np.intp)


def make_section(runs: Sequence[Run]) -> Section | None:
    """Tell, label by label, how far neighbours are apart and how many are in clusters.

    Parameters
    ----------
    runs : sequence of Run
        Tomograms are looked at one by one.

    Returns
    -------
    Section or None
        None where no tomogram has two particles of a label or a filament.
    """
    tables = [run.particles for run in runs]
    names = sorted({label for table in tables for label in table.labels})
    rows, filaments = [], []
    for name in names:
        own = [table[np.asarray(table.label) == name] for table in tables]
        row = _describe([table[~_on_filament(table)] for table in own])
        rows += [[name or "all", *row]] if row else []
        lines = [table[_on_filament(table)] for table in own]
        filaments += [[name, *_measure(lines)]] if any(map(len, lines)) else []
    blocks: list[Block] = []
    if rows:
        header = ["label", "particles", "nearest: median (nm)", "5 to 95 % (nm)"]
        header += ["clusters", "in clusters", "largest"]
        blocks.append(Table(header, rows))
        blocks.append(
            Note(
                "Distances to the nearest particle of the same label. Clusters (DBSCAN): particles"
                f" within {REACH / 10:g} nm of a chain of others, {LEAST} or more."
            )
        )
    if filaments:
        header = ["label", "filaments", "length of all (nm)", "median length (nm)"]
        blocks.append(Table(header, filaments))
    return Section("Neighbours", blocks) if blocks else None


def _on_filament(table: Particles) -> NDArray[np.bool_]:
    numbers = table.extra.get(_FILAMENT, np.zeros(len(table)))
    return np.asarray(numbers, dtype=float) > 0


def _describe(tables: Sequence[Particles]) -> list[str]:
    distance = np.concatenate([nearest_distances(table.position) for table in tables]) / 10
    if not len(distance):
        return []
    sizes: list[int] = []
    for table in tables:
        groups = find_groups(table.position)
        sizes += np.bincount(groups[groups >= 0]).tolist()
    low, middle, high = np.percentile(distance, [5, 50, 95])
    return [
        str(sum(map(len, tables))),
        f"{middle:.1f}",
        f"{low:.1f} to {high:.1f}",
        str(len(sizes)),
        str(sum(sizes)),
        str(max(sizes, default=0)),
    ]


def _measure(tables: Sequence[Particles]) -> list[str]:
    """Number of filaments, and their lengths from the first point to the last."""
    lengths: list[float] = []
    for table in tables:
        number = np.asarray(table.extra[_FILAMENT], dtype=float)
        arc = np.asarray(table.extra.get(_ARC, np.zeros(len(table))), dtype=float)
        lengths += [float(np.ptp(arc[number == one])) / 10 for one in np.unique(number)]
    return [str(len(lengths)), f"{sum(lengths):.0f}", f"{np.median(lengths):.0f}"]
