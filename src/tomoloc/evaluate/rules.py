"""Matching rules: which picks of one tomogram and label are right, and which truth is found.

`gated` is the rule to use; the others reproduce published scores. `RULES` says whose they are
and what they do differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import KDTree

__all__ = ["RULES", "Case", "Rule", "Tally", "find_rule"]

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

# Coordinates in whole voxels put many pairs exactly on the radius: rounding must not decide.
REACH = 1 + 1e-9
DENSE_LIMIT = 250_000_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """Picks of one tomogram and label, best first, and the truth they are held against.

    `cuts` are the numbers of best picks at which a rule without a running count is asked;
    `hit` is the truth row that each pick lies in (-1: none), where an instance volume tells.
    """

    picks: FloatArray
    truth: FloatArray
    radius: float
    cuts: tuple[int, ...] = ()
    hit: IntArray | None = None


class Tally(NamedTuple):
    """By how much each pick, taken in order, adds to the counts, and who is matched to whom."""

    right: IntArray
    wrong: IntArray
    found: IntArray
    pairs: IntArray


class _Edges(NamedTuple):
    """Pick and truth rows of the pairs within reach, sorted by pick, then distance."""

    pick: IntArray
    truth: IntArray
    distance: FloatArray


def _edges(case: Case, *, reach: float, norm: float = 2.0) -> _Edges:
    if len(case.picks) == 0 or len(case.truth) == 0:
        empty = np.zeros(0, dtype=int)
        return _Edges(empty, empty, np.zeros(0))
    near = KDTree(case.picks).sparse_distance_matrix(
        KDTree(case.truth), reach * REACH, p=norm, output_type="ndarray"
    )
    order = np.lexsort((near["j"], near["v"], near["i"]))
    return _Edges(
        near["i"][order].astype(int), near["j"][order].astype(int), near["v"][order].astype(float)
    )


def _neighbours(edges: _Edges, n_picks: int) -> list[list[int]]:
    """List the truth rows within reach of each pick, nearest first."""
    stops = np.cumsum(np.bincount(edges.pick, minlength=n_picks))[:-1]
    return [part.tolist() for part in np.split(edges.truth, stops)] if n_picks else []


def _first_of(key: IntArray) -> IntArray:
    """Rows at which each value of `key` comes first."""
    return np.unique(key, return_index=True)[1]


def _gated(case: Case) -> Tally:
    edges = _edges(case, reach=case.radius)
    grew = _grow_matching(_neighbours(edges, len(case.picks)), len(case.truth))
    return Tally(grew, 1 - grew, grew, _shortest_matching(edges, case))


def _grow_matching(neighbours: list[list[int]], n_truth: int) -> IntArray:
    """Tell which picks, taken in order, enlarge the maximum one-to-one matching (1) or not (0).

    Augmenting paths (Berge 1957, doi:10.1073/pnas.43.9.842) make the matching of the first k
    picks maximal for every k. A truth reached by a search that fails lies in a set that is
    matched within itself; no later path can leave it, so it is never searched again.
    """
    grew = np.zeros(len(neighbours), dtype=int)
    pick_of, truth_of = [-1] * n_truth, [-1] * len(neighbours)
    closed = [False] * n_truth
    for start in range(len(neighbours)):
        reached: dict[int, int] = {}
        free, queue = -1, [start]
        for pick in queue:
            for truth in neighbours[pick]:
                if truth in reached or closed[truth]:
                    continue
                reached[truth] = pick
                if pick_of[truth] < 0:
                    free = truth
                    break
                queue.append(pick_of[truth])
            if free >= 0:
                break
        if free < 0:
            for truth in reached:
                closed[truth] = True
            continue
        grew[start] = 1
        while free >= 0:
            pick = reached[free]
            pick_of[free], truth_of[pick], free = pick, free, truth_of[pick]
    return grew


def _shortest_matching(edges: _Edges, case: Case) -> IntArray:
    """Pairs (k, 2) of the maximum matching with the smallest sum of distances, exactly.

    Pairs in different connected components do not compete, so each component is solved alone:
    stars by their shortest edge, small ones densely, large ones sparsely.
    """
    n_picks, n_truth = len(case.picks), len(case.truth)
    if len(edges.pick) == 0:
        return np.zeros((0, 2), dtype=int)
    size = n_picks + n_truth
    graph = coo_array((np.ones(len(edges.pick)), (edges.pick, edges.truth + n_picks)), (size, size))
    n_parts, part_of = connected_components(graph, directed=False)
    breadth = np.minimum(
        np.bincount(part_of[:n_picks], minlength=n_parts),
        np.bincount(part_of[n_picks:], minlength=n_parts),
    )
    part = part_of[edges.pick]
    order = np.lexsort((edges.distance, part))
    shortest = order[_first_of(part[order])]
    star = shortest[breadth[part[shortest]] == 1]
    pairs = [np.column_stack([edges.pick[star], edges.truth[star]])]
    rest = order[breadth[part[order]] > 1]
    for block in np.split(rest, np.flatnonzero(np.diff(part[rest])) + 1):
        if len(block):
            alone = _Edges(edges.pick[block], edges.truth[block], edges.distance[block])
            pairs.append(_assign(alone, radius=case.radius))
    joined = np.concatenate(pairs)
    return joined[np.argsort(joined[:, 0], kind="stable")]


def _assign(edges: _Edges, *, radius: float) -> IntArray:
    """Solve one component: a missing pair costs more than all distances together can save."""
    rows, row = np.unique(edges.pick, return_inverse=True)
    columns, column = np.unique(edges.truth, return_inverse=True)
    n, m = len(rows), len(columns)
    # From 1 to 1.5: a sparse matrix takes a distance of zero for no edge.
    cost = 1 + edges.distance / (2 * radius)
    missing = 2.0 * (min(n, m) + 1)
    first: IntArray
    second: IntArray
    if n * m <= 1_000_000:
        dense = np.full((n, m), missing)
        dense[row, column] = cost
        first, second = linear_sum_assignment(dense)
        kept = dense[first, second] < missing
    else:
        own = np.arange(n)
        sparse = csr_array(
            (
                np.append(cost, np.full(n, missing)),
                (np.append(row, own), np.append(column, m + own)),
            ),
            shape=(n, m + n),
        )
        first, second = min_weight_full_bipartite_matching(sparse)
        kept = second < m
    return np.column_stack([rows[first[kept]], columns[second[kept]]])


def _take_in_order(case: Case) -> tuple[IntArray, IntArray, IntArray]:
    """Let each pick take its nearest free truth: taken (0/1), crowded out (0/1), pairs."""
    neighbours = _neighbours(_edges(case, reach=case.radius), len(case.picks))
    taken, crowded = np.zeros((2, len(case.picks)), dtype=int)
    gone: dict[int, int] = {}
    for pick, near in enumerate(neighbours):
        free = next((truth for truth in near if truth not in gone), None)
        if free is None:
            crowded[pick] = bool(near)
        else:
            taken[pick] = 1
            gone[free] = pick
    pairs = np.array([(pick, truth) for truth, pick in gone.items()], dtype=int).reshape(-1, 2)
    return taken, crowded, pairs


def _greedy(case: Case) -> Tally:
    taken, _, pairs = _take_in_order(case)
    return Tally(taken, 1 - taken, taken, pairs)


def _deepict(case: Case) -> Tally:
    taken, crowded, pairs = _take_in_order(case)
    return Tally(taken, 1 - taken - crowded, taken, pairs)


def _cover(case: Case) -> tuple[IntArray, IntArray, IntArray]:
    """Let any pick find any truth: newly found by each pick, near any (0/1), nearest pairs."""
    edges = _edges(case, reach=case.radius)
    n = len(case.picks)
    found = np.bincount(edges.pick[_first_of(edges.truth)], minlength=n).astype(int)
    near = (np.bincount(edges.pick, minlength=n) > 0).astype(int)
    order = np.lexsort((edges.distance, edges.truth))
    best = order[_first_of(edges.truth[order])]
    return found, near, np.column_stack([edges.pick[best], edges.truth[best]])


def _czii(case: Case) -> Tally:
    found, _, pairs = _cover(case)
    return Tally(found, 1 - found, found, pairs)


def _picket(case: Case) -> Tally:
    found, near, pairs = _cover(case)
    return Tally(near, 1 - near, found, pairs)


def _shrec(case: Case) -> Tally:
    hit = case.hit
    if hit is None:
        edges = _edges(case, reach=case.radius)
        hit = np.full(len(case.picks), -1)
        nearest = _first_of(edges.pick)
        hit[edges.pick[nearest]] = edges.truth[nearest]
    inside = np.flatnonzero(hit >= 0)
    first = inside[_first_of(hit[inside])]
    found = np.zeros(len(case.picks), dtype=int)
    found[first] = 1
    return Tally(found, 1 - found, found, np.column_stack([first, hit[first]]))


def _tomotwin(case: Case) -> Tally:
    side = 2 * case.radius
    edges = _edges(case, reach=side / 4, norm=np.inf)
    gap = np.abs(case.picks[edges.pick] - case.truth[edges.truth])
    shared = np.prod(side - gap, axis=1)
    overlap = shared / (2 * side**3 - shared)
    found, wrong = np.zeros(len(case.picks), dtype=int), np.ones(len(case.picks), dtype=int)
    best: dict[int, tuple[float, int]] = {}
    served: dict[int, int] = {}
    for edge in np.flatnonzero(overlap > 0.6).tolist():
        pick, truth = int(edges.pick[edge]), int(edges.truth[edge])
        value, rival = best.get(truth, (0.0, -1))
        found[pick] += rival < 0
        if overlap[edge] <= value:
            continue
        best[truth] = float(overlap[edge]), pick
        served[pick] = served.get(pick, 0) + 1
        wrong[pick] -= served[pick] == 1
        if rival >= 0:
            served[rival] -= 1
            # From this cut on the rival is no truth's best box, and so false.
            wrong[pick] += served[rival] == 0
    pairs = np.array([(pick, truth) for truth, (_, pick) in best.items()], dtype=int)
    return Tally(found, wrong, found, pairs.reshape(-1, 2))


def _tomocpt(case: Case) -> Tally:
    n, m = len(case.picks), len(case.truth)
    if n * m > DENSE_LIMIT:
        raise ValueError(
            f"rule 'tomocpt' needs the whole {n} x {m} distance matrix, which is too large;"
            " use rule 'gated' or fewer picks"
        )
    gap = np.sqrt(((case.picks[:, None] - case.truth[None]) ** 2).sum(axis=-1))
    found, pairs, before = np.zeros(n, dtype=int), np.zeros((0, 2), dtype=int), 0
    for cut in sorted({k for k in (*case.cuts, n) if 0 < k <= n}):
        pick, truth = linear_sum_assignment(gap[:cut])
        near = gap[pick, truth] <= case.radius * REACH
        pairs = np.column_stack([pick[near], truth[near]])
        found[cut - 1] = len(pairs) - before
        before = len(pairs)
    return Tally(found, 1 - found, found, pairs)


@dataclass(frozen=True)
class Rule:
    """A way to decide which picks are right.

    Parameters
    ----------
    summary, source : str
        What it does and where it differs from `gated`; who scores like this.
    count : callable
        The rule itself.
    beta : float
        Weight of recall in its F score.
    percentiles : tuple of float
        Where its curve is sampled; at every score if empty.
    """

    summary: str
    source: str
    count: Callable[[Case], Tally] = field(repr=False)
    beta: float = 1.0
    percentiles: tuple[float, ...] = ()


RULES: dict[str, Rule] = {
    "gated": Rule(
        "as many one-to-one pairs within the radius as exist, the shortest of those",
        "tomoloc's default; Kuhn 1955, doi:10.1002/nav.3800020109",
        _gated,
    ),
    "greedy": Rule(
        "best score first, each pick takes the nearest free truth within the radius; an early"
        " pick may take the only truth of a later one",
        "common practice, as for VOC average precision, doi:10.1007/s11263-009-0275-4",
        _greedy,
    ),
    "czii": Rule(
        "every truth with a pick within the radius (0.5 particle radii there) is found and all"
        " other picks are false; one pick may find several, so precision can pass 1; F4",
        "CZII CryoET Object Identification, kaggle.com/code/metric/czi-cryoet-84969",
        _czii,
        beta=4.0,
    ),
    "shrec": Rule(
        "a pick belongs to the particle whose body it lies in (instance volume, or the nearest"
        " within the radius); further picks of a particle are false",
        "SHREC 2019-2021 tracks, doi:10.2312/3dor.20191061, doi:10.1016/j.cag.2020.07.010",
        _shrec,
    ),
    "deepict": Rule(
        "as greedy (10 voxels there), but a pick whose truths are all taken is ignored, so double"
        " picks cost nothing",
        "DeePiCt, doi:10.1038/s41592-022-01746-2",
        _deepict,
    ),
    "tomotwin": Rule(
        "boxes of side 2 x radius with intersection over union > 0.6; a pick that is no truth's"
        " best box is false, one pick may serve several truths",
        "TomoTwin, doi:10.1038/s41592-023-01878-z",
        _tomotwin,
    ),
    "tomocpt": Rule(
        "assigns all picks to all truths first and drops pairs beyond the radius (half the"
        " diameter) afterwards, which loses matches; thresholds at 2 to 98 % in steps of 8 %",
        "tomoCPT, Acta Cryst. D 2025; Jonker and Volgenant 1987, doi:10.1007/BF02278710",
        _tomocpt,
        percentiles=tuple(range(2, 99, 8)),
    ),
    "picket": Rule(
        "any pick within the radius (100 or 125 Å there) of any truth is right, any truth within"
        " it of any pick is found; adds the relative recall against random points",
        "PickET, bioRxiv 2025, PMC12633485",
        _picket,
    ),
}


def find_rule(name: str) -> Rule:
    """Return the rule of that name, or say which there are."""
    if name not in RULES:
        raise ValueError(f"unknown rule {name!r}; choose one of {', '.join(RULES)}")
    return RULES[name]
