"""Electrostatic potential of atomic structures, relative to the vitreous ice they displace.

Values are in volt. An isolated atom's potential is the Fourier transform of its electron
scattering factor f, so that its integral is `POTENTIAL_PER_SCATTERING` f(0) (volt · Å³).
"""

from __future__ import annotations

import gemmi
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from tomoloc.physics.filters import band_pass_weights, radial_frequency
from tomoloc.types import FloatArray, Structure, Volume

__all__ = [
    "ICE_POTENTIAL",
    "MOLECULAR_SURFACE",
    "POTENTIAL_PER_SCATTERING",
    "PROTEIN_CONTRAST",
    "make_potential",
    "mass_center",
    "molecular_mass_kda",
    "normalize_map",
    "potential_integral",
]

#: h² / (2 π m e): turns a scattering factor in Å into an integrated potential in V · Å³.
POTENTIAL_PER_SCATTERING = 47.87801
#: Molecules of water in an Å³ of vitreous ice of 0.93 g/cm³.
_WATER_DENSITY = 0.93 / 18.015 * 0.602214
#: Mean potential of vitreous ice in the isolated-atom approximation, in volt.
ICE_POTENTIAL = POTENTIAL_PER_SCATTERING * _WATER_DENSITY * (2 * 0.5288 + 1.9834)
#: Mean potential of protein above that of ice, in volt.
PROTEIN_CONTRAST = 3.3
#: Potential at the surface of a molecule, in volt.
MOLECULAR_SURFACE = 0.4 * PROTEIN_CONTRAST
# What `make_potential` gives for real proteins of 40 to 290 kDa at resolutions of 20 to 30 Å,
# above Otsu's threshold: mean in volt (2.0 to 2.5), and integral in V · Å³ for each dalton.
_MOLECULE_MEAN = 2.3
_MOLECULE_INTEGRAL = 3.6

# Solvent volume that an atom displaces, Å³ (Fraser et al. 1978, doi:10.1107/S0021889878014296).
_DISPLACED = {1: 5.15, 6: 16.44, 7: 2.49, 8: 9.13, 15: 5.73, 16: 19.86}
# Hydrogens that an average protein carries on each C, N and O; used where a file has none.
_HYDROGENS = {6: 1.24, 7: 1.04, 8: 0.14}
_OVERSAMPLING = 2


