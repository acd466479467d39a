"""Picking by class: instances, sizes, filaments, label volumes, models that are not fit."""

from dataclasses import replace

import numpy as np
import pytest
from handmade import make_blob_model, make_class_model

from tomoloc.features.learned import LearnedFeatures
from tomoloc.features.spectra import local_spectrum
from tomoloc.nn.int8 import computes_in_int8, measure_ranges
from tomoloc.nn.stored import StoredModel
from tomoloc.nn.unet import SegmentationNetwork
from tomoloc.physics.contrast import standardise
from tomoloc.pickers.pick import pick
from tomoloc.pickers.segmentation import FILAMENT_COLUMN, SegmentationPicker
from tomoloc.types import ScoreMap, Tomogram, Volume

SHAPE = (36, 48, 60)
SPACING = 10.0
ORIGIN = np.array([50.0, -20.0, 7.0])
BALLS = np.array([[10, 10, 10], [10, 10, 19], [26, 38, 12.0]])
CLASSES = [
    {"label": "ball", "role": "particle", "diameter": 100.0, "volume": 500_000.0},
    {"label": "actin", "role": "filament", "diameter": 60.0},
    {"label": "membrane", "role": "region", "diameter": 50.0},
]


def make_model(classes=CLASSES):
    network = SegmentationNetwork(kinds=len(classes), channels=(2,)).eval()
    return StoredModel(
        network=network, voxel_spacing=SPACING, name="three", config={"classes": classes}
    )


def make_scores(high=0.9):
    """Two balls that touch, one alone, a speck, a filament and a wall."""
    grid = np.stack(np.indices(SHAPE), axis=-1).astype(float)
    data = np.full((3, *SHAPE), 0.02, dtype=np.float32)
    for center in BALLS:
        data[0][np.linalg.norm(grid - center, axis=-1) <= 5] = high
    data[0, 30, 2, 2:5] = high
    line = np.linspace((24, 20, 30), (8, 42, 54), 80)
    away = np.min([np.linalg.norm(grid - point, axis=-1) for point in line], axis=0)
    data[1][away <= 3] = 0.8
    data[2, :, :, -3:] = 0.7
    return ScoreMap(
        data=data, voxel_spacing=SPACING, origin=ORIGIN, name="scene",
        labels=("ball", "actin", "membrane"),
    ), line  # fmt: skip


def locate(picker, scores, **given):
    settings = {"threshold": 0.5, "min_distance": 50.0, "diameter": picker.particle_diameter}
    return picker.locate(scores, **{**settings, **given})


def picker(**given):
    return SegmentationPicker(**{"model": make_model(), "device": "cpu", **given})


def test_particles_and_filaments_come_in_one_table():
    scores, line = make_scores()
    found = locate(picker(), scores)
    assert found.labels == ["actin", "ball"]
    balls = found[found.label == "ball"]
    truth = scores.to_position(BALLS)
    away = np.linalg.norm(balls.position[:, None] - truth, axis=-1)
    assert len(balls) == 3
    assert away.min(axis=0).max() < 6
    np.testing.assert_allclose(balls.score, 0.9, rtol=1e-5)
    ball = 4 / 3 * np.pi * 5**3 * SPACING**3
    np.testing.assert_allclose(balls.extra["tomolocVolume"], ball, rtol=0.1)
    assert (balls.extra[FILAMENT_COLUMN] == 0).all()
    actin = found[found.label == "actin"]
    assert (actin.extra[FILAMENT_COLUMN] == 1).all()
    np.testing.assert_allclose(np.diff(actin.extra["tomolocArcLength"]), 40, atol=0.01)
    direction = (line[-1] - line[0])[::-1] / np.linalg.norm(line[-1] - line[0])
    tangent = actin.rotation.apply([0.0, 0.0, 1.0])
    assert (np.abs(tangent @ direction) > 0.99).all()
    near = np.linalg.norm(actin.position[:, None] - scores.to_position(line), axis=-1).min(axis=1)
    assert near[1:-1].max() < 12
    few = locate(picker(filament_step=100.0), scores, max_particles=1)
    assert (few.label == "ball").sum() == 1
    assert 2 <= (few.label == "actin").sum() < len(actin) / 2


def test_methods_and_limits_of_size():
    scores, _ = make_scores()

    def count(**given):
        found = locate(picker(**given), scores)
        return int((found.label == "ball").sum())

    assert count() == 3
    assert count(instances="components") == 2
    assert count(instances="mean-shift") == 3
    # the two that touch have the volume of a ball of 126 Å
    assert count(instances="components", diameter_range=(110.0, 140.0)) == 1
    assert count(diameter_range=(0.0, 40.0)) == 1  # the speck
    # 0.52 million cubic angstrom are 430 kDa of protein
    assert count(mass_range_kda=(300.0, 600.0)) == 3
    assert count(mass_range_kda=(500.0, 600.0)) == 0
    # half the diameter, an eighth of the volume: the speck is 3 voxels, too small even so
    assert count(diameter=50.0) == 3


def test_a_model_without_filaments_gives_no_angles():
    scores, _ = make_scores()
    plain = replace(scores, data=scores.data[[0, 2]], labels=("ball", "membrane"))
    found = locate(picker(model=make_model([CLASSES[0], CLASSES[2]])), plain)
    assert found.rotation is None
    assert FILAMENT_COLUMN not in found.extra
    nothing = replace(plain, data=np.zeros_like(plain.data))
    assert len(locate(picker(model=make_model([CLASSES[0], CLASSES[2]])), nothing)) == 0
    empty = replace(scores, data=np.zeros_like(scores.data))
    assert len(locate(picker(), empty)) == 0


