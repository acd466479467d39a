"""Flexible molecules: conformers along the slow modes of an elastic network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh, splu
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.physics.potential import MOLECULAR_SURFACE, normalize_map
from tomoloc.types import FloatArray, Structure, Volume

__all__ = ["Conformer", "Motions", "draw_conformer", "find_motions"]

_RESIDUE_SPACING = 5.1  # Å, cube root of a residue's volume
_MOST_NODES = 3000  # beyond, neighbours are joined; a second of computing and 0.3 GiB
_FEWEST_NEIGHBORS = 8  # springs of a node, however far; loose tails would swing otherwise
_CLOSE = 7.5  # Å; distances between residues nearer than that are kept
_SWEEPS = 30
_CARRIERS = 10  # nodes whose motion an atom follows
_FARTHEST = 5.0  # rmsds; loose ends do not swing farther
_MOST_CHANGE = 0.5  # radii of gyration; linear modes would tear a molecule apart
_SPECK = 0.05  # of the largest piece of a map; smaller ones ride along without nodes
_ROUNDING = 4  # decimals of Å, so that the last bits of linear algebra count for nothing


@dataclass(frozen=True, eq=False, kw_only=True)
class Motions:
    """The slow modes of one molecule.

    Parameters
    ----------
    source : Structure or Volume
    nodes : ndarray, shape (n, 3)
        Positions xyz of its CA and P atoms, or of what stands for several.
    displacement : ndarray, shape (m, n, 3)
        Of the nodes in each mode; the modes are nearly orthonormal.
    stiffness : ndarray, shape (m,)
        Eigenvalues, lowest first; springs have a stiffness of 1.
    pairs : ndarray of int, shape (p, 2)
        Neighbouring nodes whose distances a conformer keeps.
    grid : Volume, optional
        Of a map: a coarse grid on which its displacement is known.
    carry : sparse array, shape (atoms or voxels of `grid`, n)
        Takes the motion of nodes to everything else.
    """

    source: Structure | Volume
    nodes: FloatArray
    displacement: FloatArray
    stiffness: FloatArray
    pairs: NDArray[np.int64]
    carry: sparse.csr_array
    grid: Volume | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Conformer:
    """One flexible variant of a molecule.

    Parameters
    ----------
    source : Structure or Volume
        In the frame of the original.
    rmsd : float
        Of the network's nodes from the original, both superposed.
    """

    source: Structure | Volume
    rmsd: float


def find_motions(
    source: Structure | Volume, *, cutoff: float = 15.0, first: int = 7, last: int = 20
) -> Motions:
    """Find the slow modes of a molecule's elastic network.

    The network is anisotropic [1]_: equal springs join all nodes (CA of proteins, P of nucleic
    acids) nearer than `cutoff`. Every node has 8 springs at least, and separate pieces are joined
    as if they touched, so that modes from the seventh on are deformations. Large assemblies are
    coarse-grained [2]_: nodes that share a cell of a grid become one, and the cutoff grows with
    the cells. A density map gets nodes on its own voxels or cells of them. Other atoms, and the
    map, follow the nodes near them, by a locally linear fit.

    Parameters
    ----------
    source : Structure or Volume
        A map must have its molecule positive, in any units.
    cutoff : float
        For nodes that stand for one residue each.
    first, last : int
        Modes to take, counted from 1 with the six rigid motions. Modes as stiff as the last,
        which symmetric molecules have, come with it.

    Returns
    -------
    Motions

    Raises
    ------
    ValueError
        If the molecule has fewer than four nodes.

    References
    ----------
    .. [1] Atilgan et al., Biophys. J. 80 (2001), doi:10.1016/S0006-3495(01)76033-X.
    .. [2] Doruker, Jernigan & Bahar, J. Comput. Chem. 23 (2002), doi:10.1002/jcc.1160.
    """
    nodes, spacing = _find_nodes(source)
    joined, edge = _join(nodes, _MOST_NODES)
    # A map's voxels, or cells, stand for more space than a residue.
    ratio = max(spacing / _RESIDUE_SPACING, 1.0) * np.cbrt(len(nodes) / len(joined))
    if len(joined) < 4:
        raise ValueError(
            f"{source.name or 'the structure'} has {len(joined)} residues; flexible variants need"
            " at least four: set conformers = 0"
        )
    stiffness, modes = _slowest(joined, _springs(joined, cutoff * ratio), first, last)
    if edge:
        carry = _carry(joined, nodes)
        modes = np.array([carry @ mode for mode in modes])
    if isinstance(source, Structure):
        close = cKDTree(nodes).query_pairs(_CLOSE, output_type="ndarray").astype(np.int64)
        grid, places = None, source.position
    else:
        close = np.zeros((0, 2), dtype=np.int64)
        grid = _coarse_grid(source, step=1.5 * spacing * np.cbrt(len(nodes) / len(joined)))
        places = grid.to_position(np.indices(grid.shape).reshape(3, -1).T)
    return Motions(
        source=source,
        nodes=nodes,
        displacement=modes,
        stiffness=stiffness,
        pairs=close,
        carry=_carry(nodes, places),
        grid=grid,
    )


def draw_conformer(motions: Motions, *, rmsd: float, rng: np.random.Generator) -> Conformer:
    """Draw one variant of a molecule.

    Modes mix as heat excites them: normally distributed, with variances that fall with their
    stiffness. Then the whole is scaled to `rmsd`, while distances between neighbouring residues
    are kept.

    Parameters
    ----------
    motions : Motions
    rmsd : float
        Of the nodes, to be reached within half a per cent or so.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If the rmsd is more than half the molecule's radius of gyration.
    """
    if rmsd == 0:
        return Conformer(source=motions.source, rmsd=0.0)
    most = _MOST_CHANGE * float(np.sqrt(motions.nodes.var(axis=0).sum()))
    if rmsd > most:
        raise ValueError(
            f"an rmsd of {rmsd:g} Å would tear {motions.source.name or 'the molecule'} apart;"
            f" ask for at most {most:.1f} Å, half its radius of gyration"
        )
    shape = motions.displacement.shape
    modes = motions.displacement.reshape(len(motions.displacement), -1)
    # Projecting noise gives the same however equally stiff modes are mixed; a tenth of the
    # last stiffness is added so that no single loose end takes it all.
    stiffness = np.maximum(motions.stiffness, 0) + 0.1 * motions.stiffness[-1] + 1e-12
    mixture = modes @ rng.normal(size=modes.shape[1]) / np.sqrt(stiffness)
    direction = (mixture @ modes).reshape(shape[1:])
    direction /= np.sqrt((direction**2).sum(axis=1).mean())
    direction /= np.sqrt(1 + (direction**2).sum(axis=1, keepdims=True) / _FARTHEST**2)
    amplitude = rmsd
    lengths = np.linalg.norm(
        motions.nodes[motions.pairs[:, 0]] - motions.nodes[motions.pairs[:, 1]], axis=1
    )
    for _ in range(8):
        moved = motions.nodes + amplitude * direction
        _keep_lengths(moved, motions.pairs, lengths)
        moved = _superposed(moved, motions.nodes)
        reached = float(np.sqrt(((moved - motions.nodes) ** 2).sum(axis=1).mean()))
        if abs(reached / rmsd - 1) < 0.005:
            break
        amplitude *= rmsd / reached
    shift = np.round(moved - motions.nodes, _ROUNDING)
    return Conformer(source=_follow(motions, shift), rmsd=reached)


def _find_nodes(source: Structure | Volume) -> tuple[FloatArray, float]:
    """Positions of a molecule's nodes, and their spacing."""
    if isinstance(source, Structure):
        if source.is_node is not None and np.any(source.is_node):
            return source.position[source.is_node], _RESIDUE_SPACING
        cells, _ = _join(source.position, len(source.position), edge=_RESIDUE_SPACING)
        return cells, _RESIDUE_SPACING
    volume = normalize_map(source)
    pieces, _ = ndimage.label(volume.data > MOLECULAR_SURFACE, np.ones((3, 3, 3)))
    size = np.bincount(pieces.ravel())[1:]
    large = 1 + np.flatnonzero(size >= _SPECK * size.max())
    inside = volume.to_position(np.argwhere(np.isin(pieces, large)))
    edge = max(volume.voxel_spacing, _RESIDUE_SPACING)
    cells, _ = _join(inside, len(inside), edge=edge if edge > volume.voxel_spacing else 0.0)
    return cells, edge


