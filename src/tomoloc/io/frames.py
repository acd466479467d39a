"""What is known of a tomogram's grid, and a table of particles with the grids they lie in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tomoloc.types import FloatArray, Particles

__all__ = ["CENTERS", "Frame", "Given", "ParticleTable", "each"]

CENTERS = ("half", "picker")
"""Where `rlnCenteredCoordinate...Angst` counts from: N/2, or N/2 - 1 unbinned voxels."""


@dataclass(frozen=True)
class Frame:
    """Grid of one tomogram, as far as it is known.

    Parameters
    ----------
    name : str
        Of the tomogram.
    shape : tuple of int (z, y, x), optional
        Number of voxels.
    voxel_spacing : float, optional
        Voxel size.
    extent : tuple of float (x, y, z), optional
        Edge lengths in angstrom; `shape` times `voxel_spacing` by default. A binned tomogram of
        odd size is a little smaller than the unbinned one that centred coordinates refer to.
    """

    name: str
    shape: tuple[int, int, int] | None = None
    voxel_spacing: float | None = None
    extent: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        spacing, shape = self.voxel_spacing, self.shape
        if spacing is not None and not (np.isfinite(spacing) and spacing > 0):
            raise ValueError(f"the voxel size must be positive (angstrom); got {spacing}")
        if shape is not None and (len(shape) != 3 or min(shape) < 1):
            raise ValueError(f"a tomogram has a size of three positive numbers; got {shape}")
        if self.extent is None and shape is not None and spacing is not None:
            z, y, x = (float(n * spacing) for n in shape)
            object.__setattr__(self, "extent", (x, y, z))
        elif shape is None and self.extent is not None and spacing is not None:
            x, y, z = (max(1, round(length / spacing)) for length in self.extent)
            object.__setattr__(self, "shape", (z, y, x))

    def known_spacing(self) -> float:
        """Return the voxel size or raise ValueError that says how to give it."""
        if self.voxel_spacing is None:
            raise ValueError(
                f"the voxel size of tomogram {self.name!r} is not known: give it with"
                " --voxel-spacing (angstrom)"
            )
        return self.voxel_spacing

    def known_extent(self) -> FloatArray:
        """Return edge lengths xyz in angstrom or raise ValueError that says how to give them."""
        if self.extent is None:
            lacking = "" if self.voxel_spacing else " and --voxel-spacing (angstrom)"
            raise ValueError(
                f"the size of tomogram {self.name!r} is not known: give it with"
                f" --tomogram-size X Y Z (voxels){lacking}"
            )
        return np.array(self.extent)

    def respaced(self, voxel_spacing: float) -> Frame:
        """Return the frame of the same tomogram with another voxel size."""
        return Frame(self.name, None, voxel_spacing, self.extent)


def each(
    names: ArrayLike, frames: Mapping[str, Frame], value: Callable[[Frame], ArrayLike]
) -> FloatArray:
    """Return a value of each particle's tomogram, shape (n, 1) or (n, 3)."""
    column = np.asarray(names)
    if not len(column):
        return np.zeros((0, 1))
    distinct, which = np.unique(column, return_inverse=True)
    return np.stack([np.atleast_1d(value(frames[str(name)])) for name in distinct])[which]


@dataclass(frozen=True, eq=False, kw_only=True)
class ParticleTable:
    """What a file of particles holds.

    Parameters
    ----------
    particles : Particles
        Positions, poses and further columns.
    frames : mapping of str to Frame
        By tomogram name, one for each tomogram.
    dialect : str
        Of the file.
    """

    particles: Particles
    frames: Mapping[str, Frame]
    dialect: str = ""

    @property
    def frame(self) -> Frame:
        """Frame of the one tomogram of a file that holds one."""
        return next(iter(self.frames.values()))

    def each(self, value: Callable[[Frame], ArrayLike]) -> FloatArray:
        """Return a value of each particle's tomogram, shape (n, 1) or (n, 3)."""
        return each(self.particles.tomogram, self.frames, value)

    def index(self) -> FloatArray:
        """Return positions xyz in voxels, shape (n, 3); 0 is the centre of the first voxel."""
        return self.particles.position / self.each(Frame.known_spacing)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the caller states because a file may not say it.

    Parameters
    ----------
    voxel_spacing : float, optional
        Voxel size, before anything the file states.
    shape : tuple of int (z, y, x), optional
        Number of voxels of the tomogram, before anything the file states.
    tomogram : str, optional
        Name of the tomogram where the file gives none; else the file's stem.
    center : {"half", "picker"}
        Where `rlnCenteredCoordinate...Angst` counts from: N/2, or N/2 - 1 unbinned voxels.
    box_size : int, optional
        Edge of the boxes to write, in voxels.
    """

    voxel_spacing: float | None = None
    shape: tuple[int, int, int] | None = None
    tomogram: str | None = None
    center: str = "half"
    box_size: int | None = None

    def __post_init__(self) -> None:
        if self.center not in CENTERS:
            raise ValueError(f"center must be one of {', '.join(CENTERS)}; got {self.center!r}")
        if self.box_size is not None and self.box_size < 1:
            raise ValueError(f"the box size must be positive (voxels); got {self.box_size}")

    def frame(
        self, name: str, *, voxel_spacing: float | None = None, known: Frame | None = None
    ) -> Frame:
        """Return a tomogram's frame: what is given, else what the file states, else `known`."""
        spacing = self.voxel_spacing or voxel_spacing or (known.voxel_spacing if known else None)
        extent = known.extent if known and self.shape is None else None
        return Frame(name, self.shape, spacing, extent)
