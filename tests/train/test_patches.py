import numpy as np
import pytest

from tomoloc.train.frames import STRIDE
from tomoloc.train.patches import (
    BACKGROUND,
    OFF_CENTER,
    Patching,
    draw_batch,
    label_number,
    prepare,
)
from tomoloc.types import Particles, Sample, Tomogram, Volume

SHAPE = (44, 60, 76)
ORIGIN = (130.0, -70.0, 15.0)
PATCHING = Patching(number=3, shape=(24, 32, 40), margin=1)


def make_sample(rng, *, labels="abab", shape=SHAPE, spacing=10.0, membrane=False, visible=None):
    """Noise with a dark spot at the centre of each particle."""
    n = len(labels)
    index = np.column_stack([rng.uniform(6, side - 6, n) for side in shape])
    z, y, x = np.indices(shape)
    data = rng.normal(0, 0.05, shape)
    for center in index:
        distance = (z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2
        data -= 20 * np.exp(-distance / 2)
    tomogram = Tomogram(data=data, voxel_spacing=spacing, origin=ORIGIN, name="t")
    atlas = np.zeros(shape, dtype=np.uint16)
    legend = {i + 1: name for i, name in enumerate(sorted(set(labels)))}
    if membrane:
        legend[7] = "membrane"
        atlas[:, :, 50:53] = 7
    return Sample(
        tomogram=tomogram,
        particles=Particles(
            position=tomogram.to_position(index),
            label=list(labels),
            extra={} if visible is None else {"tomolocVisibleFraction": np.array(visible)},
        ),
        labels=tomogram.with_data(atlas) if membrane else None,
        legend=legend,
    )


def prepared(sample, least=PATCHING.shape, spacing=10.0):
    return prepare(sample, voxel_spacing=spacing, least=least)


def test_labels_have_the_same_number_everywhere():
    assert label_number("membrane") == label_number("membrane") == 2513791459167132189
    assert len({label_number(str(i)) for i in range(1000)}) == 1000


def test_protein_is_bright_and_centres_are_where_it_is(rng):
    made = prepared(make_sample(rng))
    assert made.data.dtype == np.float16
    assert made.data.shape == SHAPE
    places = np.rint(made.index).astype(int)
    assert (made.data[tuple(places.T)] > 20).all()
    assert abs(np.median(made.data)) < 0.1
    assert made.label[0] == made.label[2] != made.label[1]


def test_data_come_to_the_voxel_spacing_of_the_model(rng):
    made = prepared(make_sample(rng, spacing=8.0), least=(16, 16, 16))
    sides = zip(made.data.shape, SHAPE, strict=True)
    assert all(abs(side - 0.8 * old) <= 1.5 for side, old in sides)
    places = np.rint(made.index).astype(int)
    assert (made.data[tuple(places.T)] > 0.5 * made.data.max()).all()


@pytest.mark.parametrize("shape", [(15, 20, 31), (16, 33, 64)])
def test_small_samples_are_filled_up_and_only_themselves_count(rng, shape):
    sample = make_sample(rng, labels="aabb", shape=shape, membrane=True)
    made = prepared(sample, least=(24, 32, 40))
    assert all(
        n % 2 == 0 and n >= low for n, low in zip(made.data.shape, (24, 32, 40), strict=True)
    )
    assert made.matter.shape == tuple(n // 2 for n in made.data.shape)
    places = np.rint(made.index).astype(int)
    assert (made.data[tuple(places.T)] > 20).all()
    for (low, high), n in zip(made.inside, shape, strict=True):
        assert high - low == n // 2
    batch = draw_batch([made], patching=PATCHING, rng=rng)
    assert batch.counts.any()
    assert batch.counts.sum() <= 3 * np.prod([n // 2 for n in shape])


def test_other_matter_is_found_on_the_grid(rng):
    made = prepared(make_sample(rng, membrane=True))
    (kind,) = made.kinds
    assert kind == label_number("membrane")
    columns = np.flatnonzero((made.matter == 1).all(axis=(0, 1)))
    assert columns.tolist() == [25, 26]  # at voxels 50.5 and 52.5


def test_truth_turns_with_the_data(rng):
    made = prepared(make_sample(rng, labels="abababab", membrane=True))
    seen = 0
    for _ in range(6):
        batch = draw_batch([made], patching=PATCHING, rng=rng)
        assert batch.data.shape == (3, 24, 32, 40)
        assert batch.heat.shape == batch.counts.shape == (3, 12, 16, 20)
        for (patch, *place), label in zip(batch.point, batch.label, strict=True):
            z, y, x = np.array(place) * STRIDE
            brightest = batch.data[patch, z : z + 2, y : y + 2, x : x + 2].max()
            if label in made.label:
                assert brightest > 10
                assert batch.heat[(patch, *place)] > 0.5
                seen += 1
            elif label == BACKGROUND:
                assert batch.heat[(patch, *place)] < 0.05
                assert brightest < 10
    assert seen > 50


def test_all_patches_of_a_batch_have_one_handedness(rng):
    ramp = np.sum(np.meshgrid(*(np.arange(n) * s for n, s in zip(SHAPE, (9, 3, 1), strict=True)),
                              indexing="ij"), axis=0)  # fmt: skip
    sample = make_sample(rng)
    sample = Sample(
        tomogram=Tomogram(data=ramp, voxel_spacing=10.0, origin=ORIGIN), particles=sample.particles
    )
    made, hands, turns = prepared(sample), set(), set()
    for _ in range(20):
        batch = draw_batch([made], patching=PATCHING, rng=rng)
        slopes = np.sign([
            [np.diff(patch.mean(axis=tuple({0, 1, 2} - {axis})))[3] for axis in range(3)]
            for patch in batch.data
        ])  # fmt: skip
        (hand,) = set(slopes.prod(axis=1).tolist())
        hands.add(hand)
        turns |= {tuple(row) for row in slopes.tolist()}
    assert hands == {-1.0, 1.0}
    assert len(turns) == 8


def test_points_of_a_particle_share_an_instance(rng):
    made = prepared(make_sample(rng, labels="aaaabbbb", membrane=True))
    batch = draw_batch([made], patching=PATCHING, rng=rng)
    particle = batch.instance < batch.particles
    assert set(batch.label[particle]) <= set(made.label.tolist())
    assert set(batch.label[~particle]) <= {BACKGROUND, OFF_CENTER, label_number("membrane")}
    assert len(np.unique(batch.instance[~particle])) == (~particle).sum()
    for instance in np.unique(batch.instance[particle]):
        rows = batch.instance == instance
        assert len(np.unique(batch.label[rows])) == 1
        assert rows.sum() <= PATCHING.points
        assert np.ptp(batch.point[rows], axis=0).max() <= 2


def test_cut_particles_are_neither_learned_nor_held_for_ice(rng):
    made = prepared(make_sample(rng, labels="aaaaaaaa", visible=[0.2] * 8))
    batch = draw_batch([made], patching=PATCHING, rng=rng)
    assert set(batch.label) <= {BACKGROUND}
    assert batch.heat[batch.counts].max() < 0.1


def test_batches_come_from_samples_that_share_labels(rng):
    groups = [
        prepared(make_sample(rng, labels=labels * 2))
        for labels in ("ab", "ab", "abc", "pq", "pq", "qp")
    ]
    for _ in range(5):
        batch = draw_batch(groups, patching=PATCHING, rng=rng)
        labels = set(batch.label[batch.instance < batch.particles].tolist())
        one, other = ({label_number(x) for x in names} for names in ("abc", "pq"))
        assert labels
        assert labels <= one or labels <= other


def test_the_same_seed_gives_the_same_batch(rng):
    made = [prepared(make_sample(rng, membrane=True)) for _ in range(3)]
    first, second = (
        draw_batch(made, patching=PATCHING, rng=np.random.default_rng(3)) for _ in range(2)
    )
    for name in ("data", "heat", "counts", "point", "label", "instance"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_samples_without_particles_or_atlas_are_ice(rng):
    empty = Sample(
        tomogram=Tomogram(data=rng.normal(size=SHAPE), voxel_spacing=10.0),
        particles=Particles(position=np.zeros((0, 3))),
    )
    batch = draw_batch([prepared(empty)], patching=PATCHING, rng=rng)
    assert set(batch.label) == {BACKGROUND}
    assert batch.heat.max() == 0
    assert batch.particles == 0


def test_an_empty_tomogram_is_refused():
    blank = Tomogram(data=np.zeros(SHAPE), voxel_spacing=10.0)
    with pytest.raises(ValueError, match="must hold values that differ"):
        prepared(Sample(tomogram=blank, particles=Particles(position=np.zeros((0, 3)))))


@pytest.mark.parametrize("wrong", [{"number": 0}, {"shape": (20, 32, 32)}, {"shape": (8, 32, 32)}])
def test_wrong_patches_are_refused(wrong):
    with pytest.raises(ValueError, match="multiples of 8"):
        Patching(**wrong)


def test_a_volume_of_labels_on_another_grid_is_looked_up_by_position(rng):
    sample = make_sample(rng, membrane=True, spacing=5.0)
    made = prepared(sample, least=(16, 16, 16))
    columns = np.flatnonzero((made.matter == 1).mean(axis=(0, 1)) > 0.9)
    assert len(columns) == 1
    where = ORIGIN[0] + 5 * 51
    assert isinstance(sample.labels, Volume)
    # voxels of 10 Å whose middle is that of the tomogram
    grid = sample.tomogram.center[0] + 10 * (2 * columns[0] + 0.5 - (38 - 1) / 2)
    assert abs(grid - where) <= 10
