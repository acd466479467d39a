"""Samples that cost nothing: balls and pairs of balls in noise, two labels."""

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
