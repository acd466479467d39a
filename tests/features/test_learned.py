"""Embedding a tomogram: exact grid, tiles, spacings, memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tomoloc.features.candidates import look_up, look_up_centers
from tomoloc.features.dense import DenseRun
from tomoloc.features.learned import LearnedFeatures, default_views
from tomoloc.nn.encoder import DenseEncoder, HeatNetwork
from tomoloc.nn.int8 import computes_in_int8, measure_ranges
from tomoloc.nn.stored import StoredModel
from tomoloc.nn.window import WindowEncoder
from tomoloc.physics.contrast import standardise
from tomoloc.physics.filters import rescale
from tomoloc.tiling import read_mirrored
from tomoloc.types import Tomogram

SPACING = 10.0
ORIGIN = np.array([130.0, -45.0, 20.0])


def make_model(**settings):
    torch.manual_seed(2)
    settings = {
        "widths": (4, 6, 8),
        "down": (1, 1, 1),
        "up": (1, 1),
        "channels": 5,
        "head": 6,
        **settings,
    }
    network = DenseEncoder(**settings)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 1, 16, 32, 48))
    return StoredModel(network=network.eval(), voxel_spacing=SPACING)


def make_tomogram(shape=(42, 51, 70), *, seed=1, spacing=SPACING):
    data = np.random.default_rng(seed).normal(300, 7, shape).astype(np.float32)
    return Tomogram(data=data, voxel_spacing=spacing, origin=ORIGIN, name="TS_7")


def encode_whole(model, tomogram):
    """What the network gives when it sees the whole, mirrored at its sides, at once."""
    period = model.network.period
    margin = -(-8 // period) * period
    stop = tuple(-(-(n + margin) // period) * period for n in tomogram.shape)
    x = torch.from_numpy(read_mirrored(standardise(tomogram.data), (-margin,) * 3, stop))
    with torch.inference_mode():
        embedding, logit = model.network(x[None, None])
    z, y, x = (slice(margin // 2, margin // 2 + n // 2) for n in tomogram.shape)
    return torch.cat([embedding, logit.sigmoid()], 1)[0, :, z, y, x].numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"down": (0, 2, 1), "up": (2, 0)},
        {"widths": (5,), "down": (2,), "up": ()},
        {"widths": (4, 5, 6, 7), "down": (0, 1, 1, 1), "up": (1, 0, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("tile_bytes", [1 << 30, 400_000])
def test_tiles_are_the_whole_to_rounding(settings, tile_bytes):
    model, tomogram = make_model(**settings), make_tomogram()
    features = LearnedFeatures(
        model=model, device="cpu", precision="float32", tile_bytes=tile_bytes
    )
    volume = features.embed(tomogram)
    assert volume.data.shape[0] == features.channels + 1
    np.testing.assert_allclose(volume.data, encode_whole(model, tomogram), atol=1e-3)


def test_many_tiles_were_made(monkeypatch):
    made = []
    blocks = DenseRun.blocks

    def counted(run):
        for block in blocks(run):
            assert not torch.is_inference_mode_enabled()  # it is the caller's turn
            made.append(block)
            yield block

    monkeypatch.setattr(DenseRun, "blocks", counted)
    LearnedFeatures(model=make_model(), device="cpu", tile_bytes=150_000).embed(make_tomogram())
    assert len(made) > 8


def test_the_grid_is_half_way_between_voxels():
    tomogram = make_tomogram()
    volume = LearnedFeatures(model=make_model(), device="cpu").embed(tomogram)
    assert volume.shape == (21, 25, 35)
    assert (volume.voxel_spacing, volume.name) == (20.0, "TS_7")
    np.testing.assert_allclose(volume.origin, ORIGIN + 5)


def test_vectors_have_length_one_and_probabilities_are_such():
    data = LearnedFeatures(model=make_model(), device="cpu").embed(make_tomogram()).data
    assert data.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(data[:5].astype(float), axis=0), 1, atol=2e-3)
    assert data[5].min() >= 0
    assert data[5].max() <= 1


def test_scale_and_offset_do_not_matter():
    features = LearnedFeatures(model=make_model(), device="cpu", precision="float32")
    tomogram = make_tomogram()
    other = tomogram.with_data((3000 - 20 * tomogram.data).astype(np.float32) * -1)
    np.testing.assert_allclose(features.embed(other).data, features.embed(tomogram).data, atol=2e-3)


def test_half_precision_is_close():
    tomogram = make_tomogram()
    rough, exact = (
        LearnedFeatures(model=make_model(), device="cpu", precision=precision).embed(tomogram)
        for precision in ("bfloat16", "float32")
    )
    cosine = (rough.data[:5].astype(float) * exact.data[:5]).sum(axis=0)
    assert np.quantile(cosine, 0.01) > 0.98


@pytest.mark.skipif(not computes_in_int8(), reason="the processor has no VNNI")
def test_a_model_that_tells_its_ranges_computes_in_int8():
    model, tomogram = make_model(), make_tomogram()
    ranges = measure_ranges(model.network, [standardise(tomogram.data)])
    told = replace(model, config={"ranges": ranges})
    exact, auto, asked = (
        LearnedFeatures(model=m, device="cpu", precision=p).embed(tomogram).data
        for m, p in ((told, "float32"), (told, "auto"), (told, "int8"))
    )
    np.testing.assert_array_equal(auto, asked)
    assert not np.array_equal(auto, exact)
    cosine = (auto[:5].astype(float) * exact[:5]).sum(axis=0)
    assert np.quantile(cosine, 0.01) > 0.95
    with pytest.raises(ValueError, match="leave precision at auto"):
        LearnedFeatures(model=model, device="cpu", precision="int8").embed(tomogram)


@pytest.mark.parametrize("spacing", [7.3, 13.48])
def test_other_spacings_are_rescaled(spacing):
    features = LearnedFeatures(model=make_model(), device="cpu")
    tomogram = make_tomogram(spacing=spacing)
    volume = features.embed(tomogram)
    expected = features.embed(rescale(tomogram, SPACING))
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_allclose(volume.origin, expected.origin)
    # the grid fills the tomogram: its sides are where the tomogram's sides are, to a point
    ends = volume.center - volume.extent / 2, tomogram.center - tomogram.extent / 2
    np.testing.assert_allclose(*ends, atol=SPACING)


def test_spacings_that_hardly_differ_are_left_alone():
    features = LearnedFeatures(model=make_model(), device="cpu")
    volume = features.embed(make_tomogram(spacing=10.1))
    np.testing.assert_array_equal(volume.data, features.embed(make_tomogram()).data)
    assert volume.voxel_spacing == 20.2


def test_spacings_out_of_range(caplog):
    features = LearnedFeatures(model=make_model(), device="cpu")
    with pytest.raises(ValueError, match="at most 20 Å: check"):
        features.embed(make_tomogram(spacing=40))
    with pytest.raises(ValueError, match="70 x 50 x 40 Å is too small"):
        features.embed(make_tomogram(spacing=1))
    assert "are reduced to the model's 10 Å" in caplog.text


def test_nothing_to_see():
    blank = make_tomogram().with_data(np.ones((42, 51, 70), np.float32))
    with pytest.raises(ValueError, match="only partly written"):
        LearnedFeatures(model=make_model(), device="cpu").embed(blank)


def test_other_networks_are_refused():
    model = StoredModel(network=torch.nn.ReLU(), voxel_spacing=10)
    with pytest.raises(ValueError, match="has a ReLU and gives no vectors"):
        LearnedFeatures(model=model, device="cpu").embed(make_tomogram())


PEAK = """
import re, sys, numpy as np, torch
from tomoloc.features.learned import LearnedFeatures
from tomoloc.nn.encoder import DenseEncoder, HeatNetwork
from tomoloc.nn.int8 import computes_in_int8, measure_ranges
from tomoloc.nn.stored import StoredModel
from tomoloc.nn.window import WindowEncoder
from tomoloc.types import Tomogram
import tomoloc.arrays
tomoloc.arrays.LARGE_BYTES = 1 << 20
def peak():  # of this process alone: the peak that getrusage tells begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
shape, path = (96, 256, 256), sys.argv[1]
data = np.memmap(path, np.float32, "w+", shape=shape)
data[:] = np.random.default_rng(0).normal(size=shape)
data.flush()
network = DenseEncoder(widths=(32, 32), down=(1, 1), up=(1,)).eval()
model = StoredModel(network=network, voxel_spacing=10)
features = LearnedFeatures(model=model, device="cpu", tile_bytes=int(sys.argv[2]))
small = Tomogram(data=np.array(data[:16, :32, :32]), voxel_spacing=10)
features.embed(small)
before = peak()
tomogram = Tomogram(data=np.memmap(path, np.float32, "r", shape=shape), voxel_spacing=10)
volume = features.embed(tomogram)
print(peak() - before, volume.data.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_is_bounded_by_the_tiles(tmp_path):
    """Tomogram, levels and embedding are in files: only tiles count as memory."""

    def peak(tile_bytes):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, tmp_path / "x", str(tile_bytes)],
            text=True,
            capture_output=True,
            check=True,
        )
        return [float(word) for word in done.stdout.split()]

    (small, n_bytes), (large, _) = peak(8 << 20), peak(1 << 30)
    assert n_bytes == 33 * 2 * 96 * 256 * 256 / 8
    assert small < 80_000  # KiB
    assert large > 2 * small


