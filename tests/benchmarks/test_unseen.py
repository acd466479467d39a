"""Which proteins come where, examples, and scores that leave them out."""

from dataclasses import replace

import numpy as np
import pytest

from tomoloc.types import Particles, Volume
from unseen.scenes import CONDITIONS, PER_TOMOGRAM, Protein, Scenes
from unseen.scores import draw_examples, match_clusters, score_detection, score_picks

GRID = Volume(data=np.zeros((40, 60, 80), np.float32), voxel_spacing=10.0, name="scene")


@pytest.fixture
def scenes(tmp_path):
    proteins = [
        Protein(label=f"p{i}", path=f"/structures/p{i}.pdb", mass_kda=40.0 + 10 * i)
        for i in range(49)
    ]
    return Scenes(proteins=proteins, cache=tmp_path)


@pytest.fixture
def truth(rng):
    """Five particles of each of two labels, one of them cut off."""
    axes = np.stack(np.meshgrid([110.0, 350, 590], [110.0, 300, 480], [120.0, 280]), axis=-1)
    position = rng.permutation(axes.reshape(-1, 3))[:10]
    return Particles(
        position=position,
        label=np.repeat(["a", "b"], 5),
        tomogram="scene",
        extra={
            "tomolocVisibleFraction": np.array([0.5, *np.ones(9)]),
            "tomolocRole": np.full(10, "target"),
        },
    )


def test_every_protein_comes_once(scenes):
    n = scenes.number("sparse")
    labels = [p.label for i in range(n) for p in scenes.wanted("sparse", i)]
    assert n == 7
    assert sorted(labels) == sorted(p.label for p in scenes.proteins)


def test_small_proteins_come_evenly(scenes):
    tomograms = [scenes.wanted("small", i) for i in range(scenes.number("small"))]
    assert all(len({p.label for p in seven}) == PER_TOMOGRAM for seven in tomograms)
    assert all(p.mass_kda < 150 for seven in tomograms for p in seven)
    counts = np.unique([p.label for seven in tomograms for p in seven], return_counts=True)[1]
    assert np.ptp(counts) <= 1


def test_conditions_differ_in_optics_alone(scenes):
    sparse, tilt = scenes.recipe("sparse", 2), scenes.recipe("tilt40", 2)
    assert tilt.microscope.tilt_max == 40
    assert tilt.microscope.defocus_um == sparse.microscope.defocus_um
    assert (tilt.species, tilt.specimen, tilt.seed) == (
        sparse.species,
        sparse.specimen,
        sparse.seed,
    )


def test_distractors_are_others(scenes):
    recipe = scenes.recipe("cell", 0)
    role = {"target": set(), "distractor": set()}
    for species in recipe.species:
        role[species.role].add(species.label)
    assert [len(labels) for labels in role.values()] == [7, 16]
    assert not role["target"] & role["distractor"]


@pytest.mark.parametrize("name", CONDITIONS)
def test_recipes_are_sound(scenes, name):
    assert scenes.recipe(name, 1).name == f"{name}_1"


def test_examples_are_whole_and_a_little_off(truth):
    rng = np.random.default_rng(2)
    for _ in range(20):
        rows, examples = draw_examples(truth, ["b", "a"], grid=GRID, rng=rng, shots=2)
        assert 0 not in rows
        assert np.asarray(examples.label).tolist() == ["b", "b", "a", "a"]
        off = np.linalg.norm(examples.position - truth.position[rows], axis=1)
        assert ((off > 5) & (off < 10)).all()
    with pytest.raises(ValueError, match="only 4 of 5 a could be examples"):
        draw_examples(truth, ["a"], grid=GRID, rng=rng, shots=5)


def test_examples_do_not_count(truth):
    picks = replace(truth, position=truth.position + 6, score=np.linspace(1, 0.55, 10), extra={})
    wrong = Particles(position=[[200.0, 200, 30]], label="a", tomogram="scene", score=[0.2])
    beside = replace(picks[[1]], label="b")
    picks = Particles.concatenate([picks, wrong, beside])
    a, b = score_picks(
        picks, truth, labels=["a", "b"], threshold={"a": 0.5, "b": 0.7}, examples=np.array([1, 7])
    )
    assert (a.f1, a.best_f1, a.n_fp) == (1, 1, 0)
    assert a.error == pytest.approx(6 * np.sqrt(3))
    assert b.recall == 0.25  # of four, one is above 0.7
    assert b.best_f1 == 1
    # Without the row of examples, all five count, and the pick of b at a particle of a is wrong.
    a, b = score_picks(picks, truth, labels=["a", "b"], threshold={"a": 0.0, "b": 0.0})
    assert a.precision == pytest.approx(5 / 6)
    assert b.precision == pytest.approx(5 / 6)


def test_nothing_found_scores_nothing(truth):
    none = Particles(position=np.zeros((0, 3)), score=np.zeros(0))
    (score,) = score_picks(none, truth, labels=["a"], threshold={"a": 0.5})
    assert (score.f1, score.best_f1, score.recall, score.n_fp) == (0, 0, 0, 0)
    assert score_detection(none, truth, threshold=0.5).best_f1 == 0


def test_detection_takes_any_label(truth):
    picks = replace(truth, label="candidate", score=np.linspace(1, 0.1, 10), extra={})
    found = score_detection(picks, truth, threshold=0.45)
    assert found.best_f1 == 1
    assert found.recall == 0.6
    assert found.precision == 1


def test_clusters_are_matched_one_to_one(truth):
    picks = replace(truth, label=np.repeat(["x", "y"], [8, 2]), extra={})
    matched = match_clusters(picks, truth, labels=["a", "b", "c"])
    assert matched["a"] == ("x", pytest.approx(2 * 5 / 13))
    assert matched["b"] == ("y", pytest.approx(4 / 7))
    assert matched["c"] == ("", 0)
    assert match_clusters(picks[:0], truth, labels=["a"]) == {"a": ("", 0.0)}
