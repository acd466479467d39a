"""Sliding windows: each point is what the network makes of the window around it."""

from __future__ import annotations

import numpy as np
import torch

from tomoloc.features import windows
from tomoloc.features.candidates import look_up
from tomoloc.features.learned import LearnedFeatures
from tomoloc.nn.stored import StoredModel
from tomoloc.nn.window import WindowEncoder
from tomoloc.types import Tomogram


def test_windows_stand_around_every_second_voxel(rng, monkeypatch):
    monkeypatch.setattr(windows, "_TILE_VOXELS", 41**3)
    torch.manual_seed(1)
    network = WindowEncoder(widths=(4, 4, 4, 4, 8), groups=4, hidden=7, channels=3).eval()
    model = StoredModel(network=network, voxel_spacing=10)
    data = rng.normal(50, 9, (8, 9, 11)).astype(np.float32)
    tomogram = Tomogram(data=data, voxel_spacing=9.9, origin=np.array([5.0, -7, 0]), name="a")
    features = LearnedFeatures(model=model, device="cpu", precision="float32")
    volume = features.embed(tomogram)
    assert volume.data.shape == (3, 4, 5, 6)
    assert not features.finds_centers
    np.testing.assert_allclose(volume.origin, tomogram.origin)
    assert volume.voxel_spacing == 19.8
    whole = np.pad(data, 18, mode="reflect")
    for z, y, x in ((0, 0, 0), (3, 4, 5), (2, 1, 3)):
        window = whole[2 * z :, 2 * y :, 2 * x :][:37, :37, :37]
        window = torch.from_numpy((window - window.mean()) / window.std())
        with torch.inference_mode():
            expected = network(window[None, None])[0]
        np.testing.assert_allclose(volume.data[:, z, y, x], expected, atol=2e-3)
    position = tomogram.to_position([[0, 0, 0], [3.3, 6.2, 5.5], [7.4, 8.2, 10.3], [7, 1, 4]])
    expected = look_up(volume, position, centers=False)
    np.testing.assert_allclose(features.embed_at(tomogram, position)[0], expected, atol=2e-3)


def test_a_blank_place_does_no_harm():
    network = WindowEncoder(widths=(4, 4, 4, 4, 8), groups=4, hidden=7, channels=3).eval()
    data = np.zeros((8, 8, 60), np.float32)
    data[..., 50:] = np.arange(10)
    tomogram = Tomogram(data=data, voxel_spacing=10)
    features = LearnedFeatures(
        model=StoredModel(network=network, voxel_spacing=10), device="cpu", precision="float32"
    )
    assert np.isfinite(features.embed(tomogram).data).all()
