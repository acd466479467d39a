"""Turned molecules as voxels, and the search for places where they meet nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tomoloc.simulate.references import Reference
from tomoloc.simulate.room import NO_ICE, Room
from tomoloc.types import FloatArray

__all__ = ["Body", "Space", "draw_body", "own_stream", "turn_body"]

TAKEN = 0  # value of the state where something lies, which no location allows
_NO_ICE_BIT = 128
_BLOCK = 8  # voxels along the edge of the blocks from which places are drawn
_PLACES = 1024  # tried for one orientation

IntArray = NDArray[np.integer]

_HALVES: WeakKeyDictionary[Reference, FloatArray] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False, kw_only=True)
class Body:
    """A molecule turned: the voxels it takes about the one that holds its centre.

    They are those that `tomoloc.simulate.references.add_particles` claims for it.

    Parameters
    ----------
    voxels : ndarray of int, shape (n, 3)
        Offsets zyx, in a scattered order, so that collisions show within a few of them.
    skin : ndarray of int, shape (m, 3)
        Those with a neighbour that is not among them.
    shift : ndarray, shape (3,)
        From the voxel's centre to the molecule's, xyz in voxels: less than half of one.
    rotation : ndarray, shape (3, 3)
        Reference to tomogram.
    """

    voxels: IntArray
    skin: IntArray
    shift: FloatArray
    rotation: FloatArray

    @cached_property
    def bounds(self) -> IntArray:
        """Least and greatest offset zyx, shape (2, 3)."""
        return _bounds(self.voxels)


def own_stream(rng: np.random.Generator) -> np.random.Generator:
    """Take a generator of its own for what may draw more or less often.

    Processors round differently, so that a molecule may have a voxel more on one than on another.
    What is drawn after it should not depend on that.
    """
    return np.random.default_rng(int(rng.integers(2**62)))


def draw_body(reference: Reference, *, voxel_spacing: float, rng: np.random.Generator) -> Body:
    """Turn a molecule at random, uniformly over all orientations and places within a voxel."""
    rotation = Rotation.random(rng=rng).as_matrix()
    shift = rng.uniform(-0.5, 0.5, 3)
    return turn_body(
        reference, rotation=rotation, shift=shift, voxel_spacing=voxel_spacing, rng=rng
    )


def turn_body(
    reference: Reference,
    *,
    rotation: FloatArray,
    shift: FloatArray,
    voxel_spacing: float,
    rng: np.random.Generator,
) -> Body:
    """Turn a molecule by a matrix, with its centre at `shift`, xyz in voxels, from a voxel's."""
    finer = voxel_spacing / reference.potential.voxel_spacing
    reach = np.abs(rotation) @ (_half(reference)[::-1] / finer)
    margin = np.ceil(reach[::-1]).astype(np.int64) + 2
    mask = _rasterize(reference.envelope, rotation, shift, finer, margin)
    voxels, is_skin = _voxels(mask, margin)
    # A fixed scattered order would do, but a drawn one needs no thought about its pattern.
    order = own_stream(rng).permutation(len(voxels))
    return Body(voxels=voxels[order], skin=voxels[is_skin], shift=shift, rotation=rotation)