def _join(position: FloatArray, most: int, *, edge: float = 0.0) -> tuple[FloatArray, float]:
    """Join what shares a cell of a grid, with cells large enough that at most `most` are left."""
    low = position.min(axis=0)
    while True:
        if not edge and len(position) <= most:
            return position, edge
        if edge:
            cells = np.floor((position - low) / edge).astype(np.int64)
            _, which = np.unique(cells, axis=0, return_inverse=True)
            count = np.bincount(which.ravel())
            if len(count) <= most:
                sums = [np.bincount(which.ravel(), column) for column in position.T]
                return np.stack(sums, axis=1) / count[:, None], edge
        edge = edge * 1.05 or _RESIDUE_SPACING


def _springs(nodes: FloatArray, cutoff: float) -> NDArray[np.int64]:
    """Pairs of nodes that are joined, shape (p, 2): one connected network."""
    near = cKDTree(nodes).query_pairs(cutoff, output_type="ndarray").astype(np.int64)
    k = min(_FEWEST_NEIGHBORS, len(nodes) - 1)
    neighbor = _nearest(nodes, nodes, k + 1)[1][:, 1:]
    own = np.stack([np.repeat(np.arange(len(nodes)), k), neighbor.ravel()], axis=1)
    pairs = np.unique(np.sort(np.concatenate([near, own]), axis=1), axis=0)
    while True:
        links = sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(len(nodes), len(nodes)))
        n_pieces, piece = connected_components(links, directed=False)
        if n_pieces == 1:
            return pairs
        inside = np.flatnonzero(piece == np.argmin(np.bincount(piece)))
        outside = np.flatnonzero(piece != piece[inside[0]])
        gap = float(_nearest(nodes[outside], nodes[inside], 1)[0].min())
        across = cKDTree(nodes[inside]).sparse_distance_matrix(
            cKDTree(nodes[outside]), gap + cutoff, output_type="ndarray"
        )
        bridge = np.stack([inside[across["i"]], outside[across["j"]]], axis=1)
        pairs = np.concatenate([pairs, np.sort(bridge, axis=1)])


