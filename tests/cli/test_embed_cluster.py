"""`tomoloc embed` and `tomoloc cluster` with an encoder made by hand: two kinds of blobs."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.features import clusters
from tomoloc.io.embeddings import read_candidates, read_embedding
from tomoloc.io.tables import Frame, read_table, write_particles
from tomoloc.io.targets import read_targets
from tomoloc.io.tomograms import write_volume
from tomoloc.nn.stored import StoredModel, load_model, save_model
from tomoloc.nn.window import WindowEncoder
from tomoloc.types import Particles, Volume

sys.path.insert(0, str(Path(__file__).parents[1] / "pickers"))
from handmade import make_blob_model

SHAPE = (42, 72, 86)
FAINT, STRONG = 2.5, 5.0
CELLS = list(product((9, 32), (8, 22, 36, 50, 64), (8, 22, 36, 50, 64, 78)))  # a blob in each, zyx
N_FAINT = 24


def _make_tomogram(seed, *, spacing=10.0):
    """Dark blobs of two strengths in noise, and their places xyz in angstrom, faint ones first."""
    rng = np.random.default_rng(seed)
    centres = np.array(CELLS)[rng.permutation(len(CELLS))]
    grid = np.indices(SHAPE)
    data = rng.normal(size=SHAPE)
    for i, centre in enumerate(centres):
        square = ((grid - centre[:, None, None, None]) ** 2).sum(axis=0)
        data -= (FAINT if i < N_FAINT else STRONG) * np.exp(-square / 18)
    volume = Volume(data=data.astype(np.float32), voxel_spacing=spacing)
    return volume, centres[:, ::-1] * spacing


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with a model and two tomograms."""
    folder = tmp_path_factory.mktemp("made")
    save_model(folder / "blobs", make_blob_model(height=0.3, steepness=6.0))
    for number in (1, 2):
        write_volume(_make_tomogram(number)[0], folder / f"TS_{number}.mrc")
    return folder