@dataclass(frozen=True, eq=False, kw_only=True)
class Space:
    """A room with a rim, so that no search needs to look where the volume ends.

    Parameters
    ----------
    room : Room
    reach : int
        Voxels from a body's centre that the search may look at, at most.
    cut : bool
        Whether bodies may stick out of the volume along x and y.
    clearance : float
        Least distance in Å from the last voxel of a body to the first of another.
    """

    room: Room
    reach: int
    cut: bool
    clearance: float = 0.0
    state: NDArray[np.uint8] = field(init=False, repr=False)
    _blocks: dict[int, tuple[IntArray, IntArray, IntArray]] = field(
        default_factory=dict, init=False, repr=False
    )
    _ball: IntArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        compartment = np.left_shift(np.uint8(1), self.room.compartment)
        compartment[self.room.compartment == NO_ICE] = _NO_ICE_BIT
        state = np.where(self.room.occupied, np.uint8(TAKEN), compartment)
        # Voxels that touch are one spacing apart from centre to centre.
        radius = 1 + self.clearance / self.room.voxel_spacing
        rim = self.reach + 2 * int(radius)
        width = ((0, 0), (rim, rim), (rim, rim))
        if self.cut and rim:
            # Outside, the compartments go on, but not what lies in them.
            padded = np.pad(compartment, width, mode="edge")
            padded[:, rim:-rim, rim:-rim] = state
        else:
            padded = np.pad(state, width, constant_values=_NO_ICE_BIT)
        padded = np.pad(padded, ((rim, rim), (0, 0), (0, 0)), constant_values=_NO_ICE_BIT)
        object.__setattr__(self, "state", padded)
        near = np.arange(-int(radius), int(radius) + 1)
        ball = np.stack(np.meshgrid(near, near, near, indexing="ij"), axis=-1).reshape(-1, 3)
        object.__setattr__(self, "_ball", self.flat(ball[(ball**2).sum(axis=1) < radius**2 - 1e-9]))

    @property
    def rim(self) -> int:
        """Voxels around the volume, on all sides."""
        return (self.state.shape[0] - self.room.shape[0]) // 2

    @property
    def core(self) -> NDArray[np.uint8]:
        """State within the volume, a view."""
        rim = self.rim
        return self.state[rim:-rim, rim:-rim, rim:-rim]

    def allowed(self, location: str) -> int:
        """Bits of the state at which bodies of a location may lie."""
        return sum(1 << value for value in self.room.allowed(location))

    def flat(self, offsets: IntArray) -> NDArray[np.int64]:
        """Turn offsets zyx into those in the state seen as a line."""
        _, ny, nx = self.state.shape
        return np.asarray(offsets, dtype=np.int64) @ np.array([ny * nx, nx, 1])

    def bounds(self, body: Body, location: str) -> tuple[IntArray, IntArray]:
        """Least and greatest voxel zyx that the centre may have; least is more if none."""
        low, high = self.extent(location)
        inner_low, inner_high = low - body.bounds[0], high - body.bounds[1]
        if self.cut:
            return np.append(inner_low[:1], low[1:]), np.append(inner_high[:1], high[1:])
        return inner_low, inner_high

    def find(self, body: Body, location: str, *, rng: np.random.Generator) -> IntArray | None:
        """Draw places until the body meets nothing: its centre's voxel zyx, or None."""
        low, high = self.bounds(body, location)
        blocks = self._search(location)[0]
        if (low > high).any():
            return None
        voxels, allowed = self.flat(body.voxels), self.allowed(location)
        found = _draw_free(self.state, self.rim, voxels, allowed, blocks, low, high, rng)
        return None if found[0] < 0 else found

    def find_on_surface(self, body: Body, *, rng: np.random.Generator) -> IntArray | None:
        """Draw places at which the body touches the ice's upper or lower surface from within."""
        low, high = self.bounds(body, "anywhere")
        if (low > high).any():
            return None
        voxels, allowed = self.flat(body.voxels), self.allowed("anywhere")
        columns, ends = _ends(body.voxels)
        for _ in range(_PLACES // 8):
            y, x = rng.integers(low[1:], high[1:] + 1)
            up = bool(rng.integers(2))
            z = _press(self.state, self.rim, columns, ends, y, x, up)
            if z >= 0 and is_free(self.state.reshape(-1), self._line(z, y, x), voxels, allowed):
                return np.array([z, y, x])
        return None

    def stamp(self, body: Body, center: IntArray) -> None:
        """Take the voxels of a body, and those within the clearance around it."""
        base = self._line(*center)
        self.state.reshape(-1)[base + self.flat(body.voxels)] = TAKEN
        if len(self._ball) > 1:
            _stamp_balls(self.state.reshape(-1), base + self.flat(body.skin), self._ball)

    def visible(self, body: Body, center: IntArray) -> float:
        """Fraction of a body's voxels in the volume."""
        low, high = body.bounds + center
        if (low >= 0).all() and (high < self.room.shape).all():
            return 1.0
        place = body.voxels + center
        inside = ((place >= 0) & (place < np.array(self.room.shape))).all(axis=1)
        return float(inside.mean())

    def update_room(self) -> None:
        """Tell the room what has been taken."""
        np.logical_or(self.room.occupied, self.core == TAKEN, out=self.room.occupied)

    def _line(self, z: int, y: int, x: int) -> int:
        _, ny, nx = self.state.shape
        return int(((z + self.rim) * ny + y + self.rim) * nx + x + self.rim)

    def extent(self, location: str) -> tuple[IntArray, IntArray]:
        """First and last voxel zyx of a box around a location; the last is less if it is full."""
        return self._search(location)[1:]

    def _search(self, location: str) -> tuple[IntArray, IntArray, IntArray]:
        """Blocks, by their first voxels zyx, in which there was room at first; their extent."""
        allowed = self.allowed(location)
        if allowed not in self._blocks:
            blocks = _find_blocks(self.core, allowed)
            low, high = np.zeros(3, np.int64), np.full(3, -1)
            if len(blocks):
                low = blocks.min(axis=0)
                high = np.minimum(blocks.max(axis=0) + _BLOCK, self.room.shape) - 1
            self._blocks[allowed] = blocks, low, high
        return self._blocks[allowed]


def _half(reference: Reference) -> FloatArray:
    """Greatest distance zyx of a reference's envelope from its middle, in its voxels."""
    if reference not in _HALVES:
        index = np.argwhere(reference.envelope)
        middle = (np.array(reference.envelope.shape) - 1) / 2
        _HALVES[reference] = np.abs(index - middle).max(axis=0) + 0.5
    return _HALVES[reference]


@njit(cache=True, nogil=True)
def _bounds(voxels):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    bounds = np.empty((2, 3), np.int64)
    for axis in range(3):
        bounds[0, axis], bounds[1, axis] = voxels[:, axis].min(), voxels[:, axis].max()
    return bounds


@njit(cache=True, nogil=True)
def _rasterize(envelope, matrix, shift, finer, margin):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Mark the voxels whose centres lie in a turned envelope."""
    mz, my, mx = envelope.shape
    mask = np.zeros((2 * margin[0] + 1, 2 * margin[1] + 1, 2 * margin[2] + 1), np.uint8)
    for i in range(mask.shape[0]):
        dz = i - margin[0] - shift[2]
        for j in range(mask.shape[1]):
            dy = j - margin[1] - shift[1]
            # The transpose takes the tomogram back to the reference.
            z = finer * (matrix[1, 2] * dy + matrix[2, 2] * dz) + (mz - 1) / 2
            y = finer * (matrix[1, 1] * dy + matrix[2, 1] * dz) + (my - 1) / 2
            x = finer * (matrix[1, 0] * dy + matrix[2, 0] * dz) + (mx - 1) / 2
            for k in range(mask.shape[2]):
                dx = finer * (k - margin[2] - shift[0])
                a, b, c = z + matrix[0, 2] * dx, y + matrix[0, 1] * dx, x + matrix[0, 0] * dx
                if 0 <= a < mz - 1 and 0 <= b < my - 1 and 0 <= c < mx - 1:
                    mask[i, j, k] = envelope[int(a + 0.5), int(b + 0.5), int(c + 0.5)]
    return mask


@njit(cache=True, nogil=True)
def _voxels(mask, margin):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Offsets zyx of a mask's voxels from its middle, and which have a free neighbour."""
    count = 0
    for value in mask.flat:
        count += value
    voxels, skin = np.empty((count, 3), np.int32), np.zeros(count, np.bool_)
    n = 0
    # The mask has an empty rim.
    for i in range(1, mask.shape[0] - 1):
        for j in range(1, mask.shape[1] - 1):
            for k in range(1, mask.shape[2] - 1):
                if not mask[i, j, k]:
                    continue
                voxels[n, 0], voxels[n, 1] = i - margin[0], j - margin[1]
                voxels[n, 2] = k - margin[2]
                along_z = mask[i - 1, j, k] and mask[i + 1, j, k]
                along_y = mask[i, j - 1, k] and mask[i, j + 1, k]
                skin[n] = not (along_z and along_y and mask[i, j, k - 1] and mask[i, j, k + 1])
                n += 1
    return voxels[:n], skin[:n]


@njit(cache=True, nogil=True)
def is_free(line: NDArray[np.uint8], base: int, voxels: NDArray[np.int64], allowed: int) -> bool:
    """Tell whether all voxels at offsets from a base allow a location."""
    for i in range(len(voxels)):  # noqa: SIM110 - compiled
        if not line[base + voxels[i]] & allowed:
            return False
    return True


@njit(cache=True, nogil=True)
def _draw_free(state, rim, voxels, allowed, blocks, low, high, rng):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Draw centres in blocks, between bounds, until all voxels are free there; -1 if none."""
    line = state.reshape(-1)
    _, ny, nx = state.shape
    place = np.full(3, -1, np.int64)
    tried = 0
    for _ in range(8 * _PLACES):
        block = blocks[int(rng.random() * len(blocks))]
        inside = True
        for axis in range(3):
            place[axis] = block[axis] + int(rng.random() * _BLOCK)
            inside &= low[axis] <= place[axis] <= high[axis]
        if not inside:
            continue
        base = ((place[0] + rim) * ny + place[1] + rim) * nx + place[2] + rim
        if is_free(line, base, voxels, allowed):
            return place
        tried += 1
        if tried == _PLACES:
            break
    return np.full(3, -1, np.int64)


@njit(cache=True, nogil=True)
def _find_blocks(core, allowed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    nz, ny, nx = core.shape
    found = np.zeros((-(-nz // _BLOCK), -(-ny // _BLOCK), -(-nx // _BLOCK)), np.bool_)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if core[z, y, x] & allowed:
                    found[z // _BLOCK, y // _BLOCK, x // _BLOCK] = True
    return np.argwhere(found) * _BLOCK


@njit(cache=True, nogil=True)
def _ends(voxels):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Columns yx of a body, and the least and greatest z in each."""
    low_y, low_x = voxels[:, 1].min(), voxels[:, 2].min()
    ny, nx = voxels[:, 1].max() - low_y + 1, voxels[:, 2].max() - low_x + 1
    least, greatest = np.full((ny, nx), 2**30), np.full((ny, nx), -(2**30))
    for i in range(len(voxels)):
        y, x = voxels[i, 1] - low_y, voxels[i, 2] - low_x
        least[y, x] = min(least[y, x], voxels[i, 0])
        greatest[y, x] = max(greatest[y, x], voxels[i, 0])
    columns = np.argwhere(least <= greatest)
    ends = np.empty((len(columns), 2), np.int64)
    for i in range(len(columns)):
        ends[i, 0] = least[columns[i, 0], columns[i, 1]]
        ends[i, 1] = greatest[columns[i, 0], columns[i, 1]]
    columns[:, 0] += low_y
    columns[:, 1] += low_x
    return columns, ends


@njit(cache=True, nogil=True)
def _press(state, rim, columns, ends, y, x, up):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Outermost z at which no column of a body leaves the ice; -1 if there is none."""
    nz = state.shape[0]
    best = nz if up else -1
    for i in range(len(columns)):
        a, b = y + columns[i, 0] + rim, x + columns[i, 1] + rim
        if up:
            z = nz - 1
            while z >= 0 and state[z, a, b] == _NO_ICE_BIT:
                z -= 1
            best = min(best, z - ends[i, 1])
        else:
            z = 0
            while z < nz and state[z, a, b] == _NO_ICE_BIT:
                z += 1
            best = max(best, z - ends[i, 0])
    best -= rim
    return best if 0 <= best < nz - 2 * rim else -1


@njit(cache=True, nogil=True)
def _stamp_balls(line, centers, ball):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(centers)):
        for j in range(len(ball)):
            line[centers[i] + ball[j]] = TAKEN
