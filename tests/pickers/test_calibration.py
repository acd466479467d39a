from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from handmade import make_blob_model
from scipy.ndimage import gaussian_filter

from tomoloc.pickers.calibration import calibrate
from tomoloc.types import Particles, Sample, Tomogram

SHAPE, ORIGIN = (40, 56, 64), np.array([30.0, -70.0, 110.0])
HEIGHTS = {"faint": 150.0, "bright": 300.0}


def make_sample(rng, *, particles=True):
    """Dark blobs of two strengths on a lattice with jitter, in noise."""
    lattice = np.stack(np.meshgrid(*(np.arange(8, n - 7, 12) for n in SHAPE), indexing="ij"), -1)
    index = lattice.reshape(-1, 3) + rng.integers(-1, 2, (lattice.size // 3, 3))
    label = rng.choice(list(HEIGHTS), len(index))
    spikes = np.zeros(SHAPE)
    spikes[tuple(index.T)] = [-HEIGHTS[name] for name in label]
    data = gaussian_filter(spikes, 1.5) + rng.normal(0, 0.3, SHAPE)
    tomogram = Tomogram(data=data.astype(np.float32), voxel_spacing=10, origin=ORIGIN)
    found = Particles(position=tomogram.to_position(index), label=label)
    return Sample(tomogram=tomogram, particles=found if particles else found[:0])


def test_alike_and_central_means_probable():
    rng = np.random.default_rng(0)
    samples = [make_sample(rng) for _ in range(3)]
    before = samples[0].tomogram.data.copy()
    found = calibrate(make_blob_model(height=0.5), samples, device="cpu")
    assert found.unlike < 0
    assert 0 < found.share < 1
    np.testing.assert_array_equal(samples[0].tomogram.data, before)
    assert calibrate(make_blob_model(height=0.5), samples, device="cpu") == found


def test_nothing_to_learn_from():
    sample = make_sample(np.random.default_rng(1), particles=False)
    with pytest.raises(ValueError, match="several particles"):
        calibrate(make_blob_model(), [sample], device="cpu")


def test_averages_are_asked_where_they_are_wanted(monkeypatch):
    rng = np.random.default_rng(0)
    samples = [make_sample(rng) for _ in range(3)]
    asked = []

    def classify(tomogram, candidates, *, spread):
        sample = samples[len(asked)]
        np.testing.assert_array_equal(tomogram.data, -sample.tomogram.data)
        asked.append(spread)
        away = np.linalg.norm(
            candidates.particles.position[:, None] - sample.particles.position, axis=2
        )
        near = np.asarray(sample.particles.label)[away.argmin(axis=1)]
        gain = np.where(near[:, None] == list(HEIGHTS), 150.0, 100.0)
        gain += np.random.default_rng(1).normal(0, 25, gain.shape)
        return SimpleNamespace(gain=gain, size=np.array([20, 20]), usual=np.array([150.0, 150.0]))

    monkeypatch.setattr("tomoloc.pickers.calibration.classify_candidates", classify)
    found = calibrate(make_blob_model(height=0.5), samples, averaged=2, device="cpu")
    plain = calibrate(make_blob_model(height=0.5), samples, device="cpu")
    assert plain.averaged is None
    assert replace(found, averaged=None) == plain
    assert asked == [plain.spread] * 2
    assert np.isfinite(list(found.to_dict()["averaged"].values())).all()
    assert 0 < found.averaged.share < 1
