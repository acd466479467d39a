"""Samples that cost nothing: balls and pairs of balls in noise, two labels."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tomoloc.types import Particles, Sample, Tomogram

SHAPE = (32, 40, 48)


def make_sample(number):
    rng = np.random.default_rng([11, number])
    z, y, x = np.indices(SHAPE)
    data = rng.normal(size=SHAPE)
    index = np.column_stack([rng.uniform(8, side - 8, 6) for side in SHAPE])
    labels = ["ball", "pair"] * 3
    for center, label in zip(index, labels, strict=True):
        direction = rng.normal(size=3)
        direction *= 5 / np.linalg.norm(direction)
        for side in (-1, 1) if label == "pair" else (0,):
            a, b, c = center + side * direction
            data -= 4 * np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 18)
    tomogram = Tomogram(data=data, voxel_spacing=10.0, name=f"cheap-{number}")
    return Sample(
        tomogram=tomogram,
        particles=Particles(position=tomogram.to_position(index), label=labels),
    )


def source(start):
    number = start
    while True:
        yield make_sample(number)
        number += 1


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def kill_training(code, folder):
    """Run code that trains in a folder, kill it after some steps, and tell how many were logged."""
    code = code.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], env=os.environ)
    log, deadline = folder / "steps.csv", time.monotonic() + 60
    while not (log.is_file() and len(read_rows(log)) > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(read_rows(log))
