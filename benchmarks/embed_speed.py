"""Time and memory of embedding whole tomograms.

    python benchmarks/embed_speed.py [--quick] [--model NAME] [--device auto|cpu|cuda]

* 608 x 855 x 148 voxels from a file to the embedding, in four views as by default: seconds and peak
  memory
* volumes of 10^7 to 10^9 voxels: the exponent of seconds against voxels
* the window network of TomoTwin on a few windows, extrapolated to the first volume

Each volume has a process of its own, whose peak memory counts. Without --model, it is the shipped
one, general.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mrcfile
import numpy as np
import torch

from tomoloc.features.learned import LearnedFeatures, default_views
from tomoloc.io.tomograms import read_tomogram
from tomoloc.nn.device import resolve_device
from tomoloc.nn.stored import StoredModel, find_model, load_model
from tomoloc.nn.window import WindowEncoder
from tomoloc.types import Tomogram

SHAPE = (148, 855, 608)
SECONDS = {"cpu": 60.0, "cuda": 2.0}
GIB, EXPONENT = 4.0, 1.05
SIZES = ((96, 320, 326), (128, 484, 484), (148, 855, 608), (300, 1000, 1000), (500, 1400, 1430))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the first volume")
    parser.add_argument("--model", default="general", help="name or folder")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        z, y, x = arguments.one
        print(json.dumps(measure((z, y, x), model=arguments.model, device=arguments.device)))
        return 0
    device = resolve_device(arguments.device)
    print(f"machine   {describe_machine(device)}")
    first = run(SHAPE, arguments)
    passed = [
        verdict(
            first["seconds"] <= SECONDS[device],
            f"{first['seconds']:.1f} s of at most {SECONDS[device]:g} s",
        ),
        verdict(first["gib"] <= GIB, f"{first['gib']:.2f} GiB of at most {GIB:g}"),
    ]
    compare_windows(first["seconds"], device)
    if not arguments.quick:
        results = [run(shape, arguments) for shape in SIZES]
        size = [np.prod(shape, dtype=float) for shape in SIZES]
        slope = np.polyfit(np.log(size), np.log([result["seconds"] for result in results]), 1)[0]
        words = f"time goes with voxels^{slope:.2f}, of at most {EXPONENT}"
        passed.append(verdict(slope <= EXPONENT, words))
        peak = max(result["gib"] for result in results)
        passed.append(verdict(peak <= GIB, f"{peak:.2f} GiB of at most {GIB:g}, any size"))
    return 0 if all(passed) else 1


def run(shape: tuple[int, int, int], arguments: argparse.Namespace) -> dict[str, float]:
    """Measure one size in a fresh process and print what it took."""
    command = [sys.executable, __file__, "--device", arguments.device, "--model", arguments.model]
    command += ["--one", *map(str, shape)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    n = np.prod(shape, dtype=float)
    print(
        f"{' x '.join(map(str, shape[::-1])):>18} voxels: {result['seconds']:7.1f} s,"
        f" {n / result['seconds'] / 1e6:5.2f} Mvoxel/s ({result['busy']:.1f} core-seconds);"
        f" peak {result['gib']:.2f} GiB",
        flush=True,
    )
    return result


def measure(shape: tuple[int, int, int], *, model: str, device: str) -> dict[str, float]:
    """Embed one tomogram in this process, from the file on."""
    stored = load_model(find_model(model))
    features = LearnedFeatures(model=stored, device=device, views=default_views(stored))
    small = np.random.default_rng(1).normal(size=(32, 64, 64)).astype(np.float32)
    features.embed(Tomogram(data=small, voxel_spacing=stored.voxel_spacing))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.mrc"
        write_noise(path, shape, stored.voxel_spacing)
        start, busy = time.perf_counter(), time.process_time()
        features.embed(read_tomogram(path))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {
            "seconds": time.perf_counter() - start,
            "busy": time.process_time() - busy,
            "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }


def compare_windows(seconds: float, device: str) -> None:
    """Time the window network of TomoTwin and say what it would take for the first volume."""
    slow = LearnedFeatures(
        model=StoredModel(network=WindowEncoder(), voxel_spacing=10.0), device=device
    )
    side = 8
    data = np.random.default_rng(3).normal(size=(side, side, side)).astype(np.float32)
    tomogram = Tomogram(data=data, voxel_spacing=10.0)
    slow.embed(tomogram)
    start = time.perf_counter()
    slow.embed(tomogram)
    each = (time.perf_counter() - start) / (side // 2) ** 3
    points = np.prod([n // 2 for n in SHAPE], dtype=float)
    print(
        f"window network: {1e3 * each:.1f} ms a window, {each * points / 3600:.0f} h for the same"
        f" {points / 1e6:.1f} million points: {each * points / seconds:.0f} times as long"
    )


def write_noise(path: Path, shape: tuple[int, int, int], spacing: float) -> None:
    """Fill an MRC file of bytes with noise, section by section."""
    rng = np.random.default_rng(2)
    with mrcfile.new_mmap(path, shape, mrc_mode=0) as mrc:
        noise = rng.normal(0, 20, (7, *shape[1:])).astype(np.int8)
        for z in range(shape[0]):
            mrc.data[z] = np.roll(noise[z % 7], 37 * z)
        mrc.voxel_size = spacing


def describe_machine(device: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    accelerator = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return (
        f"{model or platform.processor()}, {os.cpu_count()} cores{accelerator}, load"
        f" {os.getloadavg()[0]:.1f} at the start, torch {torch.__version__}"
    )


def verdict(passed: bool, words: str) -> bool:  # noqa: FBT001
    print(f"{'PASS' if passed else 'FAIL'}  {words}")
    return passed


if __name__ == "__main__":
    sys.exit(main())