@pytest.fixture(scope="module")
def embedded(made):
    """The same folder, with embeddings."""
    words = ["embed", "TS_1.mrc", "TS_2.mrc", "-o", "emb", "--model", "blobs", "--threshold", "0.5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        assert main(words) == 0
    return made


@pytest.fixture
def run(embedded, tmp_path, monkeypatch, capsys):
    """Run a command in a copy of that folder; return exit code, lines of stdout, stderr."""
    shutil.copytree(embedded, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")

    def lay_out(vectors, *, seed):  # what UMAP does is tested elsewhere, and takes its time
        assert seed >= 0
        return vectors[:, :2].copy()

    monkeypatch.setattr(clusters, "_map", lay_out)

    def call(words):
        capsys.readouterr()
        code = main(words.split())
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return call


def _files(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------- embed


def test_an_embedding_knows_where_it_comes_from(run):
    stored = read_embedding("emb/TS_2.zarr")
    source = stored.source
    assert source.tomogram.is_absolute()
    assert source.tomogram.name == "TS_2.mrc"
    assert (source.name, source.size, source.voxel_spacing) == ("TS_2", SHAPE[::-1], 10.0)
    assert source.contrast == "dark"
    assert source.model == load_model("blobs").identity
    assert (stored.shape, stored.grid_spacing) == ((21, 36, 43), 20.0)
    np.testing.assert_allclose(stored.origin, 5)
    assert stored.read().data.shape == (3, 21, 36, 43)
    record = tomllib.loads(Path("emb/TS_2.zarr.run.toml").read_text())
    assert record["results"]["n_candidates"] == stored.n_candidates
    assert record["inputs"]["contrast"] == "dark"


def test_views_are_stated(run):
    assert run("embed TS_1.mrc -o once --model blobs --threshold 0.5 --views 1")[0] == 0
    record = tomllib.loads(Path("once/TS_1.zarr.run.toml").read_text())
    assert record["parameters"]["views"] == 1
    several, once = (read_embedding(f"{folder}/TS_1.zarr") for folder in ("emb", "once"))
    assert (several.source.views, once.source.views) == (4, 1)
    assert several.shape == once.shape
    assert not np.array_equal(several.read().data, once.read().data)
    code, out, _ = run("info once/TS_1.zarr")
    assert code == 0
    assert any(line.split() == ["views", "1"] for line in out)


def test_candidates_are_where_the_blobs_are(run):
    particles, vectors = read_candidates("emb/TS_1.zarr")
    _, centres = _make_tomogram(1)
    distance = np.linalg.norm(particles.position[:, None] - centres, axis=2)
    assert len(particles) == len(CELLS)
    assert sorted(distance.argmin(axis=1)) == list(range(len(CELLS)))
    assert distance.min(axis=1).max() < 20
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=2e-3)


def test_what_is_there_is_kept_and_only_what_was_asked_for_is_replaced(run):
    words = "embed TS_1.mrc TS_2.mrc -o new --model blobs --threshold 0.5"
    assert run(words)[:2] == (0, ["new/TS_1.zarr", "new/TS_2.zarr"])
    before = _files("new")
    code, out, err = run(words)
    assert (code, out) == (0, ["new/TS_1.zarr", "new/TS_2.zarr"])
    assert err.count("is there already") == 2
    assert _files("new") == before
    words = "embed TS_1.mrc -o new --model blobs --threshold 0.5 --candidates-only"
    code, out, err = run(words)
    assert (code, out) == (2, [])
    assert "candidates_only False, now True" in err
    assert "--overwrite" in err
    assert run(f"{words} --overwrite")[:2] == (0, ["new/TS_1.zarr"])
    assert not read_embedding("new/TS_1.zarr").is_dense
    assert read_embedding("new/TS_2.zarr").is_dense


def test_a_mask_limits_candidates(run):
    data = np.zeros(SHAPE, dtype=np.int8)
    data[:, :, :29] = 1
    write_volume(Volume(data=data, voxel_spacing=1.0), "left.mrc")
    assert run("embed TS_1.mrc -o left --model blobs --threshold 0.5 --mask left.mrc")[0] == 0
    found, every = (read_candidates(f"{folder}/TS_1.zarr")[0] for folder in ("left", "emb"))
    expected = every.position[:, 0] < 285
    assert 0 < expected.sum() < len(every)
    np.testing.assert_array_equal(found.position, every.position[expected])
    write_volume(Volume(data=data[1:], voxel_spacing=10.0), "short.mrc")
    code, _, err = run("embed TS_1.mrc -o short --model blobs --threshold 0.5 --mask short.mrc")
    assert code == 2
    assert "86 x 72 x 41 voxels, the tomogram 86 x 72 x 42" in err
    data[:] = 0
    data[0, 0, 0] = 1
    write_volume(Volume(data=data, voxel_spacing=10.0), "corner.mrc")
    code, _, err = run("embed TS_1.mrc -o corner --model blobs --threshold 0.5 --mask corner.mrc")
    assert code == 0
    assert "none of 60 candidates lies in the mask" in err
    assert read_embedding("corner/TS_1.zarr").n_candidates == 0


def test_one_bad_tomogram_does_not_stop_the_others(run):
    Path("cut.mrc").write_bytes(Path("TS_1.mrc").read_bytes()[:5000])
    code, out, err = run("embed cut.mrc TS_1.mrc nothing.mrc -o new --model blobs --threshold 0.5")
    assert (code, out) == (1, ["new/TS_1.zarr"])
    assert "2 of 3 tomograms failed: cut.mrc, nothing.mrc" in err
    assert "Traceback" not in err
    assert not list(Path("new").glob(".*"))


def _forget_card(folder):
    (folder / "card.md").unlink()


def _cut_weights(folder):
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def _take_windows(folder):
    shutil.rmtree(folder)
    network = WindowEncoder(widths=(2, 2, 2, 2, 2), hidden=4, groups=1)
    save_model(folder, StoredModel(network=network, voxel_spacing=10.0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no model blobs"),
        (_forget_card, "lacks its file card.md"),
        (_cut_weights, "is damaged"),
        (_take_windows, "tells no centres"),
    ],
)
def test_a_model_that_cannot_be_used(run, spoil, message):
    spoil(Path("blobs"))
    code, out, err = run("embed TS_1.mrc -o new --model blobs --threshold 0.5")
    assert (code, out, err.count("\n")) == (2, [], 1)
    assert message in err
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("embed -o new --model blobs", "at least one tomogram"),
        ("embed TS_1.mrc -o new --threshold 1", "--threshold is a probability"),
        ("embed TS_1.mrc -o new --threshold nan", "--threshold is a probability"),
        ("embed TS_1.mrc -o new --min-distance 0", "--min-distance must be positive"),
        ("embed TS_1.mrc -o new --voxel-spacing -3", "--voxel-spacing must be positive"),
        (
            "embed TS_1.mrc -o TS_2.mrc --model blobs --threshold 0.5",
            "is a file, where a folder is needed",
        ),
        (
            "embed TS_1.mrc -o new --model blobs --threshold 0.5 --mask no.mrc",
            "--mask no.mrc: no such file",
        ),
        ("embed TS_1.mrc -o new --model blobs --voxel-spacing 40", "too coarse for this model"),
        (
            "embed TS_1.mrc ./TS_1.mrc -o new --model blobs --threshold 0.5",
            "several tomograms would be written",
        ),
        ("cluster -o new", "at least one embedding"),
        ("cluster nothing.zarr -o new", "nothing.zarr: no such embedding"),
        ("cluster TS_1.mrc -o new", "TS_1.mrc is not an embedding"),
        ("cluster emb -o new", "emb is not an embedding"),
        ("cluster emb/TS_1.zarr -o new --min-score 1", "--min-score is a probability"),
        ("cluster emb/TS_1.zarr -o new --min-size 1", "--min-size must be at least 2"),
        ("cluster emb/TS_1.zarr -o new --width 1", "--width is in Å"),
        ("cluster emb/TS_1.zarr -o new --seed -1", "--seed must be 0 or more"),
        ("cluster emb/TS_1.zarr emb/TS_1.zarr -o new", "2 embeddings are of tomograms called TS_1"),
        ("cluster emb/TS_1.zarr -o new --min-score 0.999", "no clusters among"),
    ],
)
def test_wrong_use_ends_in_one_line(run, words, message):
    code, out, err = run(words)
    assert (code, out) == (2, [])
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not Path("new/targets.safetensors").exists()


