"""Clusters of particles that touch: the Tetris packing."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tomoloc.simulate.placing import TAKEN, Body, Space, is_free
from tomoloc.types import FloatArray

__all__ = ["Cluster"]

_WINDOW = 28  # voxels along an edge
_FAILURES = 2  # after which a window is closed to bodies of that size and larger ones
_PROBES = 24  # voxels of a body that are looked at before contacts are counted
_CONTACTS = 256  # voxels of a body's shell that are looked at, at most twice as many
_NOTHING_FREE, _NOTHING_NEAR = -1, -2

IntArray = NDArray[np.integer]


class Cluster:
    """Finds places at which bodies touch, as closely as can be, what already lies in a space.

    This is the insertion-shell correlation of the Tetris algorithm [1]_: with what is taken, the
    voxels of a body correlate as minus infinity and those of the layer around it as one each, and
    the greatest correlation is the place. Fourier transforms of the whole volume would give it
    everywhere at once, for every body again. Here it is evaluated where the cluster grows, window
    by window, and only as far as it may exceed the best so far, so that a body's cost does not
    depend on the size of the volume.

    Parameters
    ----------
    space : Space
        What is taken in it now is not part of the cluster until a body is placed near it.

    References
    ----------
    .. [1] M. Harastani et al., "Template Learning", bioRxiv (2024),
       doi:10.1101/2024.03.20.585905
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        grid = -(-np.array(space.room.shape) // _WINDOW)
        self._reached = np.zeros(grid, dtype=bool)
        self._windows = np.empty((self._reached.size, 3), dtype=np.int64)
        self._count = 0
        self._accounts: dict[int, tuple[FloatArray, IntArray]] = {}

    def find(self, body: Body, location: str) -> IntArray | None:
        """Return the voxel zyx for a body's centre with the most contact, or None.

        The windows are searched in the order in which the cluster reached them, and the best
        place of the first that has one is taken, so that holes are filled before new ground.
        """
        low, high = self.space.bounds(body, location)
        if not self._count or (low > high).any():
            return None
        allowed = self.space.allowed(location)
        if allowed not in self._accounts:
            n = len(self._windows)
            self._accounts[allowed] = np.full(n, np.inf), np.zeros(n, dtype=np.int64)
        closed, failures = self._accounts[allowed]
        shell = self.space.flat(_shell(body.voxels))
        place = _search(
            (self.space.state, self.space.rim),
            self.space.flat(body.voxels),
            shell[:: max(1, len(shell) // _CONTACTS)],
            allowed,
            (low, high),
            self._windows[: self._count],
            closed,
            failures,
        )
        return None if place[0] < 0 else place

    def grow(self, body: Body, center: IntArray) -> None:
        """Take note that a body has been placed: windows around it may now hold others."""
        reach = self.space.reach + np.abs(body.bounds).max(axis=0)
        low = np.maximum((center - reach) // _WINDOW, 0)
        high = np.minimum((center + reach) // _WINDOW + 1, self._reached.shape)
        near = self._reached[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        new = (np.argwhere(~near) + low) * _WINDOW
        near[...] = True
        distance = np.linalg.norm(new + _WINDOW / 2 - center, axis=1)
        self._windows[self._count : self._count + len(new)] = new[np.argsort(distance)]
        self._count += len(new)


@njit(cache=True, nogil=True)
def _shell(voxels):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Voxels that are not in a body but have a neighbour, of 26, that is."""
    low = np.array([voxels[:, axis].min() - 1 for axis in range(3)])
    size = np.array([voxels[:, axis].max() + 2 - low[axis] for axis in range(3)])
    mask = np.zeros((size[0], size[1], size[2]), np.uint8)
    for i in range(len(voxels)):
        z, y, x = voxels[i, 0] - low[0], voxels[i, 1] - low[1], voxels[i, 2] - low[2]
        for dz in range(-1, 2):
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    mask[z + dz, y + dy, x + dx] |= 1
        mask[z, y, x] |= 2
    return np.argwhere(mask == 1) + low


@njit(cache=True, nogil=True)
def _search(padded, voxels, shell, allowed, bounds, windows, closed, failures):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Search window after window, and close those in which nothing of a size fits any more."""
    low, high = bounds
    for i in range(len(windows)):
        if closed[i] <= len(voxels):
            continue
        first, last = np.maximum(windows[i], low), np.minimum(windows[i] + _WINDOW - 1, high)
        place = _closest(padded, voxels, shell, allowed, first, last)
        if place[0] >= 0:
            return place
        if place[0] == _NOTHING_FREE:
            failures[i] += 1
            if failures[i] == _FAILURES:
                failures[i], closed[i] = 0, len(voxels)
    return np.full(3, _NOTHING_FREE, np.int64)


@njit(cache=True, nogil=True)
def _closest(padded, voxels, shell, allowed, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Free place between bounds with the most contact, or in its stead why there is none."""
    state, rim = padded
    line = state.reshape(-1)
    _, ny, nx = state.shape
    best = 0
    place = np.full(3, _NOTHING_FREE, np.int64)
    for z in range(first[0], last[0] + 1):
        for y in range(first[1], last[1] + 1):
            for x in range(first[2], last[2] + 1):
                base = ((z + rim) * ny + y + rim) * nx + x + rim
                # Most collisions show at the first few voxels, before contacts need counting.
                if not is_free(line, base, voxels[:_PROBES], allowed):
                    continue
                contact = 0
                for i in range(len(shell)):
                    contact += line[base + shell[i]] == TAKEN
                if contact == 0 and best == 0:
                    place[0] = _NOTHING_NEAR
                if contact > best and is_free(line, base, voxels[_PROBES:], allowed):
                    best = contact
                    place[0], place[1], place[2] = z, y, x
    return place
