"""Plant particles in simulated noise with a missing wedge, dose and CTF."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy import fft
from scipy.spatial.transform import Rotation

from tomoloc.physics.wedge import tilt_weights
from tomoloc.simulate.references import add_particles, make_reference
from tomoloc.types import CTF, Particles, Structure, TiltSeries, Tomogram

SHAPE = (48, 64, 56)
SPACING = 10.0
ORIGIN = np.array([120.0, -40.0, 15.0])


def make_lobes(centers, radii, *, name: str, symmetry: str = "C1") -> Structure:
    """Fill balls with carbon atoms at the density of protein."""
    rng = np.random.default_rng(5)
    position = []
    for center, radius in zip(centers, radii, strict=True):
        points = rng.uniform(-radius, radius, (int(8 * radius**3 * 0.05), 3))
        position.append(points[np.linalg.norm(points, axis=1) < radius] + center)
    position = np.concatenate(position)
    return Structure(
        position=position,
        atomic_number=np.full(len(position), 6),
        name=name,
        symmetry=symmetry,
    ).centered()


def make_tilt_series(*, ctf: bool = True) -> TiltSeries:
    angles = np.arange(-60, 61, 3.0)
    order = np.argsort(np.argsort(np.abs(angles), kind="stable"))
    n = len(angles)
    optics = CTF(defocus_u_um=np.full(n, 3.0), defocus_v_um=np.full(n, 3.0), defocus_angle=[0] * n)
    return TiltSeries(
        tilt_angles=angles, dose_e_per_a2=3.0 * (order + 1), ctf=optics if ctf else None
    )


def make_noise(rng: np.random.Generator, shape=SHAPE) -> np.ndarray:
    """White noise in the measured part of Fourier space, of unit deviation."""
    weights = tilt_weights(shape, make_tilt_series(ctf=False), voxel_spacing=SPACING, dose=False)
    spectrum = fft.rfftn(rng.standard_normal(shape).astype(np.float32)) * (weights > 0.1)
    noise = fft.irfftn(spectrum, s=shape)
    return (noise / noise.std()).astype(np.float32)


def plant(
    structure: Structure, *, n: int, noise: float, rng: np.random.Generator, ctf: bool = True
) -> tuple[Tomogram, Particles]:
    """Return a tomogram, protein dark, and its truth; noise is relative to a particle's signal."""
    cells = list(product((12, 36), (11, 32, 53), (14, 42)))
    chosen = rng.permutation(len(cells))[:n]
    rotation = Rotation.random(n, rng=rng)
    index = np.array([cells[i] for i in chosen], dtype=float)
    index += rng.uniform(-1.5, 1.5, index.shape)
    index[0, 2] = 2.3  # near the border: part of the particle is outside
    density = np.zeros(SHAPE, dtype=np.float32)
    add_particles(
        density,
        np.zeros(SHAPE, dtype=np.uint16),
        [make_reference(structure, voxel_spacing=SPACING)],
        index=index,
        rotation=rotation,
        species=np.zeros(n, dtype=int),
    )
    series = make_tilt_series(ctf=ctf)
    weights = tilt_weights(SHAPE, series, voxel_spacing=SPACING) * (-1 if ctf else 1)
    signal = fft.irfftn(fft.rfftn(density) * weights, s=SHAPE)
    signal /= signal[density > 1].std()
    tomogram = Tomogram(
        data=(-signal + noise * make_noise(rng)).astype(np.float32),
        voxel_spacing=SPACING,
        origin=ORIGIN,
        name="planted",
        tilt_series=series,
    )
    truth = Particles(
        position=tomogram.to_position(index),
        label=structure.name,
        tomogram="planted",
        rotation=rotation,
    )
    return tomogram, truth