def _nearest(nodes: FloatArray, places: FloatArray, k: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """Distances to, and indices of, the `k` nodes nearest to each place, shape (places, k)."""
    distance, which = cKDTree(nodes).query(places, np.arange(1, k + 1))
    return np.asarray(distance), np.asarray(which, dtype=np.int64)


def _hessian(nodes: FloatArray, pairs: NDArray[np.int64]) -> sparse.csc_array:
    """Second derivatives of the springs' energy, shape (3 n, 3 n)."""
    along = nodes[pairs[:, 1]] - nodes[pairs[:, 0]]
    # Copies of an atom at one place, as on an axis of symmetry, have no spring.
    along /= np.maximum(np.linalg.norm(along, axis=1), 1e-6)[:, None]
    block = along[:, :, None] * along[:, None, :]
    a, b = pairs.T
    row = np.concatenate([a, b, a, b])[:, None, None] * 3 + np.arange(3)[None, :, None]
    column = np.concatenate([b, a, a, b])[:, None, None] * 3 + np.arange(3)[None, None, :]
    values = np.concatenate([-block, -block, block, block])
    row, column = (np.broadcast_to(i, values.shape).ravel() for i in (row, column))
    n = 3 * len(nodes)
    return sparse.csc_array(sparse.coo_array((values.ravel(), (row, column)), shape=(n, n)))


def _slowest(
    nodes: FloatArray, pairs: NDArray[np.int64], first: int, last: int
) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues and eigenvectors, shape (m, n, 3), of modes `first` to `last`."""
    hessian = _hessian(nodes, pairs)
    n = hessian.shape[0]
    if n <= 4 * last:
        value, vector = np.linalg.eigh(hessian.toarray())
    else:
        shift = 1e-3  # makes the six rigid motions solvable
        shifted = sparse.csc_matrix(hessian + shift * sparse.eye_array(n, format="csc"))
        factor = splu(
            shifted,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        value, vector = eigsh(
            hessian,
            k=last + 4,
            sigma=-shift,
            OPinv=LinearOperator((n, n), factor.solve, dtype=float),
            v0=np.random.default_rng(0).normal(size=n),
        )
    stop = min(last, len(value))
    while stop < len(value) and value[stop] < value[stop - 1] * (1 + 1e-6):
        stop += 1
    chosen = slice(min(first, stop) - 1, stop)
    return value[chosen], vector.T[chosen].reshape(-1, len(nodes), 3)


def _carry(nodes: FloatArray, places: FloatArray) -> sparse.csr_array:
    """Weights with which places follow the nodes near them: moving least squares.

    Around each place, a linear function is fitted to the motion of its nearest nodes, with
    weights that fall so steeply with distance that a place at a node moves with it. Turns and
    shears carry over. Where the nodes lie in a plane or on one side, a little damping keeps
    slopes small.
    """
    k = min(_CARRIERS, len(nodes))
    distance, which = _nearest(nodes, places, k)
    width = distance.mean(axis=1, keepdims=True)
    near = ((distance / (width + 1e-9)) ** 2 + 0.003) ** -2
    offset = (nodes[which] - places[:, None]) / (width[:, :, None] + 1e-9)
    basis = np.concatenate([np.ones((*which.shape, 1)), offset], axis=2)
    normal = np.einsum("pi,pij,pik->pjk", near, basis, basis)
    normal[:, [1, 2, 3], [1, 2, 3]] += 1e-3 * near.sum(axis=1)[:, None]
    target = np.zeros((len(places), 4, 1))
    target[:, 0] = 1
    coefficient = np.linalg.solve(normal, target)[:, :, 0]
    weight = near * np.einsum("pij,pj->pi", basis, coefficient)
    rows = np.repeat(np.arange(len(places)), k)
    shape = (len(places), len(nodes))
    return sparse.csr_array((weight.ravel().astype(np.float32), (rows, which.ravel())), shape=shape)


def _coarse_grid(volume: Volume, *, step: float) -> Volume:
    """A grid that covers a map in steps of whole voxels."""
    every = max(1, round(step / volume.voxel_spacing))
    shape = [-(-(n - 1) // every) + 1 for n in volume.shape]
    return Volume(
        data=np.zeros(shape, dtype=bool),
        voxel_spacing=volume.voxel_spacing * every,
        origin=volume.origin,
    )


@njit(cache=True, nogil=True)
def _keep_lengths(position: FloatArray, pairs: NDArray[np.int64], lengths: FloatArray) -> None:
    """Move positions, in place, until the pairs are as far apart as they were."""
    for _ in range(_SWEEPS):
        for p in range(len(pairs)):
            a, b = pairs[p]
            x = position[b, 0] - position[a, 0]
            y = position[b, 1] - position[a, 1]
            z = position[b, 2] - position[a, 2]
            now = np.sqrt(x * x + y * y + z * z) + 1e-9
            half = 0.5 * (now - lengths[p]) / now
            position[a, 0] += half * x
            position[a, 1] += half * y
            position[a, 2] += half * z
            position[b, 0] -= half * x
            position[b, 1] -= half * y
            position[b, 2] -= half * z


def _superposed(moved: FloatArray, fixed: FloatArray) -> FloatArray:
    """Turn and shift positions on to others as closely as they fit."""
    middle, target = moved.mean(axis=0), fixed.mean(axis=0)
    u, _, vt = np.linalg.svd((moved - middle).T @ (fixed - target))
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    turn = Rotation.from_matrix(vt.T @ u.T)
    return turn.apply(moved - middle) + target


def _follow(motions: Motions, shift: FloatArray) -> Structure | Volume:
    """Move everything with the nodes."""
    moved = motions.carry @ shift
    if isinstance(motions.source, Structure):
        return replace(motions.source, position=motions.source.position + moved)
    grid, volume = cast(Volume, motions.grid), motions.source
    field = moved.T[::-1].reshape(3, *grid.shape) / grid.voxel_spacing
    # What lies at y came from x = y - shift(x).
    here = np.indices(grid.shape, dtype=float)
    back = -field
    for _ in range(5):
        back = -np.array(
            [ndimage.map_coordinates(f, here + back, order=1, mode="nearest") for f in field]
        )
    every = grid.voxel_spacing / volume.voxel_spacing
    places = np.indices(volume.shape, dtype=float)
    coarse = places / every
    for axis in range(3):
        step = ndimage.map_coordinates(back[axis], coarse, order=1, mode="nearest")
        places[axis] += every * step
    data = ndimage.map_coordinates(
        np.asarray(volume.data, dtype=np.float32), places, order=3, mode="nearest"
    )
    return volume.with_data(data)
