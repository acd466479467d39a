"""Shapes of lipid bilayers: a smooth closed or open surface, and the distance from it.

A surface is a base (ellipsoid, capsule or plane) whose every point is moved along a fixed
direction by a sum of waves. It therefore never meets itself, is known explicitly, point by point,
and implicitly, as the zero of a level whose value is the move still missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import factorial

import numpy as np
from numba import njit, prange
from scipy.spatial.transform import Rotation

from tomoloc.physics.rotations import turn_to
from tomoloc.types import FloatArray, Volume

__all__ = ["Bilayer", "draw_waves", "settle"]

_ELLIPSOID, _CAPSULE, _PLANE = 0, 1, 2
_FORMS = {
    "sphere": _ELLIPSOID,
    "ellipsoid": _ELLIPSOID,
    "blob": _ELLIPSOID,
    "tube": _CAPSULE,
    "sheet": _PLANE,
}
_HEAD_GROUP = 5.0  # Å; from the middle of a layer of head groups to where it ends
_STEEP = 2.5  # slopes of a level that only its kinks have
_TURN = 2 * np.pi
_COSINE = tuple((-1) ** i * _TURN ** (2 * i) / factorial(2 * i) for i in range(9))
_PROBE = 0.5  # Å; step of the finite differences that give normals


@dataclass(frozen=True, eq=False, kw_only=True)
class Bilayer:
    """A lipid bilayer: where the middle of it runs.

    Parameters
    ----------
    shape : {"sphere", "ellipsoid", "blob", "tube", "sheet"}
    label : str
    thickness : float
        From the head groups of one leaflet to those of the other.
    center : ndarray, shape (3,)
        xyz, voxel 0 being the origin.
    rotation : Rotation
        Takes the shape's own frame to the tomogram. The axis of a tube is z there, and so is the
        normal of a sheet.
    size : ndarray, shape (3,)
        Semi-axes of an ellipsoid; radius, radius and half the length between the centres of the
        caps of a tube; half the edge of a sheet, twice, and 0.
    waves : ndarray, shape (5, k)
        Wave vector xyz in radians per Å, phase, and amplitude in Å of each wave by which the
        surface is moved outward, all in the shape's own frame.
    height : float
        Greatest move.
    """

    shape: str
    label: str = "membrane"
    thickness: float
    center: FloatArray
    rotation: Rotation
    size: FloatArray
    waves: FloatArray
    height: float

    @property
    def form(self) -> int:
        """Which base the shape has."""
        return _FORMS[self.shape]

    @property
    def is_closed(self) -> bool:
        """Whether it has an inside."""
        return self.shape != "sheet"

    @property
    def half_width(self) -> float:
        """From the middle to where the head groups end."""
        return self.thickness / 2 + _HEAD_GROUP

    @property
    def extent(self) -> FloatArray:
        """Half the edges xyz of the box, about `center`, that holds its middle, shape (3,)."""
        matrix = self.rotation.as_matrix()
        if self.form == _ELLIPSOID:
            reach = np.linalg.norm(matrix * self.size, axis=1)
        elif self.form == _CAPSULE:
            reach = np.abs(matrix[:, 2]) * self.size[2] + self.size[0]
        else:
            reach = np.abs(matrix) @ self.size
        return np.asarray(reach + self.height)

    def distance(self, grid: Volume, *, reach: float) -> tuple[tuple[slice, ...], FloatArray]:
        """Signed distance from the middle of the bilayer at each voxel of a grid.

        Parameters
        ----------
        grid : Volume
            Its data do not matter.
        reach : float
            How far from the middle distances are wanted.

        Returns
        -------
        box : tuple of slice
            The part zyx of the grid that holds all that is nearer than `reach`, or inside.
        distance : ndarray of float32, shape of the box
            In Å, negative inside, cut at plus and minus `reach`. It is exact to the second order
            in the distance.
        """
        step = grid.voxel_spacing
        index = grid.to_index(self.center)
        half = (self.extent[::-1] + reach) / step + 1
        low = np.clip(np.floor(index - half), 0, grid.shape).astype(int)
        high = np.clip(np.ceil(index + half) + 1, low, grid.shape).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        if (high == low).any():
            return box, np.zeros(high - low, dtype=np.float32)
        level = np.empty(high - low + 2, dtype=np.float32)
        stretch = self.size.max() / self.size.min() if self.form == _ELLIPSOID else 1.0
        far = 1.6 * (reach + step) * stretch
        _fill(
            level,
            grid.to_position(low - 1) - self.center,
            step,
            self.rotation.as_matrix(),
            (self.form, self.size, self.waves, far + 3 * step + self.height),
        )
        return box, _straighten(level, step, reach, far)

    def level(self, position: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Signed distance in Å, good to the first order, and outward direction at positions.

        Parameters
        ----------
        position : ndarray, shape (n, 3)

        Returns
        -------
        distance : ndarray, shape (n,)
        direction : ndarray, shape (n, 3)
            Unit vectors; on the surface its normals.
        """
        local = self.rotation.inv().apply(np.asarray(position, dtype=float) - self.center)
        form = self.form
        steps = _PROBE * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
        probes = (local[:, None] + steps).reshape(-1, 3)
        values = _levels(probes, form, self.size, self.waves).reshape(-1, 7)
        gradient = (values[:, 1:4] - values[:, 4:]) / (2 * _PROBE)
        length = np.maximum(np.linalg.norm(gradient, axis=1), 1e-9)
        direction = self.rotation.apply(gradient / length[:, None])
        return values[:, 0] / length, direction

    def sample(self, rng: np.random.Generator, *, density: float) -> tuple[FloatArray, FloatArray]:
        """Draw points evenly over the area of the middle of the bilayer.

        Parameters
        ----------
        rng : numpy.random.Generator
        density : float
            Mean number of points on an Å².

        Returns
        -------
        position, normal : ndarray, shape (n, 3)
            Normals point outward.
        """
        # Tangents and area element come from the same points moved by a little on the base.
        base, frames, measure = self._draw_base(rng, 4096)
        stretch = np.linalg.norm(self._lift(base, frames)[1], axis=1)
        number = rng.poisson(density * measure * stretch.mean())
        most = 1.05 * float(stretch.max())
        base, frames, _ = self._draw_base(rng, int(number * most / stretch.mean()) + 1)
        place, cross = self._lift(base, frames)
        size = np.linalg.norm(cross, axis=1)
        kept = rng.uniform(0, most, len(size)) < size
        normal = cross[kept] / size[kept, None]
        return self.rotation.apply(place[kept]) + self.center, self.rotation.apply(normal)

    def _draw_base(self, rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray, float]:
        """Points, pairs of tangents (n, 2, 3) and area of the base (unit sphere for ellipsoids)."""
        form = self.form
        if form == _PLANE:
            base = rng.uniform(-1, 1, (n, 3)) * self.size
            return base, np.tile(np.eye(3)[:2], (n, 1, 1)), float(4 * self.size[0] * self.size[1])
        sphere = rng.normal(size=(n, 3))
        sphere /= np.linalg.norm(sphere, axis=1)[:, None]
        frames = turn_to(sphere).as_matrix()[:, :, :2].transpose(0, 2, 1)
        if form == _ELLIPSOID:
            return sphere, frames, 4 * np.pi
        radius, half = float(self.size[0]), float(self.size[2])
        on_side = rng.uniform(0, 1, n) < half / (half + radius)
        angle = rng.uniform(0, 2 * np.pi, n)
        side = np.stack([np.cos(angle), np.sin(angle), np.zeros(n)], axis=1)
        sphere[on_side] = side[on_side]
        frames[on_side] = turn_to(side[on_side]).as_matrix()[:, :, :2].transpose(0, 2, 1)
        base = radius * sphere
        along = np.where(on_side, rng.uniform(-half, half, n), np.copysign(half, sphere[:, 2]))
        base[:, 2] += along
        return base, frames, 4 * np.pi * radius * (radius + half)

    def _lift(self, base: FloatArray, frames: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Move base points on to the surface: places, and normals as long as the area's stretch."""
        form = self.form
        step = 1e-3 if form == _ELLIPSOID else _PROBE
        moves = step * np.concatenate([np.zeros_like(frames[:, :1]), frames, -frames], axis=1)
        points = _move((base[:, None] + moves).reshape(-1, 3), form, self.size, self.waves)
        points = points.reshape(-1, 5, 3)
        first = (points[:, 1] - points[:, 3]) / (2 * step)
        second = (points[:, 2] - points[:, 4]) / (2 * step)
        return points[:, 0], np.cross(first, second)


def draw_waves(
    rng: np.random.Generator, *, wavelengths: tuple[float, float], flat: bool
) -> FloatArray:
    """Draw waves of random direction and phase whose sum has a root mean square of 1 Å.

    Wavelengths are spread evenly over their logarithm, with amplitudes in proportion, as the
    bending of a bilayer under thermal motion has them (power falls with the fourth power of the
    wave number, [1]_).

    Returns
    -------
    ndarray, shape (5, 24)
        As `Bilayer.waves`; wave vectors lie in the plane xy if `flat`.

    References
    ----------
    .. [1] Helfrich, Z. Naturforsch. C 28 (1973), doi:10.1515/znc-1973-11-1209.
    """
    n = 24
    direction = rng.normal(size=(n, 3))
    if flat:
        direction[:, 2] = 0
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    wavelength = np.exp(rng.uniform(np.log(wavelengths[0]), np.log(wavelengths[1]), n))
    phase = rng.uniform(0, 2 * np.pi, n)
    amplitude = wavelength / np.sqrt((wavelength**2).sum() / 2)
    vectors = 2 * np.pi * direction / wavelength[:, None]
    return np.concatenate([vectors.T, phase[None], amplitude[None]])


def settle(bilayer: Bilayer, rng: np.random.Generator, *, rms: float) -> Bilayer:
    """Scale a bilayer's waves to a root mean square height over its base, and to a mean of zero."""
    if rms == 0:
        return replace(bilayer, waves=np.zeros((5, 0)), height=0.0)
    base, _, _ = bilayer._draw_base(rng, 2048)
    heights = _heights(base * bilayer.size if bilayer.form == _ELLIPSOID else base, bilayer.waves)
    scale = rms / heights.std()
    waves = bilayer.waves * np.array([[1], [1], [1], [1], [scale]])
    # A wave of infinite length takes the mean away.
    level = np.array([[0], [0], [0], [0], [-scale * heights.mean()]])
    height = 1.15 * scale * np.abs(heights - heights.mean()).max()
    return replace(bilayer, waves=np.concatenate([waves, level], axis=1), height=float(height))


@njit(cache=True, nogil=True, fastmath={"contract"})
def _height(waves: FloatArray, x: float, y: float, z: float) -> float:
    """Sum waves; the cosine is a series, good to 1e-7, as that of many runs at once."""
    total = 0.0
    for i in range(waves.shape[1]):
        turns = (waves[0, i] * x + waves[1, i] * y + waves[2, i] * z + waves[3, i]) / _TURN
        s = (turns - np.floor(turns) - 0.5) ** 2
        even = _COSINE[6] + s * (_COSINE[7] + s * _COSINE[8])
        even = _COSINE[3] + s * (_COSINE[4] + s * (_COSINE[5] + s * even))
        total -= waves[4, i] * (1 + s * (_COSINE[1] + s * (_COSINE[2] + s * even)))
    return total


@njit(cache=True, nogil=True)
def _heights(points: FloatArray, waves: FloatArray) -> FloatArray:
    heights = np.empty(len(points))
    for i in range(len(points)):
        heights[i] = _height(waves, points[i, 0], points[i, 1], points[i, 2])
    return heights


@njit(cache=True, nogil=True)
def _level(
    x: float, y: float, z: float, form: int, size: FloatArray, waves: FloatArray, cut: float
) -> float:
    """Tell how far outside a point of the shape's frame lies, roughly in Å.

    Farther than `cut` from the base, only the sign counts.
    """
    if form == _PLANE:
        return z if abs(z) > cut else z - _height(waves, x, y, 0.0)
    if form == _CAPSULE:
        along = min(max(z, -size[2]), size[2])
        radius = np.sqrt(x**2 + y**2 + (z - along) ** 2)
        above = radius - size[0]
        if abs(above) > cut or radius == 0:
            return above
        share = size[0] / radius
        return above - _height(waves, share * x, share * y, along + share * (z - along))
    a, b, c = x / size[0], y / size[1], z / size[2]
    scaled = np.sqrt(a**2 + b**2 + c**2)
    steep = np.sqrt((a / size[0]) ** 2 + (b / size[1]) ** 2 + (c / size[2]) ** 2)
    if scaled == 0:
        return -size.min()
    above = scaled * (scaled - 1) / steep
    if abs(above) > cut:
        return above
    return above - _height(waves, x / scaled, y / scaled, z / scaled)


@njit(cache=True, nogil=True)
def _levels(points: FloatArray, form: int, size: FloatArray, waves: FloatArray) -> FloatArray:
    levels = np.empty(len(points))
    for i in range(len(points)):
        levels[i] = _level(points[i, 0], points[i, 1], points[i, 2], form, size, waves, np.inf)
    return levels


@njit(cache=True, nogil=True)
def _move(base: FloatArray, form: int, size: FloatArray, waves: FloatArray) -> FloatArray:
    """Take points on, or next to, the base to the surface (from the unit sphere for ellipsoids)."""
    moved = np.empty_like(base)
    for i in range(len(base)):
        x, y, z = base[i]
        if form == _PLANE:
            moved[i] = x, y, _height(waves, x, y, 0.0)
        elif form == _CAPSULE:
            along = min(max(z, -size[2]), size[2])
            radius = np.sqrt(x**2 + y**2 + (z - along) ** 2)
            share = size[0] / radius
            foot = share * x, share * y, along + share * (z - along)
            share *= 1 + _height(waves, foot[0], foot[1], foot[2]) / size[0]
            moved[i] = share * x, share * y, along + share * (z - along)
        else:
            length = np.sqrt(x**2 + y**2 + z**2)
            a, b, c = x / length, y / length, z / length
            steep = np.sqrt((a / size[0]) ** 2 + (b / size[1]) ** 2 + (c / size[2]) ** 2)
            foot = a * size[0], b * size[1], c * size[2]
            share = 1 + steep * _height(waves, foot[0], foot[1], foot[2])
            moved[i] = share * foot[0], share * foot[1], share * foot[2]
    return moved


@njit(cache=True, nogil=True, parallel=True)
def _fill(
    level: FloatArray,
    corner: FloatArray,
    step: float,
    matrix: FloatArray,
    shape: tuple[int, FloatArray, FloatArray, float],
) -> None:
    """Write the level at each voxel of a grid whose first voxel lies at `corner`, xyz."""
    form, size, waves, cut = shape
    for k in prange(level.shape[0]):
        for j in range(level.shape[1]):
            for i in range(level.shape[2]):
                u, v, w = corner[0] + i * step, corner[1] + j * step, corner[2] + k * step
                x = matrix[0, 0] * u + matrix[1, 0] * v + matrix[2, 0] * w
                y = matrix[0, 1] * u + matrix[1, 1] * v + matrix[2, 1] * w
                z = matrix[0, 2] * u + matrix[1, 2] * v + matrix[2, 2] * w
                level[k, j, i] = _level(x, y, z, form, size, waves, cut)


@njit(cache=True, nogil=True, parallel=True)
def _straighten(level: FloatArray, step: float, reach: float, far: float) -> FloatArray:
    """Turn a level into the distance from its zero, good to the second order, without the rim.

    Along the normal, f = a d + b d² / 2 and |grad f| = a + b d, so d = f / |grad f| + b d² / 2a.
    """
    distance = np.empty((level.shape[0] - 2, level.shape[1] - 2, level.shape[2] - 2), np.float32)
    for k in prange(1, level.shape[0] - 1):
        slope = np.empty(3)
        for j in range(1, level.shape[1] - 1):
            for i in range(1, level.shape[2] - 1):
                value = level[k, j, i]
                if abs(value) > far:
                    distance[k - 1, j - 1, i - 1] = np.copysign(reach, value)
                    continue
                slope[0] = level[k, j, i + 1] - level[k, j, i - 1]
                slope[1] = level[k, j + 1, i] - level[k, j - 1, i]
                slope[2] = level[k + 1, j, i] - level[k - 1, j, i]
                square = slope[0] ** 2 + slope[1] ** 2 + slope[2] ** 2
                x, y, z = slope
                bend = (
                    x**2 * (level[k, j, i + 1] + level[k, j, i - 1] - 2 * value)
                    + y**2 * (level[k, j + 1, i] + level[k, j - 1, i] - 2 * value)
                    + z**2 * (level[k + 1, j, i] + level[k - 1, j, i] - 2 * value)
                    + x * y * _twist(level[k, j - 1 : j + 2, i - 1 : i + 2])
                    + x * z * _twist(level[k - 1 : k + 2, j, i - 1 : i + 2])
                    + y * z * _twist(level[k - 1 : k + 2, j - 1 : j + 2, i])
                ) / max(square, 1e-12)
                length = max(np.sqrt(square) / 2, 1e-6)
                first = value / length
                # The level is smooth near its zero only: not where the base has its middle.
                if length > _STEEP * step:
                    distance[k - 1, j - 1, i - 1] = np.copysign(reach, value)
                    continue
                more = min(max(bend * first / (2 * length), -0.3), 0.3)
                exact = (first + more * first) * step
                distance[k - 1, j - 1, i - 1] = min(max(exact, -reach), reach)
    return distance


@njit(cache=True, nogil=True)
def _twist(square: FloatArray) -> float:
    """Twice the mixed second derivative in the middle of 3 x 3 values."""
    return (square[2, 2] + square[0, 0] - square[0, 2] - square[2, 0]) / 2
