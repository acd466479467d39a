"""Projection and back-projection on a torch device against the processor's own loops."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.physics.projection import project
from tomoloc.physics.reconstruction import back_project

SHAPE = (13, 42, 51)
ANGLES = np.array([-60.0, -33.0, 0.0, 18.4, 45.0, 80.0])

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    torch = pytest.importorskip("torch")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.mark.parametrize(
    ("border", "angles"), [("zero", [*ANGLES, 90.0, -90.0]), ("periodic", ANGLES)]
)
def test_projections_are_the_same(rng, device, border, angles):
    volume = rng.standard_normal(SHAPE).astype(np.float32)
    expected = project(volume, angles, border=border)
    found = project(volume, angles, border=border, device=device)
    np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("weighting", ["none", "ramp"])
def test_back_projections_are_the_same(rng, device, weighting, monkeypatch):
    images = rng.standard_normal((6, 40, 47)).astype(np.float32)
    options = {
        "shape": SHAPE,
        "weighting": weighting,
        "border": "edge",
        "shifts": rng.uniform(-3, 3, (6, 2)),
    }
    expected = back_project(images, ANGLES, **options)
    monkeypatch.setattr("tomoloc.physics.projection._BATCH_BYTES", 100_000)  # several batches
    found = back_project(images, ANGLES, device=device, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_same_input_gives_the_same_bytes(rng, device):
    volume = rng.standard_normal(SHAPE).astype(np.float32)
    once, again = (project(volume, ANGLES, device=device) for _ in range(2))
    assert once.tobytes() == again.tobytes()
    once, again = (back_project(once, ANGLES, shape=SHAPE, device=device) for _ in range(2))
    assert once.tobytes() == again.tobytes()