# -------------------------------------------------------------------------------------- cluster


def test_clusters_of_two_tomograms(run):
    code, out, err = run("cluster emb/TS_1.zarr emb/TS_2.zarr -o kinds")
    assert (code, out) == (
        0,
        [f"kinds/{n}" for n in ("targets.safetensors", "TS_1.star", "TS_2.star")],
    )
    assert "2 clusters hold" in err
    targets = read_targets("kinds/targets.safetensors")
    assert targets.model == load_model("blobs").identity
    assert np.asarray(targets.label).tolist() == ["cluster_1", "cluster_2"]
    n_members = np.asarray(targets.n_members)
    assert (n_members > [60, 36]).all()  # of 72 strong and 48 faint ones
    for number in (1, 2):
        table = read_table(f"kinds/TS_{number}.star")
        assert table.frames[f"TS_{number}"].shape == SHAPE
        _, centres = _make_tomogram(number)
        distance = np.linalg.norm(table.particles.position[:, None] - centres, axis=2)
        faint = distance.argmin(axis=1) < N_FAINT
        labels = np.asarray(table.particles.label)
        np.testing.assert_array_equal(labels, np.where(faint, "cluster_2", "cluster_1"))
        record = tomllib.loads(Path(f"kinds/TS_{number}.run.toml").read_text())
        assert Path(record["inputs"]["tomogram"]).name == f"TS_{number}.mrc"
        assert record["results"]["n_particles"] == len(table.particles)
        n_members -= [(labels == label).sum() for label in ("cluster_1", "cluster_2")]
    assert not n_members.any()
    for name in ("umap", "clusters", "clusters/cluster_1", "clusters/cluster_2"):
        assert Path(f"kinds/{name}.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("report kinds")  # they are tables as any
    assert code == 0
    assert "Traceback" not in err


def test_only_candidates_at_particles_are_sorted(run):
    for number in (1, 2):
        _, centres = _make_tomogram(number)
        picked = Particles(
            position=centres[N_FAINT - 10 :] + np.array([8.0, -6.0, 5.0]),
            label="any",
            tomogram=f"TS_{number}",
        )
        # picked in the same tomogram, binned twice
        frame = Frame(f"TS_{number}", tuple(n // 2 for n in SHAPE), 20.0)
        Path("picks").mkdir(exist_ok=True)
        write_particles(picked, f"picks/TS_{number}.star", frames={frame.name: frame})
    code, out, err = run("cluster emb/TS_1.zarr emb/TS_2.zarr -o kinds --particles picks")
    assert (code, len(out)) == (0, 3)
    n_picked = 2 * (len(CELLS) - N_FAINT + 10)
    assert f"candidates at {n_picked} of {n_picked} particles" in err
    assert sum(read_targets("kinds/targets.safetensors").n_members) <= n_picked
    for number in (1, 2):
        found = read_table(f"kinds/TS_{number}.star").particles.position
        _, centres = _make_tomogram(number)
        chosen = np.linalg.norm(found[:, None] - centres, axis=2).argmin(axis=1)
        assert chosen.min() >= N_FAINT - 10
    code, out, err = run("cluster emb/TS_1.zarr -o other --particles picks/TS_2.star")
    assert (code, out) == (2, [])
    assert "no particles of the embedded tomograms (TS_1)" in err


def test_a_run_again_is_kept_or_gives_the_same(run):
    words = "cluster emb/TS_1.zarr -o kinds --no-pictures"
    assert run(words)[0] == 0
    before = _files("kinds")
    assert not [path for path in before if path.suffix == ".png"]
    code, out, err = run(words)
    assert (code, out) == (0, ["kinds/targets.safetensors", "kinds/TS_1.star"])
    assert "is there already" in err
    code, _, err = run(f"{words} --seed 1")
    assert code == 2
    assert "seed 0, now 1" in err
    assert run(f"{words} --overwrite")[0] == 0
    after = _files("kinds")
    assert after.keys() == before.keys()
    for path in before:
        assert path.name == "targets.run.toml" or before[path] == after[path]
    assert run(f"{words} --target medoid --overwrite")[0] == 0
    medoids = read_targets("kinds/targets.safetensors").vectors
    _, vectors = read_candidates("emb/TS_1.zarr")
    np.testing.assert_allclose((vectors.astype(np.float32) @ medoids.T).max(axis=0), 1, atol=1e-3)


def test_nothing_of_others_is_lost(run):
    words = "cluster emb/TS_1.zarr -o kinds --no-pictures"
    Path("kinds").mkdir()
    Path("kinds/TS_1.star").write_text("picks of years")
    code, _, err = run(words)
    assert (code, err.count("\n")) == (2, 1)
    assert "kinds/TS_1.star exists without a record" in err
    Path("kinds/TS_1.star").unlink()
    Path("kinds/clusters").mkdir()
    Path("kinds/clusters/mine.txt").touch()
    code, _, err = run(f"{words} --overwrite")
    assert (code, err) == (2, "tomoloc: kinds/clusters/mine.txt would be lost; give another -o\n")


def test_what_has_changed_since_is_not_kept(run):
    words = "cluster emb/TS_1.zarr -o kinds"
    assert run(f"{words} --no-pictures")[0] == 0
    code, _, err = run(words)
    assert code == 2
    assert "pictures False, now True" in err
    embed = "embed TS_1.mrc -o emb --model blobs --threshold 0.5"
    assert run(f"{embed} --overwrite")[0] == 0
    code, _, err = run(f"{words} --no-pictures")
    assert code == 2
    assert "emb/TS_1.zarr is newer than what was made of it, kinds/targets.safetensors" in err
    os.utime("TS_1.mrc")
    code, _, err = run(embed)
    assert code == 2
    assert "TS_1.mrc is newer than what was made of it, emb/TS_1.zarr; choose" in err


def test_targets_find_the_same_particles(run):
    assert run("cluster emb/TS_1.zarr -o kinds --no-pictures")[0] == 0
    words = "pick embedding TS_2.mrc -o picks --model blobs --targets kinds/targets.safetensors"
    code, out, err = run(words)
    assert (code, out) == (0, ["picks/TS_2.star"]), err
    labels = set(read_table("picks/TS_2.star").particles.labels)
    assert labels <= {"cluster_1", "cluster_2"}


def test_info_knows_embeddings_and_targets(run):
    code, out, _ = run("info emb/TS_2.zarr")
    assert code == 0
    assert out[0] == "emb/TS_2.zarr: embedding"
    said = "\n".join(out)
    assert "43 x 36 x 21 points (x y z), 20 Å apart" in said
    assert "lacks           nothing" in said
    assert run("embed TS_2.mrc -o other --model blobs --candidates-only")[0] == 0
    Path("TS_2.mrc").unlink()
    said = "\n".join(run("info other/TS_2.zarr")[1])
    assert "20 Å apart, not kept" in said
    assert "no longer there" in said
    assert run("cluster emb/TS_1.zarr -o kinds --no-pictures")[0] == 0
    code, out, _ = run("info kinds/targets.safetensors")
    assert code == 0
    assert "cluster_1 (" in out[1]
    assert "cluster_2 (" in out[1]


def test_embeddings_of_different_models_do_not_go_together(run):
    save_model("others", make_blob_model(height=0.35, steepness=6.0))
    assert run("embed TS_2.mrc -o other --model others --threshold 0.5")[0] == 0
    code, _, err = run("cluster emb/TS_1.zarr other/TS_2.zarr -o kinds")
    assert code == 2
    assert "other/TS_2.zarr: vectors of model others:" in err
    assert err.count("\n") == 1
    shutil.copytree("blobs", "renamed")  # the same model may have another name
    assert run("embed TS_2.mrc -o other --model renamed --threshold 0.5 --overwrite")[0] == 0
    assert run("cluster emb/TS_1.zarr other/TS_2.zarr -o kinds --no-pictures")[0] == 0


def test_damaged_and_empty_embeddings(run):
    assert run("embed TS_1.mrc -o none --model blobs --threshold 0.999")[0] == 0
    code, _, err = run("cluster none/TS_1.zarr -o kinds")
    assert code == 2
    assert "hold no candidates" in err
    Path("emb/TS_1.zarr/candidates/vector/c/0/0").unlink()
    code, _, err = run("cluster emb/TS_1.zarr emb/TS_2.zarr -o kinds")
    assert code == 2
    assert "emb/TS_1.zarr is damaged: 1 of 1 chunks of vector are missing" in err
    assert not Path("kinds").exists()


def test_pictures_do_without_a_tomogram_that_has_moved(run):
    assert run("embed TS_1.mrc -o here --model blobs --threshold 0.5")[0] == 0
    Path("TS_1.mrc").rename("elsewhere.mrc")
    code, _, err = run("cluster here/TS_1.zarr emb/TS_2.zarr -o kinds")
    assert code == 0
    assert err.count("no pictures of particles from 1 of 2 tomograms") == 1
    assert Path("kinds/clusters/cluster_2.png").exists()
    code, _, err = run("cluster here/TS_1.zarr -o alone")
    assert code == 0
    assert err.count("no pictures of particles") == 1
    assert Path("alone/umap.png").exists()
    assert not Path("alone/clusters.png").exists()