def test_low_thresholds_leave_each_voxel_to_its_best_class():
    scores, _ = make_scores()
    scores.data[2][scores.data[0] > 0.5] = 0.3
    segments = picker().segment(scores, threshold=[0.1, 0.1, 0.1])
    inside = np.asarray(scores.data[0]) > 0.5
    inside[30] = False
    assert (segments.data[inside] == 1).all()


def test_the_label_volume_has_no_dust_and_is_counted():
    scores, _ = make_scores()
    own = picker(dust=10.0)
    segments = own.segment(scores, threshold=0.5)
    assert segments.data.dtype == np.uint8
    assert set(np.unique(segments.data)) == {0, 1, 2, 3}
    assert (segments.data[30, 2, 2:5] == 0).all()
    assert (segments.data[:, :, -3:] == 3).sum() == 36 * 48 * 3
    np.testing.assert_array_equal(segments.origin, ORIGIN)
    summary = own.summarise(locate(own, scores), segments)
    assert summary["count"] == {"ball": 3, "actin": 1}
    assert summary["volume_nm3"]["membrane"] == 36 * 48 * 3
    upper = np.zeros(SHAPE)
    upper[:20] = 1
    mask = Volume(data=upper, voxel_spacing=SPACING, origin=ORIGIN)
    assert not own.segment(scores, threshold=0.5, mask=mask).data[20:].any()
    assert (locate(own, scores, mask=mask).label == "ball").sum() == 2
    with pytest.raises(ValueError, match="scores' shape"):
        locate(own, scores, mask=Volume(data=np.ones((4, 4, 4)), voxel_spacing=10.0))


def test_picking_segments_and_goes_on_from_scores(rng):
    data = rng.normal(size=SHAPE).astype(np.float32)
    grid = np.stack(np.indices(SHAPE), axis=-1)
    for center in BALLS[1:]:
        data[np.linalg.norm(grid - center, axis=-1) <= 5] -= 3
    tomogram = Tomogram(data=data, voxel_spacing=SPACING, origin=ORIGIN, name="two")
    model = make_class_model(label="ball", diameter=100.0, height=0.8)
    own = SegmentationPicker(model=model, device="cpu")
    found = pick(tomogram, own, contrast="dark")
    away = np.linalg.norm(
        found.particles.position[:, None] - tomogram.to_position(BALLS[1:]), axis=-1
    )
    assert len(found.particles) == 2
    assert away.min(axis=0).max() < 8
    assert found.summary["count"] == {"ball": 2}
    assert found.segments.shape == SHAPE
    again = pick(tomogram, own, contrast="dark", scores=found.scores)
    assert again.particles.position.tobytes() == found.particles.position.tobytes()
    one = replace(own, diameter_range=(0.0, 20.0))
    assert len(pick(tomogram, one, contrast="dark", scores=found.scores).particles) == 0
    flipped = replace(own, views=4).score(tomogram.with_data(-data))
    np.testing.assert_allclose(flipped.data, found.scores.data, atol=0.05)
    power = local_spectrum(data).tolist()
    matched = replace(own, match_spectrum=True, model=replace(
        model, config={**model.config, "spectrum": {"power": power}}
    ))  # fmt: skip
    same = matched.score(tomogram.with_data(-data))
    assert np.abs(same.data - found.scores.data).mean() < 0.02


@pytest.mark.skipif(not computes_in_int8(), reason="the processor has no VNNI")
def test_a_model_that_tells_its_ranges_computes_in_int8(rng):
    data = rng.normal(size=SHAPE).astype(np.float32)
    grid = np.stack(np.indices(SHAPE), axis=-1)
    for center in BALLS[1:]:
        data[np.linalg.norm(grid - center, axis=-1) <= 5] += 3
    tomogram = Tomogram(data=data, voxel_spacing=SPACING, origin=ORIGIN, name="two")
    model = make_class_model(label="ball", diameter=100.0, height=0.8)
    ranges = measure_ranges(model.network, [standardise(data)])
    told = replace(model, config={**model.config, "ranges": ranges})
    exact, rough = (
        pick(tomogram, SegmentationPicker(model=one, device="cpu"), contrast="light")
        for one in (model, told)
    )
    apart = np.abs(exact.scores.data - rough.scores.data)
    assert 0 < apart.mean() < 0.02
    assert len(rough.particles) == len(exact.particles) == 2
    np.testing.assert_allclose(rough.particles.position, exact.particles.position, atol=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"diameter": 0.0}, "diameter must be positive"),
        ({"filament_step": -1.0}, "filament_step must be positive"),
        ({"diameter_range": (3.0, 1.0)}, "in this order"),
        ({"mass_range_kda": (-1.0, 1.0)}, "from 0 on"),
        ({"diameter_range": (0, 9), "mass_range_kda": (0, 9)}, "not both"),
        ({"match_spectrum": True}, "leave out match_spectrum"),
        ({"model": make_blob_model()}, "blobs segments nothing: train one"),
        ({"model": replace(make_model(), config={})}, "does not say what it finds"),
        ({"model": replace(make_model(), config={"classes": CLASSES[:2]})}, "has 3 classes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_settings_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        picker(**given)


def test_classes_are_no_vectors(rng):
    tomogram = Tomogram(data=rng.normal(size=SHAPE), voxel_spacing=SPACING)
    with pytest.raises(ValueError, match="gives no vectors"):
        LearnedFeatures(model=make_model(), device="cpu").embed(tomogram)