def test_places_alone_are_what_the_whole_has_there(monkeypatch):
    """In a tomogram that is larger than what the network sees of it."""
    features = LearnedFeatures(
        model=make_model(widths=(4, 6), down=(1, 1), up=(1,)), device="cpu", precision="float32"
    )
    tomogram = make_tomogram((61, 113, 90))
    index = np.array([[30.2, 51.7, 40.1], [0, 112, 89.4], [60.3, 1.2, -0.4], [59.8, 75, 41]])
    position = tomogram.to_position(index)
    whole = features.embed(tomogram)
    expected, centers = look_up(whole, position), look_up_centers(whole, position)
    monkeypatch.setattr(LearnedFeatures, "embed", lambda *_: pytest.fail("the whole"))
    for row, place in enumerate(position):
        found, center = features.embed_at(tomogram, place)
        np.testing.assert_allclose(found, expected[[row]], atol=2e-3)
        np.testing.assert_allclose(center, centers[[row]], atol=2e-3)
    assert features.embed_at(tomogram, [])[0].shape == (0, features.channels)


def test_many_places_are_looked_up_in_the_whole():
    features = LearnedFeatures(model=make_model(), device="cpu", precision="float32")
    tomogram = make_tomogram()
    position = tomogram.to_position(np.random.default_rng(3).uniform(0, tomogram.shape, (9, 3)))
    expected = look_up(features.embed(tomogram), position)
    np.testing.assert_array_equal(features.embed_at(tomogram, position)[0], expected)


