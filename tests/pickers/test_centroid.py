"""Picking from heat maps: kinds, turns, models that are not fit for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import make_blob_model, make_heat_model
from scipy.ndimage import gaussian_filter
from torch import nn

from tomoloc.features.spectra import local_spectrum
from tomoloc.nn import monai
from tomoloc.nn.encoder import DenseEncoder, HeatNetwork
from tomoloc.nn.monai import MonaiHeatNetwork
from tomoloc.nn.stored import StoredModel, load_model, save_model
from tomoloc.nn.window import WindowEncoder
from tomoloc.pickers.centroid import CentroidPicker
from tomoloc.pickers.embedding import EmbeddingPicker, embed_examples
from tomoloc.pickers.pick import pick
from tomoloc.types import Particles, Tomogram


def make_tomogram(rng, shape=(37, 48, 55)):
    """Two dark blobs."""
    z, y, x = np.indices(shape)
    data = 0.3 * rng.normal(size=shape)
    centers = np.array([[12.3, 15.0, 40.6], [25.0, 33.4, 17.2]])
    for a, b, c in centers:
        data -= 0.4 * np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 18)
    tomogram = Tomogram(data=data, voxel_spacing=10.0, origin=(50, -20, 7), name="two")
    return tomogram, tomogram.to_position(centers)


def two_kinds(model):
    network = HeatNetwork.from_encoder(make_blob_model(steepness=4.0).network, kinds=2)
    particles = {"labels": ["a", "b"], "diameters": [90, 300], "thresholds": [0.4, 0.6]}
    return replace(model, network=network.eval(), config={"particles": particles})


def test_heat_of_an_encoder_is_its_map_of_centres():
    torch.manual_seed(3)
    encoder = DenseEncoder(widths=(4, 6), down=(1, 1), up=(1,), channels=3).eval()
    x = torch.randn(1, 1, 16, 24, 8)
    heat = HeatNetwork.from_encoder(encoder, kinds=3).eval()
    expected = torch.sigmoid(encoder(x)[1]).expand(1, 3, -1, -1, -1)
    torch.testing.assert_close(heat(x), expected)
    with torch.no_grad():
        heat.heads.bias[2] += 1
    torch.testing.assert_close(heat.select([2, 0]).eval()(x), heat(x)[:, [2, 0]])


def test_each_kind_has_its_own_distance_threshold_and_label(rng):
    tomogram, truth = make_tomogram(rng)
    picker = CentroidPicker(model=two_kinds(make_heat_model()), device="cpu")
    found = pick(tomogram, picker, contrast="dark")
    assert found.threshold.tolist() == [0.4, 0.6]
    small, large = (found.particles[found.particles.label == label] for label in "ab")
    distance = np.linalg.norm(small.position[:, None] - truth, axis=-1).min(axis=0)
    assert (distance < 12).all()
    # Both blobs are nearer to the border than half of 300 Å, none than half of 90 Å.
    assert small[:2].extra["tomolocEdge"].max() == 0
    assert large.extra["tomolocEdge"].min() == 1
    close = replace(picker, diameter=700.0)
    with pytest.raises(ValueError, match="larger than the tomogram"):
        pick(tomogram, close, contrast="dark")


def test_turns_agree_with_the_grid(rng):
    """A network that does not care for turns gives the same heat with and without them."""
    tomogram, _ = make_tomogram(rng)  # odd sides, too
    bright = tomogram.with_data(-tomogram.data)
    plain = CentroidPicker(model=make_heat_model(steepness=10.0), device="cpu")
    once, four = plain.score(bright), replace(plain, views=4).score(bright)
    assert once.shape == four.shape == (18, 24, 27)
    np.testing.assert_allclose(once.origin, four.origin)
    inner = np.s_[:, 2:-2, 2:-2, 2:-2]
    np.testing.assert_allclose(once.data[inner], four.data[inner], atol=0.03)


@pytest.mark.parametrize("views", [1, 2, 4])
def test_networks_of_monai_find_the_same_places(rng, monkeypatch, views):
    """Here one that says of each voxel how bright it is, over tiles that fade into each other."""
    monkeypatch.setattr(monai, "make_monai", lambda *_, outputs, **__: nn.Conv3d(1, outputs, 1))
    network = MonaiHeatNetwork().eval()
    nn.init.constant_(network.body.weight, 1.0)
    nn.init.constant_(network.body.bias, -6.0)
    tomogram, truth = make_tomogram(rng, shape=(37, 64, 71))
    smooth = tomogram.with_data(gaussian_filter(tomogram.data, 2))
    model = StoredModel(
        network=network,
        voxel_spacing=10.0,
        config={"particles": {"labels": ["blob"], "diameters": [90.0]}},
    )
    picker = CentroidPicker(model=model, device="cpu", views=views)
    found = pick(smooth, picker, contrast="dark", threshold=0.3, max_particles=2).particles
    distance = np.linalg.norm(found.position[:, None] - truth, axis=-1).min(axis=0)
    assert len(found) == 2
    assert (distance < 6).all()


def test_a_stored_model_picks_the_same(rng, tmp_path):
    tomogram, _ = make_tomogram(rng)
    model = make_heat_model()
    save_model(tmp_path / "mine", model)
    first, second = (
        pick(tomogram, CentroidPicker(model=m, device="cpu")).particles
        for m in (model, load_model(tmp_path / "mine"))
    )
    np.testing.assert_array_equal(first.position, second.position)


def test_a_sharpened_tomogram_is_brought_to_the_training_data(rng):
    """The blob network is for what is smooth: sharpened, the blobs fall below the threshold."""
    tomogram, truth = make_tomogram(rng)
    model = make_heat_model(steepness=4.0)
    power = local_spectrum(tomogram.data).tolist()
    model = replace(model, config={**model.config, "spectrum": {"power": power}})
    sharp = tomogram.data - 0.8 * gaussian_filter(tomogram.data, 3.0)
    changed = tomogram.with_data(sharp)
    plain = CentroidPicker(model=model, device="cpu")
    heat = {}
    for name, picker, data in (
        ("before", plain, tomogram),
        ("changed", plain, changed),
        ("matched", replace(plain, match_spectrum=True), changed),
    ):
        scores = picker.score(data.with_data(-data.data))
        place = np.rint(scores.to_index(truth)).astype(int)
        heat[name] = float(scores.data[0][tuple(place.T)].mean())
    assert abs(heat["matched"] - heat["before"]) < 0.3 * abs(heat["changed"] - heat["before"])
    with pytest.raises(ValueError, match="leave out match_spectrum"):
        CentroidPicker(model=make_heat_model(), match_spectrum=True)


def test_an_encoder_finds_particles_of_any_kind(rng):
    tomogram, truth = make_tomogram(rng)
    found = pick(tomogram, CentroidPicker(model=make_blob_model(), device="cpu"))
    assert found.scores.labels == ("particle",)
    assert len(found.particles) == len(truth)
    away = np.linalg.norm(found.particles.position[:, None] - truth, axis=-1).min(axis=0)
    assert away.max() < 15


def test_models_that_are_not_fit_for_it():
    windows = StoredModel(network=WindowEncoder(), voxel_spacing=10.0, name="windows")
    with pytest.raises(ValueError, match="windows gives no heat maps: train"):
        CentroidPicker(model=windows)
    model = make_heat_model()
    with pytest.raises(ValueError, match="does not say what it finds"):
        CentroidPicker(model=replace(model, config={}))
    table = {"labels": ["a", "b"], "diameters": [1, 2]}
    with pytest.raises(ValueError, match="1 heat maps for 2 labels"):
        CentroidPicker(model=replace(model, config={"particles": table}))
    with pytest.raises(ValueError, match="diameter must be positive"):
        CentroidPicker(model=model, diameter=0.0)


def test_heat_maps_are_no_vectors(rng):
    tomogram, truth = make_tomogram(rng)
    examples = Particles(position=truth[:1], label="a")
    with pytest.raises(ValueError, match="gives no vectors to compare"):
        embed_examples(tomogram, examples, model=make_heat_model(), device="cpu")
    blobs: StoredModel = make_blob_model()
    targets = embed_examples(tomogram, examples, model=blobs, device="cpu")
    picker = EmbeddingPicker(
        reference=replace(targets, model=make_heat_model().identity),
        model=make_heat_model(),
        device="cpu",
    )
    with pytest.raises(ValueError, match="pick centroid"):
        pick(tomogram, picker)
