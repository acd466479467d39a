"""Time and memory of picking with trained networks in whole tomograms.

    python benchmarks/segment_speed.py [--float]

630 x 630 x 184 voxels from a file to the scores of `pick segmentation` and of `pick centroid`, with
the default networks, each in a process of its own, whose peak memory counts. Weights do not matter
for the time and are random; --float leaves out the ranges of activations, so that networks compute
in the machine's usual precision.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from embed_speed import describe_machine, verdict, write_noise
from tomoloc.features.learned import RANGES
from tomoloc.io.tomograms import read_tomogram
from tomoloc.nn.encoder import HeatNetwork
from tomoloc.nn.int8 import measure_ranges
from tomoloc.nn.stored import StoredModel
from tomoloc.nn.unet import SegmentationNetwork
from tomoloc.pickers.centroid import CentroidPicker, Kinds
from tomoloc.pickers.segmentation import Kind, SegmentationPicker
from tomoloc.types import Tomogram

SHAPE = (184, 630, 630)
SECONDS, GIB = 90.0, 4.0
METHODS = ("segmentation", "centroid")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--float", action="store_true", help="not in int8")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(make_picker(arguments.one, is_float=arguments.float))))
        return 0
    print(f"machine   {describe_machine('cpu')}")
    passed = []
    for method in METHODS:
        command = [sys.executable, __file__, "--one", method, *["--float"][: arguments.float]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        words = f"{method}: {result['seconds']:.1f} s of at most {SECONDS:g} s"
        words += f" ({result['busy']:.1f} core-seconds)"
        passed.append(verdict(result["seconds"] <= SECONDS, words))
        limit = GIB + result["output"]
        words = f"{method}: {result['gib']:.2f} GiB of at most {limit:.2f}"
        passed.append(verdict(result["gib"] <= limit, words))
    return 0 if all(passed) else 1


def make_picker(method: str, *, is_float: bool) -> SegmentationPicker | CentroidPicker:
    """Make a picker whose network nobody trained."""
    noise = np.random.default_rng(0).normal(size=(32, 64, 64)).astype(np.float32)
    network = SegmentationNetwork() if method == "segmentation" else HeatNetwork(kinds=1)
    config = {
        "classes": [Kind("particle", "particle", 200.0).to_dict()],
        "particles": Kinds(labels=("particle",), diameters=(200.0,), thresholds=(0.5,)).to_dict(),
    }
    config |= {} if is_float else {RANGES: measure_ranges(network.eval(), [noise])}
    model = StoredModel(network=network.eval(), voxel_spacing=10.0, config=config)
    if method == "segmentation":
        return SegmentationPicker(model=model, device="cpu")
    return CentroidPicker(model=model, device="cpu")


def measure(picker: SegmentationPicker | CentroidPicker) -> dict[str, float]:
    """Score one tomogram in this process, from the file on."""
    small = np.random.default_rng(1).normal(size=(32, 64, 64)).astype(np.float32)
    picker.score(Tomogram(data=small, voxel_spacing=10.0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.mrc"
        write_noise(path, SHAPE, 10.0)
        start, busy = time.perf_counter(), time.process_time()
        scores = picker.score(read_tomogram(path))
        return {
            "seconds": time.perf_counter() - start,
            "busy": time.process_time() - busy,
            "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "output": scores.data.nbytes / 2**30,
        }


if __name__ == "__main__":
    sys.exit(main())