TURNS = [(0, 1), (0, 2), (1, 2)]


@pytest.fixture(params=["float32", "bfloat16", "int8"])
def averaging(request):
    """Features in each precision that average over all half turns."""
    model = make_model()
    if request.param == "int8":
        if not computes_in_int8():
            pytest.skip("the processor has no VNNI")
        ranges = measure_ranges(model.network, [standardise(make_tomogram().data)])
        model = replace(model, config={"ranges": ranges})
    return LearnedFeatures(
        model=model, device="cpu", precision=request.param, tile_bytes=400_000, views=4
    )


@pytest.mark.parametrize("axes", TURNS)
def test_a_turned_tomogram_has_the_turned_embedding(averaging, axes):
    """In four views, to rounding; sides are even, but no multiples of the network's period."""
    tomogram = make_tomogram((42, 52, 70))
    turned = tomogram.with_data(np.flip(tomogram.data, axes))
    there = tuple(axis + 1 for axis in axes)

    def difference(features):
        found, expected = (features.embed(t).data.astype(float) for t in (turned, tomogram))
        return np.abs(found - np.flip(expected, there)).max()

    assert difference(averaging) < 2e-3
    assert difference(replace(averaging, views=1)) > 0.1


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("shape", [(42, 52, 70), (41, 51, 70), (42, 53, 71), (9, 33, 47)])
def test_views_leave_the_grid_alone(shape, views):
    """Each turn's part of the mean lies where it belongs, also where a side is odd."""
    model, tomogram = make_model(), make_tomogram(shape)
    features = LearnedFeatures(model=model, device="cpu", precision="float32", tile_bytes=400_000)
    once, several = (replace(features, views=n).embed(tomogram) for n in (1, views))
    assert several.data.shape == once.data.shape == (6, *(n // 2 for n in shape))
    assert several.data.dtype == np.float16
    assert (several.voxel_spacing, several.name) == (once.voxel_spacing, once.name)
    np.testing.assert_array_equal(several.origin, once.origin)
    expected = np.mean(
        [encode_turned(model, tomogram, axes) for axes in [(), *TURNS][:views]], axis=0
    )
    expected[:5] /= np.linalg.norm(expected[:5], axis=0)
    assert np.abs(several.data - expected).max() < 2e-3
    assert np.abs(once.data - expected).max() > 0.1


def encode_turned(model, tomogram, axes):
    """What the network gives at the same points when it sees the tomogram turned, at once."""
    period = model.network.period
    margin = -(-8 // period) * period
    grid = [n // 2 * 2 for n in tomogram.shape]
    low, high = [], []
    for axis, n in enumerate(grid):
        far = -(-(n + 1 + margin) // period) * period
        low.append(n - far if axis in axes else -margin)
        high.append(n + margin if axis in axes else far)
    x = read_mirrored(standardise(tomogram.data), tuple(low), tuple(high))
    x = torch.from_numpy(np.flip(x, axes).copy())
    with torch.inference_mode():
        embedding, logit = model.network(x[None, None])
    z, y, x = (slice(margin // 2, margin // 2 + n // 2) for n in grid)
    found = torch.cat([embedding, logit.sigmoid()], 1)[0, :, z, y, x].numpy()
    return np.flip(found, tuple(axis + 1 for axis in axes))


def test_means_over_views_are_vectors_and_probabilities(averaging):
    data = averaging.embed(make_tomogram()).data
    np.testing.assert_allclose(np.linalg.norm(data[:5].astype(float), axis=0), 1, atol=2e-3)
    assert data[5].min() >= 0
    assert data[5].max() <= 1


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("shape", [(62, 114, 90), (61, 113, 91)])
def test_places_alone_in_several_views(shape, views, monkeypatch):
    model = make_model(widths=(4, 6), down=(1, 1), up=(1,))
    features = LearnedFeatures(model=model, device="cpu", precision="float32", views=views)
    tomogram = make_tomogram(shape)
    index = np.array([[30.2, 51.7, 40.1], [0, 112, 89.4], [60.3, 1.2, -0.4], [59.8, 75, 41]])
    position = tomogram.to_position(index)
    expected = look_up(features.embed(tomogram), position)
    monkeypatch.setattr(LearnedFeatures, "embed", lambda *_: pytest.fail("the whole"))
    for place, vector in zip(position, expected, strict=True):
        np.testing.assert_allclose(features.embed_at(tomogram, place)[0], vector[None], atol=3e-3)


def test_heat_is_averaged_and_windows_are_refused():
    model, tomogram = make_model(), make_tomogram((42, 51, 70))
    heat = replace(model, network=HeatNetwork.from_encoder(model.network, kinds=2).eval())
    found = LearnedFeatures(model=heat, device="cpu", precision="float32", views=4)
    turned = [encode_turned(model, tomogram, axes)[5] for axes in [(), *TURNS]]
    expected = np.broadcast_to(np.mean(turned, axis=0), (2, 21, 25, 35))
    np.testing.assert_allclose(found.embed(tomogram).data, expected, atol=2e-3)
    windows = WindowEncoder(widths=(2, 2, 2, 2, 2), hidden=4, groups=1)
    with pytest.raises(ValueError, match="for dense networks; the model slow looks"):
        LearnedFeatures(model=replace(model, network=windows, name="slow"), views=2)
    with pytest.raises(ValueError, match="views must be 1, 2 or 4; got 3"):
        LearnedFeatures(model=model, views=3)
    assert (default_views(model), default_views(replace(model, network=windows))) == (4, 1)
