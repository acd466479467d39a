"""Time of one simulated tomogram: 192 x 192 x 96 voxels, 200 particles, 41 tilts.

    python benchmarks/simulate.py [--repeats N]

The first sample pays for compiling and loading; the median of the others counts. Structures are
made and rendered once for each recipe and are timed apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numba
import numpy as np

from tomoloc.simulate import scene as stages
from tomoloc.simulate.recipe import Recipe
from tomoloc.simulate.scene import Simulator
from tomoloc.simulate.settings import Microscope, Species, Specimen

GOAL_SECONDS = 3.0
RECIPE = Recipe(
    name="benchmark",
    specimen=Specimen(shape=(96, 192, 192)),
    microscope=Microscope(tilt_min=-60.0, tilt_max=60.0, tilt_step=3.0),
    species=tuple(
        Species(structure=f"builtin:{seed}", count=25) for seed in (1, 4, 6, 7, 14, 18, 19, 22)
    ),
)
PARTS = {
    "pack": "packing",
    "add_particles": "potential of the scene",
    "expose": "tilt series",
    "reconstruct": "reconstruction",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"machine   {_machine()}")
    simulator = Simulator(RECIPE)
    start = perf_counter()
    simulator.render(simulator.draw(np.random.default_rng(0)))
    print(f"first     {perf_counter() - start:6.2f} s  with compiling or loading compiled code")
    start = perf_counter()
    fresh = Simulator(RECIPE)
    scene = fresh.draw(np.random.default_rng(0))
    print(f"structures{perf_counter() - start:6.2f} s  8 complexes made and rendered, once")
    totals, parts = [], []
    for seed in range(1, repeats + 1):
        with _timed_parts() as seconds:
            start = perf_counter()
            scene = fresh.draw(np.random.default_rng(seed))
            sample = fresh.render(scene)
            totals.append(perf_counter() - start)
        parts.append(seconds)
    for name, words in PARTS.items():
        print(f"          {statistics.median(p[name] for p in parts):6.2f} s  {words}")
    total = statistics.median(totals)
    n_particles, n_tilts = len(sample.particles), len(sample.tomogram.tilt_series)
    print(f"total     {total:6.2f} s  median of {repeats} ({min(totals):.2f} to {max(totals):.2f})")
    size_ok = n_particles == 200 and n_tilts == 41
    _verdict(size_ok, f"{n_particles} particles of 200, {n_tilts} tilts of 41")
    _verdict(total <= GOAL_SECONDS, f"{total:.2f} s of at most {GOAL_SECONDS:g} s for a sample")
    return 0 if size_ok and total <= GOAL_SECONDS else 1


@contextmanager
def _timed_parts() -> Iterator[dict[str, float]]:
    """Measure the stages of the simulator by name while they run."""
    seconds: dict[str, float] = {}
    originals = {name: getattr(stages, name) for name in PARTS}

    def timed(name: str) -> object:
        def call(*arguments: object, **options: object) -> object:
            start = perf_counter()
            result = originals[name](*arguments, **options)
            seconds[name] = perf_counter() - start
            return result

        return call

    for name in PARTS:
        setattr(stages, name, timed(name))
    try:
        yield seconds
    finally:
        for name, function in originals.items():
            setattr(stages, name, function)


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    load = os.getloadavg()[0]
    return (
        f"{model or platform.processor()}, {numba.config.NUMBA_NUM_THREADS} cores,"
        f" load {load:.1f} at the start, Python {platform.python_version()}"
    )


def _verdict(passed: bool, words: str) -> None:  # noqa: FBT001
    print(f"{'PASS' if passed else 'FAIL'}  {words}")


if __name__ == "__main__":
    sys.exit(main())
