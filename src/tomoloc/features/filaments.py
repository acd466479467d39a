"""From a mask of filaments to curves: their middle, in order, with tangents and lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import splev, splprep
from scipy.spatial import KDTree

from tomoloc.types import FloatArray, Volume

__all__ = ["Curve", "trace_filaments"]

_FILL = 0.25
"""Blur in units of the diameter, and what of the blurred mask is filament."""
_THICK = 16.0
"""Voxels from which on a filament may be a hollow tube, such as a microtubule."""
_HOLLOW = 0.5
"""Blur in units of the diameter that is highest in the middle of a tube, not on its wall."""
_RIDGE, _FAINT = 0.75, 0.03
"""Of such a blurred mask, what is a tube's inside: part of the highest nearby, and in all."""
_LONG = 400.0
"""Å: filaments of this length are kept, however thick."""
_STRAIGHT = np.cos(np.deg2rad(40))
"""Cosine of the angle up to which one piece goes on in another one."""
_JITTER = 0.5
"""Squared distance in voxels of a skeleton from the curve that it stands for."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """A filament.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        Points at equal distances along its middle, xyz in angstrom.
    tangent : ndarray, shape (n, 3)
        Unit vectors xyz.
    arc_length : ndarray, shape (n,)
        From its first end, in angstrom.
    length : float
        From end to end, in angstrom.
    """

    position: FloatArray
    tangent: FloatArray
    arc_length: FloatArray
    length: float


def trace_filaments(
    mask: Volume, *, diameter: float, step: float, min_length: float | None = None
) -> list[Curve]:
    """Find the middle lines of filaments.

    The mask is filled and thinned to a skeleton [1]_, which is cut at its branches. Pieces that go
    on in each other, across a branch or a gap up to two diameters wide, are joined, the straightest
    and closest first; smoothing splines through them are the curves, prolonged to the ends of the
    mask.

    Parameters
    ----------
    mask : Volume of bool, data shape (z, y, x)
    diameter : float
        Of a filament, in angstrom.
    step : float
        Between points of a curve, in angstrom.
    min_length : float, optional
        Of a filament, in angstrom; three diameters by default, and 400 Å of thick ones.

    Returns
    -------
    list of Curve
        The longest first.

    Raises
    ------
    ValueError
        If `step` or `diameter` is not positive.

    References
    ----------
    .. [1] Lee, Kashyap & Chu, Building skeleton models via 3-D medial surface/axis thinning
       algorithms, CVGIP 56, 462 (1994), doi:10.1006/cgip.1994.1042.
    """
    from skimage.morphology import skeletonize

    if not (step > 0 and diameter > 0):
        raise ValueError(f"step and diameter must be positive; got {step} and {diameter}")
    least = min(3 * diameter, _LONG) if min_length is None else min_length
    width = diameter / mask.voxel_spacing
    filled = _fill(mask.data, width)
    # Around it there must be room, or the thinning would take the volume's side for a surface.
    skeleton = skeletonize(np.pad(filled, 1))[1:-1, 1:-1, 1:-1] > 0
    pieces = _cut_pieces(skeleton, least=max(3.0, width / 2))
    curves = []
    for points in _join(pieces, reach=2 * width + 2, look=int(max(5, width))):
        curve = _smooth(points, filled, spacing=mask.voxel_spacing, step=step)
        if curve is not None and curve.length >= least:
            curves.append(_place(curve, mask))
    return sorted(curves, key=lambda curve: -curve.length)


def _fill(mask: NDArray[Any], width: float) -> NDArray[np.bool_]:
    """Make a mask of filaments solid and smooth."""
    data = np.asarray(mask, dtype=np.float32)
    if width < _THICK:
        return np.asarray(ndimage.gaussian_filter(data, _FILL * width) > _FILL)
    blurred = ndimage.gaussian_filter(data, _HOLLOW * width, mode="constant")
    highest = ndimage.maximum_filter(blurred, size=2 * int(width) + 1)
    return np.asarray((blurred > _RIDGE * highest) & (blurred > _FAINT))


def _cut_pieces(skeleton: NDArray[np.bool_], *, least: float) -> list[FloatArray]:
    """Cut a skeleton at its branches, and put the voxels zyx of each piece in order."""
    cube = np.ones((3, 3, 3), dtype=np.uint8)
    around = ndimage.convolve(skeleton.astype(np.uint8), cube, mode="constant")
    simple = skeleton & (around <= 3)  # itself and two neighbours
    labels, number = ndimage.label(simple, structure=cube)
    place = np.argwhere(labels)
    owner = labels[tuple(place.T)]
    order = np.argsort(owner, kind="stable")
    groups = np.split(place[order], np.cumsum(np.bincount(owner, minlength=number + 1)[1:])[:-1])
    return [_in_order(group) for group in groups if len(group) >= least]


def _in_order(place: NDArray[np.intp]) -> FloatArray:
    """Walk along voxels that form a line, from one of its ends, or around a ring."""
    neighbours: list[list[int]] = [[] for _ in place]
    for a, b in KDTree(place).query_pairs(1.8):
        neighbours[a].append(b)
        neighbours[b].append(a)
    ends = [row for row, others in enumerate(neighbours) if len(others) < 2]
    row = ends[0] if ends else 0
    walked, seen = [row], {row}
    while True:
        free = [other for other in neighbours[row] if other not in seen]
        if not free:
            return place[walked].astype(float)
        row = min(free, key=lambda other: (np.abs(place[other] - place[row]).sum(), other))
        walked.append(row)
        seen.add(row)


def _join(pieces: list[FloatArray], *, reach: float, look: int) -> list[FloatArray]:
    """Chain the pieces that go on in each other: the straightest and closest pairs first."""
    if not pieces:
        return []
    # Ends 2 i and 2 i + 1 are the first and the last of piece i; directions point outward.
    ends = np.concatenate([[piece[0], piece[-1]] for piece in pieces])
    inward = [[piece[: look + 1][-1], piece[-look - 1 :][0]] for piece in pieces]
    outward = ends - np.concatenate(inward)
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
    pairs = KDTree(ends).query_pairs(reach, output_type="ndarray")
    pairs = pairs[pairs[:, 0] // 2 != pairs[:, 1] // 2]
    gap = ends[pairs[:, 1]] - ends[pairs[:, 0]]
    away = np.linalg.norm(gap, axis=1)
    facing = -(outward[pairs[:, 0]] * outward[pairs[:, 1]]).sum(axis=1)
    ahead = np.minimum(
        (gap * outward[pairs[:, 0]]).sum(axis=1), -(gap * outward[pairs[:, 1]]).sum(axis=1)
    ) / np.maximum(away, 1e-9)
    fit = np.where(away < 4, facing, np.minimum(facing, ahead))  # a step aside turns short gaps
    good = fit > _STRAIGHT
    cost = away / reach + 2 * (1 - fit)
    partner: dict[int, int] = {}
    chain = np.arange(len(pieces))
    for a, b in pairs[good][np.argsort(cost[good], kind="stable")].tolist():
        if a in partner or b in partner or chain[a // 2] == chain[b // 2]:
            continue
        partner[a], partner[b] = b, a
        chain[chain == chain[b // 2]] = chain[a // 2]
    return _follow(pieces, partner)


def _follow(pieces: list[FloatArray], partner: dict[int, int]) -> list[FloatArray]:
    """String pieces together from the free end of each chain."""
    chains, seen = [], set()
    for end in range(2 * len(pieces)):
        if end in partner or end // 2 in seen:
            continue
        parts, here = [], end
        while True:
            piece = pieces[here // 2]
            parts.append(piece if here % 2 == 0 else piece[::-1])
            seen.add(here // 2)
            if (here ^ 1) not in partner:
                break
            here = partner[here ^ 1]
        chains.append(np.concatenate(parts))
    return chains


def _smooth(
    points: FloatArray, filled: NDArray[np.bool_], *, spacing: float, step: float
) -> Curve | None:
    """Lay a spline through voxels zyx, prolong it inside the mask, and walk along it."""
    if len(points) < 5:
        return None
    spline: Any = splprep(points.T, s=_JITTER * len(points))[0]
    fine = np.stack(splev(np.linspace(0, 1, 8 * len(points)), spline), axis=1)
    start, end = (_prolong(line, filled) for line in (fine[::-1], fine))
    fine = np.concatenate([start[::-1], fine, end])
    arc = np.append(0, np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))) * spacing
    length = float(arc[-1])
    # Points stand as far from both ends.
    count = int(length // step)
    along = (length - count * step) / 2 + step * np.arange(count + 1)

    def at(where: FloatArray) -> FloatArray:
        return np.stack([np.interp(where, arc, axis) for axis in fine.T], axis=1)

    place = at(along)
    tangent = at(np.minimum(along + spacing, length)) - at(np.maximum(along - spacing, 0))
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    return Curve(position=place, tangent=tangent, arc_length=along, length=length)


def _prolong(line: FloatArray, filled: NDArray[np.bool_]) -> FloatArray:
    """Points half a voxel apart straight on from the end of a line, as long as the mask goes."""
    back = line[-1 - min(len(line) - 1, 32)]
    direction = (line[-1] - back) / max(float(np.linalg.norm(line[-1] - back)), 1e-9)
    added: list[FloatArray] = []
    here = line[-1] + direction / 2
    while True:
        voxel = np.rint(here).astype(int)
        if (voxel < 0).any() or (voxel >= filled.shape).any() or not filled[tuple(voxel)]:
            return np.array(added).reshape(-1, 3)
        added.append(here)
        here = here + direction / 2


def _place(curve: Curve, mask: Volume) -> Curve:
    """Turn voxels zyx into positions xyz; of both directions, take the one that goes up."""
    position, tangent = mask.to_position(curve.position), curve.tangent[:, ::-1]
    overall = position[-1] - position[0]
    if tuple(overall[::-1]) < (0, 0, 0):
        position, tangent = position[::-1], -tangent[::-1]
    return Curve(
        position=position, tangent=tangent, arc_length=curve.arc_length, length=curve.length
    )