def make_potential(
    structure: Structure,
    *,
    voxel_spacing: float,
    shape: tuple[int, int, int] | None = None,
    rotation: Rotation | None = None,
    low_pass: float | None = None,
    b_factor: float = 0.0,
) -> Volume:
    """Render the potential of a structure above that of vitreous ice.

    Each atom is its five-Gaussian electron scattering factor [1]_ less the Gaussian volume of
    ice that it displaces [2]_, both applied in Fourier space to atoms that are spread on a grid
    of half the spacing, so the result is free of aliasing at any voxel spacing. Structures that
    hold no hydrogen at all get the mean number that protein carries on C, N and O.

    Parameters
    ----------
    structure : Structure
        Atoms or pseudo-atoms.
    voxel_spacing : float
        Of the result.
    shape : tuple of int, optional
        Number of voxels along z, y and x; by default a cube that holds every rotation.
    rotation : Rotation, optional
        Turns the structure about its centre.
    low_pass : float, optional
        Resolution at which a soft edge has fallen to zero; at best, and by default, two voxels.
    b_factor : float
        Blur of all atoms, exp(-B k² / 4), in Å².

    Returns
    -------
    Volume, data shape (z, y, x), float32
        In volt. The structure's `center` lies at position 0, exactly in the middle of the box,
        that is between voxels along sides of even length.

    Raises
    ------
    ValueError
        If the structure does not fit into `shape` or `low_pass` is below two voxels.

    References
    ----------
    .. [1] Peng et al., Acta Cryst. A52 (1996), doi:10.1107/S0108767395014371, as tabulated in
       International Tables C, 4.3.2.2.
    .. [2] Fraser, MacRae & Suzuki, J. Appl. Cryst. 11 (1978), doi:10.1107/S0021889878014296;
       Vulović et al., J. Struct. Biol. 183 (2013), doi:10.1016/j.jsb.2013.05.008.
    """
    if not voxel_spacing > 0:
        raise ValueError(f"voxel_spacing must be positive (angstrom); got {voxel_spacing}")
    low_pass = 2 * voxel_spacing if low_pass is None else low_pass
    if low_pass < 2 * voxel_spacing * (1 - 1e-9):
        raise ValueError(
            f"low_pass must be at least two voxels ({2 * voxel_spacing:g} Å); got {low_pass:g}"
        )
    if shape is None:
        side = fft.next_fast_len(int(np.ceil(structure.diameter / voxel_spacing)) + 4, real=True)
        shape = (side, side, side)
    position = structure.position - structure.center
    if rotation is not None:
        position = rotation.apply(position)
    room = (np.array(shape[::-1]) + 1) * voxel_spacing / 2
    if (np.abs(position) > room).any():
        need = np.ceil(2 * np.abs(position).max(axis=0) / voxel_spacing)[::-1].astype(int)
        raise ValueError(
            f"{structure.name or 'the structure'} needs a box of {tuple(need.tolist())} voxels of"
            f" {voxel_spacing:g} Å or more; got {tuple(shape)}"
        )
    # Fine voxel 2 i lies on voxel i of the result.
    middle = (np.array(shape) - 1) / 2
    index = _OVERSAMPLING * (position[:, ::-1] / voxel_spacing + middle)
    k = radial_frequency(shape, voxel_spacing)
    total = np.zeros(k.shape, dtype=np.complex64)
    weight = np.asarray(structure.weight)
    hydrogens = {} if (structure.atomic_number == 1).any() else _HYDROGENS
    hydrogen = _amplitude(1, k)
    for number in np.unique(structure.atomic_number):
        chosen = structure.atomic_number == number
        grid = np.zeros([_OVERSAMPLING * n for n in shape], dtype=np.float32)
        _spread(grid, index[chosen], weight[chosen])
        amplitude = _amplitude(int(number), k) + hydrogens.get(int(number), 0.0) * hydrogen
        total += _crop(fft.rfftn(grid, workers=-1), shape) * amplitude
    # Half at 0.9 of the cut-off, zero from 0.99 on.
    edge = band_pass_weights(k, low_pass=low_pass / 0.9)
    total *= _spline_transfer(shape) * np.exp(-b_factor / 4 * k**2) * edge
    data = fft.irfftn(total, s=shape, workers=-1) / voxel_spacing**3
    origin = -middle[::-1] * voxel_spacing
    return Volume(
        data=data.astype(np.float32),
        voxel_spacing=voxel_spacing,
        origin=origin,
        name=structure.name,
    )


def potential_integral(structure: Structure) -> float:
    """Integrate a structure's potential above ice over all space, in V · Å³.

    For protein it is about 4 V · Å³ for each dalton.
    """
    per_element = {
        number: float(_amplitude(number, np.zeros(1))[0]) for number in _composition(structure)
    }
    return sum(per_element[number] * n for number, n in _composition(structure).items())


def molecular_mass_kda(structure: Structure) -> float:
    """Sum a structure's atomic masses, missing hydrogens included, in kilodalton."""
    atoms = _composition(structure).items()
    return sum(gemmi.Element(number).weight * n for number, n in atoms) / 1000


def normalize_map(volume: Volume, *, mass_kda: float | None = None) -> Volume:
    """Scale a density map of arbitrary units to the potential of protein above ice, in volt.

    The background, the median of the box's faces, becomes 0. The molecule is what lies above
    Otsu's threshold. With a mass, its integral becomes that of so much protein; without one, its
    mean becomes that of real proteins at 10 Å voxels, 2.3 V.

    Parameters
    ----------
    volume : Volume, data shape (z, y, x)
        Density, protein positive, surrounded by background.
    mass_kda : float, optional
        Of the molecule.

    Raises
    ------
    ValueError
        If no density stands out of the background.
    """
    from skimage.filters import threshold_otsu

    data = np.asarray(volume.data, dtype=np.float32)
    faces = [np.take(data, side, axis=axis).ravel() for axis in range(3) for side in (0, -1)]
    data = data - np.median(np.concatenate(faces))
    inside = data > max(threshold_otsu(data), 0)
    if not inside.any():
        raise ValueError(f"map {volume.name or ''} holds no density above its background")
    if mass_kda is None:
        scale = _MOLECULE_MEAN / data[inside].mean()
    else:
        integral = data[inside].sum() * volume.voxel_spacing**3
        scale = mass_kda * 1000 * _MOLECULE_INTEGRAL / integral
    return volume.with_data((data * np.float32(scale)).astype(np.float32))


