"""How fast template matching is, beside pyTME, and what its time depends on.

    python benchmarks/template_speed.py [--small] [--coarse-only] [--plots FOLDER] [--venv FOLDER]

A tomogram of 512 x 512 x 200 voxels, noise with a missing wedge and planted particles, is searched
with 45,123 and with 553,680 orientations. pyTME searches a crop of it in the same run, with few
orientations; its time is taken to grow with voxels and orientations, as it does. pyTME looks for
the template alone; ours also looks for the decoy, sets the threshold and refines poses. --small
runs everything on small volumes, to try it out.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from scipy import fft
from scipy.spatial.transform import Rotation

from template_pytme import N_CORES, Problem, install_pytme, search_pytme, use_cores
from tomoloc.evaluate import match_particles
from tomoloc.physics.potential import make_potential
from tomoloc.physics.rotations import sample_rotations
from tomoloc.physics.wedge import missing_wedge, tilt_weights
from tomoloc.pickers.correlation import OVERSAMPLING, RotatedReference, spherical_mask
from tomoloc.pickers.pick import pick
from tomoloc.pickers.template import TemplatePicker
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Particles, Structure, TiltSeries, Tomogram
from unseen.machine import describe_machine

SHAPE = (200, 512, 512)
CROP = (64, 128, 144)
SPACING = 10.0
STEPS = {6.9043: 120.0, 2.9925: 600.0}
"""Of 45,123 and 553,680 orientations, and the seconds allowed for them."""
RATIO = 300.0
SERIES = TiltSeries(tilt_angles=np.arange(-60, 61, 3.0))
CONTRAST_TO_NOISE = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small volumes, no verdict")
    parser.add_argument("--coarse-only", action="store_true", help="45,123 alone, no sweeps")
    parser.add_argument("--plots", type=Path, help="folder for pictures")
    parser.add_argument("--venv", type=Path, default=Path("build/pytme-venv"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    use_cores(N_CORES)
    print(f"machine   {describe_machine()}, {N_CORES} cores used, load {os.getloadavg()[0]:.1f}")
    shape = CROP if options.small else SHAPE
    structure = make_complex(3, mass_kda=500, symmetry="C1")
    tomogram, truth = make_tomogram(structure, shape=shape)
    print(f"tomogram  {_size(shape)} voxels of {SPACING:g} Å, {len(truth)} particles of 500 kDa")
    # Compilation is not counted.
    search(structure, *make_tomogram(structure, shape=(48, 56, 64)), step=40)
    steps = [max(STEPS)] if options.coarse_only else list(STEPS)
    seconds = [search(structure, tomogram, truth, step=step) for step in steps]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    passed = verdict(peak <= 4, f"peak memory {peak:.2f} GiB, of at most 4")
    python = install_pytme(options.venv)
    if python is not None:
        rate = pytme_rate(structure, tomogram, python)
        for step, taken in zip(steps, seconds, strict=True):
            n = len(sample_rotations(step))
            other = np.prod(shape, dtype=float) * n / rate
            print(f"pyTME     {n} rotations: {other / 3600:.1f} h, {other / taken:.0f} x our time")
            if step == max(STEPS):
                passed &= verdict(other / taken >= RATIO, f"{RATIO:.0f} times faster or more")
    for step, taken in zip(steps, seconds, strict=True):
        limit = STEPS[step]
        passed &= verdict(taken <= limit, f"{step:.2g}°: {taken:.1f} s, of at most {limit:.0f}")
    if not options.coarse_only:
        sweep(options.plots)
    return 0 if passed or options.small else 1


def make_tomogram(
    structure: Structure, *, shape: tuple[int, int, int], seed: int = 0
) -> tuple[Tomogram, Particles]:
    """Noise in the measured part of Fourier space, with a particle in every tenth cell."""
    rng = np.random.default_rng(seed)
    spectrum = fft.rfftn(rng.standard_normal(shape, dtype=np.float32), workers=-1)
    spectrum *= missing_wedge(shape)
    data = fft.irfftn(spectrum, s=shape, workers=-1)
    data /= data.std()
    size = 2 * int(structure.diameter / SPACING / 2 + 5) + 1
    cells = np.stack(np.meshgrid(*[np.arange(size // 2, n - size // 2, size) for n in shape]), -1)
    cells = rng.permutation(cells.reshape(-1, 3))[: max(3, cells.size // 30)]
    rotation = Rotation.random(len(cells), rng=rng)
    weights = tilt_weights((size,) * 3, SERIES, voxel_spacing=SPACING)
    density = _density(structure, size)
    reference = RotatedReference(density, weights, np.ones((size,) * 3, np.float32) / size**3)
    for start in range(0, len(cells), 16):
        copies = reference.profiles(rotation[start : start + 16], "cpu").numpy()
        for cell, copy in zip(cells[start : start + 16], copies, strict=True):
            low = cell - size // 2
            z, y, x = (slice(n, n + size) for n in low)
            data[z, y, x] += CONTRAST_TO_NOISE * copy
    tomogram = Tomogram(data=data, voxel_spacing=SPACING, tilt_series=SERIES, name="speed")
    truth = Particles(
        position=tomogram.to_position(cells), label="wanted", tomogram="speed", rotation=rotation
    )
    return tomogram, truth


def search(
    structure: Structure, tomogram: Tomogram, truth: Particles, *, step: float, quiet: bool = False
) -> float:
    """Pick as the command line does; return the seconds."""
    picker = TemplatePicker(
        template=structure, label="wanted", angular_step=step, low_pass=2 * SPACING
    )
    start = perf_counter()
    picks = pick(tomogram, picker, contrast="light")
    seconds = perf_counter() - start
    if not quiet:
        match = match_particles(picks.particles, truth, radius=30)
        n = len(sample_rotations(step))
        print(
            f"tomoloc   {_size(tomogram.shape)}, {n} rotations: {seconds:.1f} s,"
            f" {tomogram.data.size * n / seconds / 1e9:.1f} Gvoxel·rot/s; {len(picks.particles)}"
            f" picks, {len(match.pairs)} of {len(truth)} particles found",
            flush=True,
        )
    return seconds


def pytme_rate(structure: Structure, tomogram: Tomogram, python: Path) -> float:
    """Voxels times rotations in a second, on a crop."""
    crop = tomogram.crop((0, 0, 0), np.minimum(CROP, tomogram.shape))
    diameter = structure.diameter / SPACING + 2
    size = 2 * int(np.ceil(diameter / 2)) + 1
    problem = Problem(
        volume=np.ascontiguousarray(crop.data, dtype=np.float32),
        density=_density(structure, size),
        mask=spherical_mask(size, diameter),
        rotations=sample_rotations(36),
    )
    found = search_pytme(problem, python, pad=False)
    work = problem.volume.size * len(problem.rotations)
    print(
        f"pyTME     {found.facts['version']}, {_size(crop.shape)}, {len(problem.rotations)}"
        f" rotations: {found.seconds:.1f} s, {work / found.seconds / 1e9:.4f} Gvoxel·rot/s"
    )
    return float(work / found.seconds)


def sweep(plots: Path | None) -> None:
    """Time against orientations, voxels and size of the template."""

    def timed(structure: Structure, shape: tuple[int, int, int]) -> float:
        return search(structure, *make_tomogram(structure, shape=shape), step=15, quiet=True)

    middle = make_complex(3, mass_kda=500, symmetry="C1")
    small = make_tomogram(middle, shape=(64, 128, 144))
    rows: dict[str, list[tuple[float, float]]] = {}
    rows["orientations"] = [
        (len(sample_rotations(step)), search(middle, *small, step=step, quiet=True))
        for step in (30.0, 15.0, 10.0, 7.0, 5.0)
    ]
    rows["million voxels"] = [
        (np.prod(shape) / 1e6, timed(middle, shape))
        for shape in ((48, 96, 96), (64, 128, 144), (96, 192, 192), (128, 288, 288))
    ]
    rows["diameter in voxels"] = []
    for mass in (60, 150, 500, 1500):
        structure = make_complex(3, mass_kda=mass, symmetry="C1")
        taken = search(
            structure, *make_tomogram(structure, shape=(64, 128, 144)), step=15, quiet=True
        )
        rows["diameter in voxels"].append((structure.diameter / SPACING, taken))
    for name, pairs in rows.items():
        exponent = np.polyfit(*np.log(np.array(pairs)).T, 1)[0]
        listed = ", ".join(f"{x:.4g}: {y:.1f} s" for x, y in pairs)
        print(f"sweep     {name}: {listed}; exponent {exponent:.2f}")
    if plots is not None:
        _plot(rows, plots / "template-speed.png")


def _plot(rows: dict[str, list[tuple[float, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, pairs) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        axes.loglog(*np.array(pairs).T, "o-")
        axes.set(xlabel=name, ylabel="seconds")
        axes.grid(which="both", alpha=0.3)
    figure.savefig(path, dpi=110)
    print(f"picture   {path}")


def _density(structure: Structure, size: int) -> np.ndarray:
    """On a cube of the size, sampled more finely."""
    fine = SPACING / OVERSAMPLING
    return make_potential(
        structure,
        voxel_spacing=fine,
        shape=(OVERSAMPLING * size + 1,) * 3,
        low_pass=2 * SPACING,
    ).data


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[::-1]))


def verdict(passed: bool, words: str) -> bool:  # noqa: FBT001
    print(f"{'PASS' if passed else 'FAIL'}  {words}", flush=True)
    return bool(passed)


if __name__ == "__main__":
    sys.exit(main())
