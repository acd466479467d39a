"""Clusters of particles that touch: the Tetris packing."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tomoloc.simulate.placing import TAKEN, Body, Space, is_free

__all__ = ["Cluster"]

_WINDOW = 16  # voxels along an edge
_FAILURES = 2
_PROBES = 24
_CONTACTS = 256

IntArray = NDArray[np.integer]


class Cluster:
    """Finds places at which bodies touch, as closely as can be, what already lies in a space.

    This is the insertion-shell correlation of Template Learning's Tetris algorithm: a body's
    voxels weigh minus infinity and the layer around them weighs one; the place with the greatest
    correlation with what is there is taken. Here the correlation is evaluated at the rim of the
    cluster only, window by window, and only where it can exceed the best so far: its cost does
    not depend on the size of the volume.

    Parameters
    ----------
    space : Space

    References
    ----------
    M. Harastani et al., "Template Learning", bioRxiv (2024), doi:10.1101/2024.03.20.585905
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        shape = np.array(space.room.shape)
        self._grid = -(-shape // _WINDOW)
        self._order: list[int] = []
        self._active = np.zeros(int(np.prod(self._grid)), dtype=bool)
        self._failures: dict[int, IntArray] = {}
        self._closed: dict[int, NDArray[np.floating]] = {}

    def find(self, body: Body, location: str) -> IntArray | None:
        """Return the voxel zyx for a body's centre with the most contact, or None.

        The windows are asked in the order in which the cluster reached them; the best place of
        the first that has one is taken.
        """
        low, high = self.space.bounds(body, location)
        if not self._order or (low > high).any():
            return None
        allowed, size = self.space.allowed(location), len(body.voxels)
        closed = self._closed.setdefault(allowed, np.full(len(self._active), np.inf))
        failures = self._failures.setdefault(allowed, np.zeros(len(self._active), dtype=int))
        voxels = self.space.flat(body.voxels)
        shell = self.space.flat(_shell(body.voxels))
        shell = shell[:: max(1, len(shell) // _CONTACTS)]
        order = np.array(self._order)
        for window in order[closed[order] > size]:
            start = np.array(np.unravel_index(window, self._grid)) * _WINDOW
            first, last = np.maximum(start, low), np.minimum(start + _WINDOW - 1, high)
            place, touching = _closest(
                self.space.state, self.space.rim, voxels, shell, allowed, first, last
            )
            if touching:
                return place
            if place[0] == -1:
                failures[window] += 1
                if failures[window] >= _FAILURES:
                    failures[window], closed[window] = 0, size
        return None

    def grow(self, body: Body, center: IntArray) -> None:
        """Take note that a body has been placed: windows around it may now hold others."""
        reach = self.space.reach + np.abs(body.voxels).max(axis=0)
        low = np.maximum((center - reach) // _WINDOW, 0)
        high = np.minimum((center + reach) // _WINDOW, self._grid - 1)
        box = np.meshgrid(
            *(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij"
        )
        near = np.ravel_multi_index([axis.ravel() for axis in box], self._grid)
        new = near[~self._active[near]]
        self._active[new] = True
        self._order.extend(new.tolist())


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
def _closest(state, rim, voxels, shell, allowed, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Free place between bounds with the most contact.

    Returns the place and whether there is one; (-2, ...) where places are free but touch nothing.
    """
    line = state.reshape(-1)
    _, ny, nx = state.shape
    best = 0
    place = np.full(3, -1, np.int64)
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
                    place[0] = -2
                if contact <= best:
                    continue
                if is_free(line, base, voxels[_PROBES:], allowed):
                    best = contact
                    place[0], place[1], place[2] = z, y, x
    return place, best > 0