def mass_center(density: Volume) -> FloatArray:
    """Centre of mass of a map that `normalize_map` gave: what tomoloc takes as its centre.

    Returns
    -------
    ndarray, shape (3,)
        Position xyz; each voxel above `MOLECULAR_SURFACE` weighs by its density.
    """
    weight = np.where(density.data > MOLECULAR_SURFACE, density.data, 0)
    return density.to_position(ndimage.center_of_mass(weight))


def _composition(structure: Structure) -> dict[int, float]:
    """Count the atoms of each element, implicit hydrogens included."""
    numbers, weight = structure.atomic_number, np.asarray(structure.weight)
    counts = {int(n): float(weight[numbers == n].sum()) for n in np.unique(numbers)}
    if 1 not in counts:
        counts[1] = sum(_HYDROGENS.get(number, 0.0) * n for number, n in counts.items())
    return counts


def _amplitude(number: int, frequency: FloatArray) -> FloatArray:
    """Fourier transform of one atom's potential less that of the ice it displaces, V · Å³."""
    factors = gemmi.Element(number).c4322
    if factors is None or number == 0:
        raise ValueError(f"no electron scattering factor is known for atomic number {number}")
    square = frequency**2
    terms = zip(factors.a, factors.b, strict=True)
    scattering = sum(a * np.exp(-b / 4 * square) for a, b in terms)
    radius = gemmi.Element(number).covalent_r
    displaced = _DISPLACED.get(number, 4 / 3 * np.pi * radius**3)
    ice = ICE_POTENTIAL * displaced * np.exp(-np.pi * displaced ** (2 / 3) * square)
    return np.asarray(POTENTIAL_PER_SCATTERING * scattering - ice)


def _crop(spectrum: NDArray[np.complex64], shape: tuple[int, int, int]) -> NDArray[np.complex64]:
    """Keep the frequencies that a grid of `shape` holds."""
    rows = [np.rint(fft.fftfreq(n) * n).astype(int) % (_OVERSAMPLING * n) for n in shape[:2]]
    return spectrum[np.ix_(*rows, np.arange(shape[2] // 2 + 1))]


def _spline_transfer(shape: tuple[int, int, int]) -> FloatArray:
    """Inverse of what spreading with cubic B-splines does to each frequency."""
    z, y, x = (
        np.sinc(f / _OVERSAMPLING) ** -4
        for f in (fft.fftfreq(shape[0]), fft.fftfreq(shape[1]), fft.rfftfreq(shape[2]))
    )
    return np.asarray(z[:, None, None] * y[:, None] * x, dtype=np.float32)


@njit(cache=True, nogil=True)
def _spread(grid: FloatArray, index: FloatArray, weight: FloatArray) -> None:
    """Add atoms at fractional places zyx to a periodic grid, each as a cubic B-spline."""
    shares = np.empty((3, 4))
    for atom in range(len(index)):
        for axis in range(3):
            t = index[atom, axis] - np.floor(index[atom, axis])
            shares[axis, 0] = (1 - t) ** 3 / 6
            shares[axis, 1] = (3 * t**3 - 6 * t**2 + 4) / 6
            shares[axis, 2] = (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6
            shares[axis, 3] = t**3 / 6
        z0 = int(np.floor(index[atom, 0])) - 1
        y0 = int(np.floor(index[atom, 1])) - 1
        x0 = int(np.floor(index[atom, 2])) - 1
        for i in range(4):
            for j in range(4):
                share = weight[atom] * shares[0, i] * shares[1, j]
                z, y = (z0 + i) % grid.shape[0], (y0 + j) % grid.shape[1]
                for k in range(4):
                    grid[z, y, (x0 + k) % grid.shape[2]] += share * shares[2, k]
