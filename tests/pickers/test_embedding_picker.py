"""Picking by example with an encoder made by hand: positions, scores, labels, wrong use."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from handmade import BRIGHT, make_blob_model
from planting import make_noise

from tomoloc.features.candidates import find_candidates, look_up
from tomoloc.features.learned import LearnedFeatures
from tomoloc.io.targets import Targets
from tomoloc.localize import find_peaks
from tomoloc.nn import stored
from tomoloc.nn.stored import save_model
from tomoloc.pickers.competition import Averaged, Calibration
from tomoloc.pickers.embedding import EmbeddingPicker, embed_examples
from tomoloc.pickers.pick import pick
from tomoloc.types import Particles

MODEL = make_blob_model()


def make_picker(vectors=BRIGHT, label="blob", **changes):
    targets = Targets(vectors=vectors, label=label, model=MODEL.identity)
    return EmbeddingPicker(**{"reference": targets, "model": MODEL, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def bright(planted):
    tomogram, _ = planted
    return tomogram.with_data(-tomogram.data)


def distances(particles, truth):
    return np.linalg.norm(particles.position[:, None] - truth.position, axis=2)


def test_one_example_finds_the_others(planted, bright):
    tomogram, truth = planted
    example = Particles(position=truth.position[1:2], label="lobes")
    targets = embed_examples(bright, example, model=MODEL, device="cpu")
    picks = pick(tomogram, make_picker(reference=targets))
    assert len(picks.particles) == 6
    assert picks.particles.labels == ["lobes"]
    assert sorted(distances(picks.particles, truth).argmin(axis=1)) == list(range(6))
    assert np.median(distances(picks.particles, truth).min(axis=1)) < 15
    assert 0.2 <= picks.threshold[0] <= 0.5
    assert picks.particles.extra["tomolocEdge"].sum() == 1


def test_peaks_are_the_candidates(bright):
    """The score map hands on what was found between its grid points."""
    scores = make_picker().score(bright)
    embedding = LearnedFeatures(model=MODEL, device="cpu").embed(bright)
    assert scores.shape == embedding.shape
    wanted = find_candidates(embedding, centers=True, targets=BRIGHT).particles
    found = find_peaks(scores, threshold=1e-6, min_distance=20)
    rows = distances(found, wanted).argmin(axis=1)
    assert len(found) > 5
    np.testing.assert_allclose(found.position, wanted.position[rows], atol=1e-3)
    assert (scores.data >= 0).all()
    assert np.count_nonzero(scores.data) <= 7 * len(wanted)


def test_neighbours_keep_the_better_one_as_it_is(bright, monkeypatch):
    grid = LearnedFeatures(model=MODEL, device="cpu").embed(bright)
    index = np.array([[5.2, 6.4, 7.0], [5.3, 8.3, 7.1], [0, 3.1, 0.2], [12.0, 12.4, 13.7]])
    planted = Particles(position=grid.to_position(index), score=np.ones(4), label="candidate")
    heights = np.array([0.9, 0.8, 0.7, 1.0])
    monkeypatch.setattr(
        "tomoloc.pickers.embedding.find_candidates",
        lambda *_, **__: replace(
            find_candidates(grid, centers=True)[[0, 0, 0, 0]], particles=planted
        ),
    )
    monkeypatch.setattr(
        "tomoloc.pickers.embedding.compete", lambda *_, **__: np.diag(heights)[:, [2, 0, 1, 3]]
    )
    labels = ["a", "b", "c", "d"]
    scores = make_picker(np.repeat(BRIGHT, 4, axis=0), labels).score(bright)
    found = find_peaks(scores, threshold=0, min_distance=1)
    assert found.label.tolist() == ["d", "b", "c", "a"]
    np.testing.assert_allclose(found.score, [1, 0.9, 0.8, 0.7], rtol=1e-6)
    near = grid.to_index(found.position)
    np.testing.assert_allclose(near[:3], index[[3, 0, 1]], atol=1e-4)
    np.testing.assert_allclose(near[3], [0, 3.1, 0], atol=1e-4)  # on the border: no parabola
    monkeypatch.setattr("tomoloc.pickers.embedding.compete", lambda *_, **__: heights[:, None])
    scores = make_picker().score(bright)
    found = find_peaks(scores, threshold=0, min_distance=60)
    np.testing.assert_allclose(found.score, [1, 0.9, 0.7], rtol=1e-6)
    np.testing.assert_allclose(grid.to_index(found.position)[1], index[0], atol=1e-4)


def test_each_candidate_has_one_label_at_most(bright):
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.9, -np.sqrt(0.19)]])
    scores = make_picker(vectors, ["top", "side", "top"]).score(bright)
    assert scores.labels == ("side", "top")
    found = find_peaks(scores, threshold=0, min_distance=20)
    away = distances(found, found) + 1e9 * np.eye(len(found))
    assert found.labels == ["side", "top"]
    assert away.min() > 30


def test_refinement_can_be_left_out(bright):
    vectors = np.array([[0.99, np.sqrt(1 - 0.99**2)]])
    moved, kept = (make_picker(vectors, refine=refine).score(bright) for refine in (True, False))
    assert np.abs(moved.data - kept.data).max() > 1e-6


def test_expected_number_of_wrong_picks_is_told(bright, caplog):
    picker = make_picker()
    scores = picker.score(bright)
    with caplog.at_level(logging.INFO):
        (threshold,) = picker.threshold(scores, min_distance=60)
    assert 0.2 <= threshold <= 0.5
    found = find_peaks(scores, threshold=threshold, min_distance=60)
    wrong = (1 - found.score).sum()
    text = f"planted: of {len(found)} picks, {wrong:.1f} are expected to be wrong"
    assert text in caplog.text


def test_noise(planted, caplog):
    noise = planted[0].with_data(make_noise(np.random.default_rng(5)))
    picks = pick(noise, make_picker(), contrast="dark")
    assert len(picks.particles) == 0


def test_models_by_name_and_folder(bright, tmp_path, monkeypatch):
    save_model(tmp_path / "blobs", MODEL)
    expected = make_picker().score(bright)
    found = make_picker(model=str(tmp_path / "blobs")).score(bright)
    np.testing.assert_array_equal(found.data, expected.data)
    monkeypatch.setattr(stored, "SHIPPED", tmp_path)
    assert make_picker(model="blobs").working_spacing(10.1) == 10.1
    with pytest.raises(FileNotFoundError, match=r"no model blob: .* ships \(blobs\)"):
        make_picker(model="blob").score(bright)


def test_spacings(caplog):
    picker = make_picker()
    assert picker.working_spacing(13.48) == 10
    assert caplog.text == ""
    assert picker.working_spacing(2.0) == 10
    assert "voxels of 2 Å are reduced to the model's 10 Å" in caplog.text
    with pytest.raises(ValueError, match="voxels of 40 Å are too coarse for this model"):
        picker.working_spacing(40)


def test_averages_decide_between_labels(bright, monkeypatch):
    """To the network both labels are one; candidates fit now one average, now the other."""
    calls = []

    def classify(tomogram, candidates, *, spread):
        calls.append((tomogram.shape, spread))
        n = len(candidates)
        side = np.arange(n) % 2
        gain = np.where(side[:, None] == [0, 1], 200.0, 50.0)
        offset = np.tile([6.0, -4.0, 2.0], (n, 1))
        return SimpleNamespace(
            gain=gain, size=np.array([20, 20]), usual=np.array([200.0, 200.0]), offset=offset
        )

    monkeypatch.setattr("tomoloc.pickers.embedding.classify_candidates", classify)
    averaged = Averaged(
        unlike=-0.5, unlike_rival=0.0, same=0.0, center=0.5, lead=2.0, intercept=0.0, share=0.5
    )
    calibration = replace(Calibration.of(MODEL.config), averaged=averaged)
    model = replace(MODEL, config={**MODEL.config, "calibration": calibration.to_dict()})
    features = LearnedFeatures(model=MODEL, device="cpu", views=4)
    found = find_candidates(features.embed(bright), centers=True)
    targets = Targets(vectors=found.vectors[:2], label=["a", "b"], model=model.identity)
    scores = make_picker(reference=targets, model=model).score(bright)
    picks = find_peaks(scores, threshold=0.1, min_distance=20)
    rows = distances(picks, found.particles).argmin(axis=1)
    assert len(picks) > 4
    assert picks.label.tolist() == [("a", "b")[row % 2] for row in rows]
    moved = picks.position - found.particles.position[rows]
    np.testing.assert_allclose(np.median(moved, axis=0), [3, -2, 1], atol=1e-3)
    assert calls == [(bright.shape, calibration.spread)]
    make_picker(reference=targets, model=model, average=False).score(bright)
    make_picker(reference=targets).score(bright)  # a model that does not tell what averages mean
    assert len(calls) == 1


def test_wrong_use(bright):
    with pytest.raises(ValueError, match="reference holds no examples"):
        make_picker(np.zeros((0, 2)), [])
    with pytest.raises(ValueError, match="diameter must be positive; got 0"):
        make_picker(diameter=0)
    other = make_blob_model(height=0.3)
    with pytest.raises(ValueError, match=r"reference: vectors of model blobs:\w+ mean nothing to"):
        make_picker(model=other).score(bright)


class TestExamples:
    def test_vectors_are_those_of_the_tomogram(self, planted, bright):
        truth = planted[1]
        table = Particles(
            position=[*truth.position[:3], [0, 0, 0]],
            label=["a", "b", "a", ""],
            tomogram=["planted", "", "planted", "other"],
        )
        targets = embed_examples(bright, table, model=MODEL, device="cpu")
        embedding = LearnedFeatures(model=MODEL, device="cpu").embed(bright)
        expected = look_up(embedding, truth.position[:3])
        np.testing.assert_allclose(targets.vectors, expected, atol=2e-3)
        assert targets.label.tolist() == ["a", "b", "a"]
        assert targets.model == MODEL.identity

    def test_outside(self, planted, bright):
        position = planted[1].position.copy()
        position[2, 1] = bright.origin[1] - 21
        with pytest.raises(
            ValueError, match=r"example 3 \(lobes\) at \(150, -21, 127\) Å lies"
        ) as e:
            embed_examples(bright, replace(planted[1], position=position), model=MODEL)
        assert "outside tomogram planted, which has 560 x 640 x 480 Å (x y z)" in str(e.value)

    def test_where_nothing_is(self, planted, bright, caplog):
        """Positions in other units, or of another tomogram, are the usual reason."""
        position = planted[1].position[:3].copy()
        free = bright.to_position(np.argwhere(np.ones(bright.shape))[::7])
        away = np.linalg.norm(free[:, None] - planted[1].position, axis=2).min(axis=1)
        position[1] = free[away.argmax()]
        examples = Particles(position=position, label="lobes")
        with caplog.at_level("WARNING"):
            embed_examples(bright, examples, model=MODEL)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 1
        assert said[0].startswith("example 2 (lobes): the network sees no particle there (proba")

    def test_without_label(self, planted, bright):
        table = replace(planted[1], label=["a", "", "a", "b", "", ""])
        with pytest.raises(ValueError, match="example 2 has no label"):
            embed_examples(bright, table, model=MODEL)
