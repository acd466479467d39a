"""Where there is room for what a scene holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoloc.types import FloatArray, Volume

__all__ = ["CYTOSOL", "LUMEN", "NO_ICE", "Room"]

NO_ICE = 0
CYTOSOL = 1
LUMEN = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Room:
    """Compartments of a specimen, and what is taken; those who place things update both.

    Parameters
    ----------
    compartment : ndarray of uint8, shape (z, y, x)
        `NO_ICE`, `CYTOSOL` (all ice outside closed membranes) or `LUMEN` (inside them).
    occupied : ndarray of bool, shape (z, y, x)
        Voxels that something takes.
    voxel_spacing : float
    """

    compartment: NDArray[np.uint8]
    occupied: NDArray[np.bool_]
    voxel_spacing: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along z, y and x."""
        z, y, x = self.occupied.shape
        return z, y, x

    @property
    def grid(self) -> Volume:
        """The voxels as a volume: for `to_index`, `to_position` and `contains`."""
        return Volume(data=self.occupied, voxel_spacing=self.voxel_spacing)

    @property
    def extent(self) -> FloatArray:
        """Edge lengths xyz in angstrom, shape (3,)."""
        return self.grid.extent

    def allowed(self, location: str) -> tuple[int, ...]:
        """Return the compartments that a location of the recipe stands for."""
        return {"cytosol": (CYTOSOL,), "lumen": (LUMEN,)}.get(location, (CYTOSOL, LUMEN))

    def free(self, location: str = "anywhere") -> NDArray[np.bool_]:
        """Tell which voxels of a location nothing takes yet, shape (z, y, x)."""
        return np.isin(self.compartment, self.allowed(location)) & ~self.occupied

    def size(self, location: str = "anywhere") -> float:
        """Volume of a location in Å³, taken or not."""
        chosen = np.isin(self.compartment, self.allowed(location))
        return float(chosen.sum()) * self.voxel_spacing**3
