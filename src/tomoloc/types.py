"""The types that every part of tomoloc speaks: frozen, checked once when made.

Arrays are ordered zyx, positions xyz in angstrom. The two methods `Volume.to_index` and
`Volume.to_position` are the only places where one order turns into the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

__all__ = [
    "CTF",
    "Particles",
    "Sample",
    "ScoreMap",
    "Structure",
    "TiltSeries",
    "Tomogram",
    "Volume",
]

FloatArray = NDArray[np.floating[Any]]


def _set(instance: object, **values: object) -> None:
    """Store checked values on a frozen dataclass from inside `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


@dataclass(frozen=True, eq=False, kw_only=True)
class Volume:
    """A grid of values in space.

    Parameters
    ----------
    data : ndarray, shape (..., z, y, x)
        Values; leading axes are channels or labels. May be memory-mapped.
    voxel_spacing : float
        Grid step, the same along x, y and z.
    origin : array_like, shape (3,)
        Position xyz of the centre of voxel (0, 0, 0). Crops, tiles and binned or strided grids
        keep it exact, so positions never depend on the grid they were found on.
    name : str
        Name of the tomogram, as particle tables give it.

    Raises
    ------
    ValueError
        If the data have fewer than three axes or an empty one, or the spacing is not positive.
    """

    data: NDArray[Any]
    voxel_spacing: float
    origin: FloatArray = field(default_factory=lambda: np.zeros(3))
    name: str = ""

    def __post_init__(self) -> None:
        data = self.data if isinstance(self.data, np.ndarray) else np.asarray(self.data)
        if data.ndim < 3 or 0 in data.shape:
            raise ValueError(
                f"a volume needs data of shape (..., z, y, x) without empty axes; got {data.shape}"
            )
        spacing = float(self.voxel_spacing)
        if not (np.isfinite(spacing) and spacing > 0):
            raise ValueError(
                f"voxel_spacing must be positive (angstrom); got {spacing}. MRC headers often store"
                " 0 or 1: pass voxel_spacing explicitly"
            )
        origin = np.array(self.origin, dtype=float)
        if origin.shape != (3,) or not np.isfinite(origin).all():
            raise ValueError(f"origin must be three finite numbers xyz (angstrom); got {origin}")
        origin.flags.writeable = False
        _set(self, data=data, voxel_spacing=spacing, origin=origin, name=str(self.name))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along z, y and x."""
        z, y, x = self.data.shape[-3:]
        return z, y, x

    @property
    def extent(self) -> FloatArray:
        """Edge lengths of the grid along x, y and z in angstrom, shape (3,)."""
        return np.array(self.shape[::-1]) * self.voxel_spacing

    @property
    def center(self) -> FloatArray:
        """Position xyz of the middle of the grid, shape (3,)."""
        return self.to_position((np.array(self.shape) - 1) / 2)

    def to_index(self, position: ArrayLike) -> FloatArray:
        """Turn positions into array places.

        Parameters
        ----------
        position : array_like, shape (..., 3)
            xyz in angstrom.

        Returns
        -------
        ndarray, shape (..., 3)
            Fractional voxel indices zyx; whole numbers are voxel centres.
        """
        xyz = (np.asarray(position, dtype=float) - self.origin) / self.voxel_spacing
        return xyz[..., ::-1]

    def to_position(self, index: ArrayLike) -> FloatArray:
        """Turn array places zyx (voxels), shape (..., 3), into positions xyz (angstrom)."""
        xyz = np.asarray(index, dtype=float)[..., ::-1]
        return xyz * self.voxel_spacing + self.origin

    def contains(self, position: ArrayLike) -> NDArray[np.bool_]:
        """Tell which positions, shape (..., 3), lie inside the grid, its rim included."""
        index = self.to_index(position)
        return np.asarray(((index >= -0.5) & (index < np.array(self.shape) - 0.5)).all(axis=-1))

    def with_data(self, data: NDArray[Any]) -> Self:
        """Return the same grid with other values of the same (z, y, x) shape."""
        if data.shape[-3:] != self.shape:
            raise ValueError(f"expected data of shape (..., {self.shape}); got {data.shape}")
        return replace(self, data=data)

    def crop(self, start: ArrayLike, stop: ArrayLike) -> Volume:
        """Return a view of the block from `start` up to `stop` (zyx voxels)."""
        low, high = np.asarray(start, dtype=int), np.asarray(stop, dtype=int)
        if low.shape != (3,) or high.shape != (3,) or (low < 0).any() or (high <= low).any():
            raise ValueError(f"crop needs 0 <= start < stop (zyx voxels); got {low} and {high}")
        if (high > np.array(self.shape)).any():
            raise ValueError(f"crop ends at {high}, outside the volume of shape {self.shape}")
        z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
        return Volume(
            data=self.data[..., z, y, x],
            voxel_spacing=self.voxel_spacing,
            origin=self.to_position(low),
            name=self.name,
        )

    def strided(self, step: int) -> Volume:
        """Return every `step`-th voxel, starting with the first."""
        if step < 1:
            raise ValueError(f"step must be at least 1; got {step}")
        return Volume(
            data=self.data[..., ::step, ::step, ::step],
            voxel_spacing=self.voxel_spacing * step,
            origin=self.origin,
            name=self.name,
        )

    def binned(self, factor: int) -> Volume:
        """Return means over cubes of `factor` voxels; voxels that fill no cube are left out."""
        if factor < 1 or factor > min(self.shape):
            raise ValueError(f"factor must be from 1 to {min(self.shape)}; got {factor}")
        z, y, x = (n // factor for n in self.shape)
        data = self.data[..., : z * factor, : y * factor, : x * factor]
        data = data.reshape(*data.shape[:-3], z, factor, y, factor, x, factor)
        return Volume(
            data=data.mean(axis=(-5, -3, -1), dtype=np.float32),
            voxel_spacing=self.voxel_spacing * factor,
            origin=self.to_position(np.full(3, (factor - 1) / 2)),
            name=self.name,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CTF:
    """Parameters of the contrast transfer function of each image of a tilt series.

    Parameters
    ----------
    defocus_u_um, defocus_v_um : array_like, shape (n,)
        Defocus along the two principal axes in micrometres, underfocus positive.
    defocus_angle : array_like, shape (n,)
        Angle of the u axis to the image's x axis.
    voltage_kv, spherical_aberration_mm, amplitude_contrast : float
        Of the microscope; amplitude contrast is a fraction.
    phase_shift : array_like, shape (n,)
        Of a phase plate, in degrees.
    """

    defocus_u_um: FloatArray
    defocus_v_um: FloatArray
    defocus_angle: FloatArray
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.07
    phase_shift: FloatArray | float = 0.0

    def __post_init__(self) -> None:
        n = np.atleast_1d(np.asarray(self.defocus_u_um, dtype=float)).shape[0]
        for name in ("defocus_u_um", "defocus_v_um", "defocus_angle", "phase_shift"):
            value = np.atleast_1d(np.asarray(getattr(self, name), dtype=float))
            if value.shape not in {(n,), (1,)}:
                raise ValueError(f"{name} must hold one number for each of {n} images")
            _set(self, **{name: np.broadcast_to(value, (n,)).copy()})
        if self.voltage_kv <= 0:
            raise ValueError(f"voltage_kv must be positive; got {self.voltage_kv}")
        if not 0 <= self.amplitude_contrast <= 1:
            raise ValueError(
                f"amplitude_contrast must be from 0 to 1; got {self.amplitude_contrast}"
            )

    def __len__(self) -> int:
        return len(self.defocus_u_um)


@dataclass(frozen=True, eq=False, kw_only=True)
class TiltSeries:
    """Projections of one specimen and how they were taken.

    At tilt angle t, the point (x, y, z) falls on the detector at (x cos t + z sin t, y), all
    measured from the centre of rotation, once the image is turned so that the tilt axis is y.

    Parameters
    ----------
    tilt_angles : array_like, shape (n,)
        In the order of `images`.
    tilt_axis_angle : float
        From the image's y axis, counter-clockwise; 0 for an aligned series.
    images : ndarray, shape (n, y, x), optional
        Aligned projections.
    pixel_spacing : float, optional
        Of `images`, in angstrom.
    dose_e_per_a2 : array_like, shape (n,), optional
        Exposure accumulated up to the end of each image.
    ctf : CTF, optional
        One set of parameters for each image.
    """

    tilt_angles: FloatArray
    tilt_axis_angle: float = 0.0
    images: NDArray[Any] | None = None
    pixel_spacing: float | None = None
    dose_e_per_a2: FloatArray | None = None
    ctf: CTF | None = None

    def __post_init__(self) -> None:
        angles = np.atleast_1d(np.asarray(self.tilt_angles, dtype=float))
        if angles.ndim != 1 or len(angles) == 0 or not (np.abs(angles) <= 90).all():
            raise ValueError("tilt_angles must be a list of angles from -90 to 90 degrees")
        n = len(angles)
        dose = self.dose_e_per_a2
        if dose is not None:
            dose = np.asarray(dose, dtype=float)
            if dose.shape != (n,):
                raise ValueError(
                    f"expected a list with the same number of doses as tilt angles ({n});"
                    f" got {dose.size}"
                )
        if self.ctf is not None and len(self.ctf) != n:
            raise ValueError(f"expected CTF parameters for {n} images; got {len(self.ctf)}")
        if self.images is not None and (self.images.ndim != 3 or len(self.images) != n):
            raise ValueError(f"expected images of shape ({n}, y, x); got {self.images.shape}")
        _set(self, tilt_angles=angles, dose_e_per_a2=dose)

    def __len__(self) -> int:
        return len(self.tilt_angles)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tomogram(Volume):
    """A reconstructed volume.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        As of any `Volume`, but without leading axes.
    tilt_series : TiltSeries, optional
        What it was reconstructed from.
    """

    tilt_series: TiltSeries | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.ndim != 3:
            raise ValueError(f"a tomogram needs data of shape (z, y, x); got {self.data.shape}")


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoreMap(Volume):
    """What a picker makes of a tomogram: how much each place looks like each label.

    Parameters
    ----------
    data : ndarray, shape (label, z, y, x)
        Higher is better.
    labels : tuple of str
        One name for each channel.
    rotations : Rotation, optional
        The orientations that were tried, reference to tomogram.
    rotation_index : ndarray of int, shape (label, z, y, x), optional
        Index of the best of `rotations` at each voxel.
    diameter : float, optional
        Of the particles, in angstrom, where the tomogram itself has told.
    """

    labels: tuple[str, ...]
    rotations: Rotation | None = None
    rotation_index: NDArray[np.integer[Any]] | None = None
    diameter: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        labels = tuple(str(label) for label in self.labels)
        if self.data.ndim != 4 or len(labels) != self.data.shape[0]:
            raise ValueError(
                f"a score map of {len(labels)} labels needs data of shape (label, z, y, x);"
                f" got {self.data.shape}"
            )
        if (self.rotations is None) != (self.rotation_index is None):
            raise ValueError("rotations and rotation_index must be given together")
        if self.rotation_index is not None and self.rotation_index.shape != self.data.shape:
            raise ValueError(
                f"rotation_index must have shape {self.data.shape}; got {self.rotation_index.shape}"
            )
        _set(self, labels=labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Particles:
    """A table of particles, by column. Nothing found is an empty table.

    Parameters
    ----------
    position : array_like, shape (n, 3)
        Centres xyz in angstrom; the centre of the tomogram's first voxel is its origin.
    label : array_like of str, shape (n,), or str
        Class of each particle; one string stands for all.
    tomogram : array_like of str, shape (n,), or str
        Name of each particle's tomogram; one string stands for all.
    score : array_like, shape (n,), optional
        Higher is better.
    rotation : Rotation of length n, optional
        Orientations: they take the reference to the tomogram, left-multiplying xyz columns.
    extra : mapping of str to array_like, shape (n,)
        Further columns, such as STAR columns that tomoloc has no use for.
    """

    position: FloatArray
    label: NDArray[np.str_] | str = ""
    tomogram: NDArray[np.str_] | str = ""
    score: FloatArray | None = None
    rotation: Rotation | None = None
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        position = np.array(self.position, dtype=float)
        if position.size == 0:
            position = position.reshape(0, 3)
        if position.ndim != 2 or position.shape[1] != 3:
            raise ValueError(f"position must have shape (n, 3); got {position.shape}")
        if not np.isfinite(position).all():
            bad = int(np.flatnonzero(~np.isfinite(position).all(axis=1))[0])
            raise ValueError(f"position of particle {bad + 1} is not a number")
        n = len(position)
        columns: dict[str, Any] = {"position": position}
        for name in ("label", "tomogram"):
            value = np.asarray(getattr(self, name), dtype=np.str_)
            columns[name] = np.full(n, value) if value.ndim == 0 else value
        if self.score is not None:
            columns["score"] = np.asarray(self.score, dtype=float)
        rotation = self.rotation
        if rotation is not None:
            rotation = Rotation.from_quat(rotation.as_quat().reshape(-1, 4))
            columns["rotation"] = rotation.as_quat()
        extra = {str(key): np.asarray(value) for key, value in self.extra.items()}
        for name, value in {**columns, **extra}.items():
            if value.shape[:1] != (n,):
                raise ValueError(f"{name} must have one entry for each of {n} particles")
        _set(self, **{**columns, "rotation": rotation, "extra": extra})

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, rows: Any) -> Particles:
        """Return the chosen rows (slice, mask or indices) as a table."""
        chosen = np.atleast_1d(np.arange(len(self))[rows])
        return Particles(
            position=self.position[chosen],
            label=np.asarray(self.label)[chosen],
            tomogram=np.asarray(self.tomogram)[chosen],
            score=None if self.score is None else self.score[chosen],
            rotation=None if self.rotation is None else _take(self.rotation, chosen),
            extra={key: value[chosen] for key, value in self.extra.items()},
        )

    @property
    def labels(self) -> list[str]:
        """The distinct labels, sorted."""
        return sorted({str(label) for label in np.asarray(self.label)})

    @property
    def tomograms(self) -> list[str]:
        """The distinct tomogram names, in order of first appearance."""
        return list(dict.fromkeys(str(name) for name in np.asarray(self.tomogram)))

    @staticmethod
    def concatenate(tables: list[Particles]) -> Particles:
        """Stack tables; a score, rotation or column that one of them lacks is dropped."""
        filled = [table for table in tables if len(table)]
        if not filled:
            return tables[0] if tables else Particles(position=np.zeros((0, 3)))
        scores = [t.score for t in filled if t.score is not None]
        rotations = [t.rotation for t in filled if t.rotation is not None]
        shared = set.intersection(*(set(t.extra) for t in filled))
        return Particles(
            position=np.concatenate([t.position for t in filled]),
            label=np.concatenate([np.asarray(t.label) for t in filled]),
            tomogram=np.concatenate([np.asarray(t.tomogram) for t in filled]),
            score=np.concatenate(scores) if len(scores) == len(filled) else None,
            rotation=Rotation.concatenate(rotations) if len(rotations) == len(filled) else None,
            extra={
                key: np.concatenate([t.extra[key] for t in filled])
                for key in filled[0].extra
                if key in shared
            },
        )


def _take(rotation: Rotation, chosen: NDArray[np.integer[Any]]) -> Rotation:
    """Index rotations by an array that may be empty."""
    return Rotation.from_quat(rotation.as_quat().reshape(-1, 4)[chosen].reshape(-1, 4))


@dataclass(frozen=True, eq=False, kw_only=True)
class Structure:
    """Atoms, or pseudo-atoms that stand for several.

    Parameters
    ----------
    position : array_like, shape (n, 3)
        xyz in angstrom.
    atomic_number : array_like of int, shape (n,)
        Of each atom.
    weight : array_like, shape (n,), optional
        How many such atoms each entry stands for: occupancy, or the atoms of a residue that is
        given by its CA alone. One by default.
    name : str
        Label of the structure's particles.
    symmetry : str
        Point group about the centre of mass, such as "C1", "D7" or "O".
    chain : array_like of str, shape (n,), optional
        Chain that each atom belongs to.
    is_node : array_like of bool, shape (n,), optional
        Atoms that stand for their residue in an elastic network: CA of protein, P of nucleic
        acid.
    """

    position: FloatArray
    atomic_number: NDArray[np.integer[Any]]
    weight: FloatArray | None = None
    name: str = ""
    symmetry: str = "C1"
    chain: NDArray[np.str_] | None = None
    is_node: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        position = np.asarray(self.position, dtype=float)
        number = np.asarray(self.atomic_number, dtype=int)
        n = len(position)
        weight = np.ones(n) if self.weight is None else np.asarray(self.weight, dtype=float)
        if n == 0 or position.shape != (n, 3):
            raise ValueError(f"a structure needs atoms at (n, 3) positions; got {position.shape}")
        if number.shape != (n,) or weight.shape != (n,):
            raise ValueError(f"atomic_number and weight must have one entry for each of {n} atoms")
        _set(self, position=position, atomic_number=number, weight=weight)
        for name in ("chain", "is_node"):
            value = getattr(self, name)
            if value is not None and np.shape(value) != (n,):
                raise ValueError(f"{name} must have one entry for each of {n} atoms")

    @property
    def center(self) -> FloatArray:
        """Mean position weighted by nuclear charge, shape (3,)."""
        mass = self.atomic_number * np.asarray(self.weight)
        return mass @ self.position / mass.sum()

    @property
    def diameter(self) -> float:
        """Twice the distance from the centre to the farthest atom, in angstrom."""
        return float(2 * np.linalg.norm(self.position - self.center, axis=1).max())

    def centered(self) -> Structure:
        """Return the structure moved so that its `center` is the origin."""
        return replace(self, position=self.position - self.center)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """A tomogram with its truth: what a simulator gives and training eats.

    Parameters
    ----------
    tomogram : Tomogram
        Protein dark, as a microscope gives it.
    particles : Particles
        True positions, labels and poses.
    labels : Volume of int, optional
        Semantic atlas on the tomogram's grid; 0 is background.
    legend : mapping of int to str
        Name of each value in `labels`.
    instances : Volume of int, optional
        Row of `particles` plus one at each voxel; membranes, filaments and the rest have the
        numbers that follow; 0 is background.
    membranes : Particles, optional
        Points on the middle of bilayers, `rotation` taking z to the outward normal;
        tomolocInstance in `extra` tells which bilayer.
    filaments : Particles, optional
        One entry for each subunit: its point on the centreline, `rotation` taking the
        subunit's own frame, whose z is the helical axis, to the tomogram, so z to the tangent;
        tomolocInstance in `extra` tells which filament.
    halves : tuple of Tomogram
        Two with independent noise, or none.
    summary : mapping
        What else is true of the sample, in the words of JSON.
    scene : object, optional
        What the simulator drew: rendering it again gives this sample.
    density : Volume, optional
        Electrostatic potential before the microscope.
    """

    tomogram: Tomogram
    particles: Particles
    labels: Volume | None = None
    legend: Mapping[int, str] = field(default_factory=dict)
    instances: Volume | None = None
    membranes: Particles | None = None
    filaments: Particles | None = None
    halves: tuple[Tomogram, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    scene: object | None = None
    density: Volume | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Volume) and value.shape != self.tomogram.shape:
                raise ValueError(
                    f"{item.name} has shape {value.shape}; the tomogram has {self.tomogram.shape}"
                )
