"""Time and memory of simulated samples, from drawing to files on disk.

    python benchmarks/simulate.py [--repeats N] [--quick]

* crowded: 400 x 400 x 50 voxels at 12 Å, 61 tilts, 18 kinds of complexes that take 15 % of the ice
* tomotwin: the shipped recipe, 512 x 512 x 200 voxels, 61 tilts, 11 classes of 140 particles
* cost: samples of growing size; the exponent of seconds against voxels x tilts

Each runs in a process of its own, whose peak memory counts. The first sample of a process pays for
loading compiled code, and for making and rendering structures; it is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from tomoloc.io.samples import write_sample
from tomoloc.simulate import scene as stages
from tomoloc.simulate.recipe import Recipe, read_recipe, recipe_to_mapping
from tomoloc.simulate.scene import Simulator, numbered_recipes
from tomoloc.simulate.settings import Microscope, Species, Specimen

CROWDED_SECONDS = 5.0
TOMOTWIN_SECONDS, TOMOTWIN_GIB = 60.0, 4.0
EXPONENT = 1.05
STAGES = {
    "pack": "packing",
    "add_particles": "potential of the particles",
    "expose": "tilt series",
    "reconstruct": "reconstruction",
    "write_sample": "writing",
}
MICROSCOPE = Microscope(tilt_step=2.0)
# Side in voxels along x and y, and number of tilts, of the samples whose cost is compared.
SIZES = ((128, 21), (192, 31), (272, 41), (384, 61), (544, 61))


def crowded() -> Recipe:
    shipped = read_recipe("crowded")
    return replace(
        shipped,
        specimen=Specimen(shape=(50, 400, 400), voxel_spacing=12.0, border="cut", fraction=0.15),
        microscope=MICROSCOPE,
    )


def scaled(side: int, tilts: int) -> Recipe:
    """Twice the voxels hold twice the particles."""
    count = round(200 * (side / 272) ** 2)
    species = [Species(structure=f"builtin:{seed}", count=count // 4) for seed in (1, 6, 7, 18)]
    return Recipe(
        name="scaled",
        specimen=Specimen(shape=(64, side, side), border="cut"),
        microscope=Microscope(tilt_step=120 / (tilts - 1)),
        species=tuple(species),
    )


RECIPES = {
    "crowded": crowded,
    "tomotwin": lambda: read_recipe("tomotwin"),
    **{f"scaled-{n}-{t}": (lambda n=n, t=t: scaled(n, t)) for n, t in SIZES},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only the crowded sample")
    parser.add_argument("--one", choices=RECIPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(RECIPES[arguments.one](), repeats=arguments.repeats)))
        return 0
    print(f"machine   {describe_machine()}")
    result = run("crowded", repeats=arguments.repeats)
    words = f"crowded: {result['median']:.2f} s of at most {CROWDED_SECONDS:g} s"
    passed = [verdict(result["median"] <= CROWDED_SECONDS, words)]
    if not arguments.quick:
        result = run("tomotwin", repeats=min(arguments.repeats, 2))
        whole = max(result["first"], result["median"])
        words = f"tomotwin: {whole:.1f} s of at most {TOMOTWIN_SECONDS:g} s"
        passed.append(verdict(whole <= TOMOTWIN_SECONDS, words))
        words = f"tomotwin: {result['gib']:.2f} GiB of at most {TOMOTWIN_GIB:g}"
        passed.append(verdict(result["gib"] <= TOMOTWIN_GIB, words))
        passed.append(compare_sizes(arguments.repeats))
    return 0 if all(passed) else 1


def compare_sizes(repeats: int) -> bool:
    """Fit the exponent of the time against voxels x tilts."""
    work, seconds = [], []
    for side, tilts in SIZES:
        result = run(f"scaled-{side}-{tilts}", repeats=repeats)
        work.append(64 * side**2 * tilts)
        seconds.append(result["median"])
    exponent = np.polyfit(np.log(work), np.log(seconds), 1)[0]
    words = f"time goes with (voxels x tilts)^{exponent:.2f}, of at most {EXPONENT}"
    return verdict(exponent <= EXPONENT, words)


def run(name: str, *, repeats: int) -> dict[str, float]:
    """Measure one recipe in a fresh process and print what it took."""
    command = [sys.executable, __file__, "--one", name, "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{name}: {result['particles']} particles, {100 * result['fraction']:.1f} % of the ice,"
          f" {result['tilts']} tilts, peak {result['gib']:.2f} GiB")  # fmt: skip
    print(f"  first {result['first']:7.2f} s")
    print(f"  median{result['median']:7.2f} s  of {repeats} further samples")
    for stage, words in STAGES.items():
        print(f"        {result[stage]:7.2f} s  {words}")
    return result


def measure(recipe: Recipe, *, repeats: int) -> dict[str, float]:
    """Make samples in this process."""
    simulator = Simulator(recipe)
    totals, parts = [], []
    with tempfile.TemporaryDirectory() as folder:
        for plan in numbered_recipes(recipe, number=repeats + 1, seed=1):
            with timed_stages() as seconds:
                start = perf_counter()
                sample = simulator.render(simulator.draw_resolved(plan))
                written = perf_counter()
                write_sample(sample, Path(folder) / "sample", recipe=recipe_to_mapping(plan))
                seconds["write_sample"] = perf_counter() - written
                totals.append(perf_counter() - start)
            parts.append(seconds)
    return {
        "first": totals[0],
        "median": statistics.median(totals[1:]),
        **{name: statistics.median(p.get(name, 0.0) for p in parts[1:]) for name in STAGES},
        "particles": len(sample.particles),
        "fraction": float(sample.summary["volume_fraction"]),
        "tilts": len(sample.tomogram.tilt_series),
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


@contextmanager
def timed_stages() -> Iterator[dict[str, float]]:
    """Measure the stages of the simulator by name while they run."""
    seconds: dict[str, float] = {}
    originals = {name: getattr(stages, name) for name in STAGES if hasattr(stages, name)}

    def timed(name: str) -> object:
        def call(*arguments: object, **options: object) -> object:
            start = perf_counter()
            result = originals[name](*arguments, **options)
            seconds[name] = seconds.get(name, 0.0) + perf_counter() - start
            return result

        return call

    for name in originals:
        setattr(stages, name, timed(name))
    try:
        yield seconds
    finally:
        for name, function in originals.items():
            setattr(stages, name, function)


def describe_machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return (
        f"{model or platform.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        f" at the start, Python {platform.python_version()}"
    )


def verdict(passed: bool, words: str) -> bool:  # noqa: FBT001
    print(f"{'PASS' if passed else 'FAIL'}  {words}")
    return passed


if __name__ == "__main__":
    sys.exit(main())
