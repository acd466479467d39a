"""`tomoloc search` from end to end: planted kinds are found in every tomogram."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.features.candidates import look_up
from tomoloc.io.embeddings import EmbeddingSource, write_embedding
from tomoloc.io.frames import Frame
from tomoloc.io.tables import read_table, write_particles
from tomoloc.io.targets import Targets, write_targets
from tomoloc.types import Particles, Volume

SIZE, SPACING, CHANNELS = (96, 80, 64), 10.0, 16
KINDS = np.linalg.qr(np.random.default_rng(3).normal(size=(CHANNELS, CHANNELS)))[0][:3]

SEARCH = ["search", "embedded", "--reference", "refs.star", "-o", "hits.star"]


def plant(name, *, dense=True, model="general:0123"):
    """Write the embedding of a tomogram with three kinds of particles; return where they are."""
    rng = np.random.default_rng(list(name.encode()))
    data = rng.normal(size=(CHANNELS + 1, 32, 40, 48))
    blocks = np.stack([rng.integers(0, n, 200) for n in (8, 10, 12)], axis=1)
    places = 4 * np.unique(blocks, axis=0)[:60] + 1  # and what lies around each
    kind = np.arange(60) % 3
    for place, own in zip(places, kind, strict=True):
        z, y, x = (slice(n - 1, n + 2) for n in place)
        vector = 3 * KINDS[own] + 0.1 * rng.normal(size=CHANNELS)
        data[:-1, z, y, x] = vector[:, None, None, None]
    data[:-1] /= np.linalg.norm(data[:-1], axis=0)
    embedding = Volume(
        data=data.astype(np.float16), voxel_spacing=2 * SPACING, origin=(5, 5, 5), name=name
    )
    position = embedding.to_position(places)
    particles = Particles(position=position, label=[f"kind {k}" for k in kind], tomogram=name)
    path = Path("embedded") / f"{name}.zarr"
    write_embedding(
        path,
        EmbeddingSource(
            tomogram=Path(f"{name}.mrc"),
            name=name,
            size=SIZE,
            voxel_spacing=SPACING,
            contrast="dark",
            model=model,
        ),
        embedding=embedding,
        finds_centers=True,
        particles=particles,
        vectors=look_up(embedding, position),
        dense=dense,
    )
    return particles


@pytest.fixture(autouse=True)
def truth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Particles.concatenate([plant(f"TS_{i}", dense=i % 2 == 0) for i in range(4)])


def refer(particles, path="refs.star"):
    frames = {name: Frame(name, SIZE[::-1], SPACING) for name in particles.tomograms or ["TS_0"]}
    write_particles(particles, path, frames=frames)


@pytest.fixture
def references(truth):
    """Two examples of kind 0 in different tomograms, one of kind 2."""
    refer(truth[[0, 63, 2]])


def places(particles):
    rows = zip(particles.tomogram, particles.label, particles.position.round(2), strict=True)
    return {(str(name), str(label), *map(float, xyz)) for name, label, xyz in rows}


def test_all_of_a_kind_are_found_everywhere(truth, references, capsys):
    assert main([*SEARCH, "-n", "80"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "hits.star\n"
    assert "160 particles of kind 0, kind 2 among 240 candidates in 4 tomograms" in printed.err
    table = read_table("hits.star")
    hits = table.particles
    good = hits[hits.score > 0.8]
    assert places(good) == places(truth[np.asarray(truth.label) != "kind 1"])
    assert (np.diff(hits.score) <= 0).all()
    assert len(good) == 160
    assert table.frames["TS_3"].shape == SIZE[::-1]
    assert {"tomolocEdge", "tomolocCenterProbability"} <= set(hits.extra)


def test_some_of_one_label_and_the_index_is_kept_up_to_date(truth, references):
    words = [*SEARCH, "--overwrite", "--label", "kind 2"]
    for _ in range(2):
        assert main([*words, "-n", "7"]) == 0
        hits = read_table("hits.star").particles
        assert hits.label.tolist() == ["kind 2"] * 7
        assert places(hits) < places(truth)
    plant("TS_9")
    assert main([*words, "-n", "100"]) == 0
    assert "TS_9" in read_table("hits.star").particles.tomograms


def test_targets_and_single_embeddings(truth):
    targets = Targets(vectors=KINDS[[1]], label="cluster 1", model="general:0123")
    write_targets(targets, "targets.safetensors")
    words = "search embedded/TS_1.zarr embedded/TS_2.zarr --targets targets.safetensors -n 40"
    assert main([*words.split(), "-o", "new/hits.star"]) == 0
    hits = read_table("new/hits.star").particles
    assert hits.score.min() > 0.8
    assert set(hits.tomograms) == {"TS_1", "TS_2"}
    assert hits.labels == ["cluster 1"]
    assert not Path("embedded/index").exists()


def test_a_table_that_states_no_size(truth):
    x, y, z = truth.position[2] / SPACING
    Path("refs.star").write_text(
        "data_\n\nloop_\n_rlnTomoName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\n"
        f"_rlnCoordinateZ #4\nTS_0 {x} {y} {z}\n"
    )
    assert main([*SEARCH, "-n", "80"]) == 0
    hits = read_table("hits.star").particles
    found = {place[2:] for place in places(hits)}
    assert found == {place[2:] for place in places(truth[np.asarray(truth.label) == "kind 2"])}


CASES = [
    ("", "search needs the folder that tomoloc embed wrote"),
    ("embedded", "either --reference or --targets"),
    ("embedded --reference refs.star --targets t.safetensors", "either --reference or --targets"),
    ("embedded --reference none.star", "none.star: no such file"),
    ("none --reference refs.star", "none: no such folder of embeddings"),
    (". --reference refs.star", "holds no embeddings"),
    ("embedded --reference refs.star -n 0", "-n must be at least 1; got 0"),
    ("embedded embedded/TS_1.zarr --reference refs.star", "give one folder of embeddings"),
    ("embedded/TS_7.zarr --reference refs.star", "TS_7.zarr: no such embedding"),
    ("embedded --reference refs.star --label x", "--label x: refs.star has kind 0, kind 2"),
    ("embedded --reference empty.star", "empty.star holds no particles"),
    ("embedded --reference outside.star", "outside.star: a reference at 5000 5 5 Å lies outside"),
    ("embedded --reference elsewhere.star", "'TS_8', which is not among the 4 embedded ones"),
    ("embedded --targets other.safetensors", "other.safetensors: vectors of model other:89"),
    ("embedded --targets refs.star", "refs.star is damaged, or no file of targets"),
    ("embedded --reference refs.star -o refs.star", "refs.star exists; choose another name"),
    ("embedded --reference refs.star -o hits.csv", "hits.csv: the table must be a .star file"),
]


@pytest.mark.parametrize(("words", "message"), CASES)
def test_wrong_use_is_one_line(words, message, references, capsys):
    refer(Particles(position=np.zeros((0, 3))), "empty.star")
    refer(Particles(position=[[5000, 5, 5]], tomogram="TS_1"), "outside.star")
    refer(Particles(position=[[5, 5, 5]], tomogram="TS_8"), "elsewhere.star")
    other = Targets(vectors=KINDS[[1]], label="x", model="other:89")
    write_targets(other, "other.safetensors")
    before = Path("refs.star").read_bytes()
    output = [] if "-o" in words.split() else ["-o", "hits.star"]
    assert main(["search", *words.split(), *output]) == 2
    *log, error = capsys.readouterr().err.splitlines()
    assert message in error
    assert not any(line.startswith("tomoloc: ") for line in log)
    assert not Path("hits.star").exists()
    assert Path("refs.star").read_bytes() == before
