"""Targets: what is written is read; what is damaged or of another model is said in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from tomoloc.io.targets import Targets, check_model, read_targets, write_targets

MODEL = "general:0123456789abcdef"


@pytest.fixture
def targets(rng):
    vectors = rng.standard_normal((3, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Targets(vectors=vectors, label=["b", "ä", "b"], model=MODEL, n_members=[4, 1, 2])


@pytest.fixture
def file(targets, tmp_path):
    write_targets(targets, tmp_path / "deep" / "targets.safetensors")
    return tmp_path / "deep" / "targets.safetensors"


def test_same_bytes_and_as_readable_as_any_file(targets, file):
    beside = file.with_name("plain")
    beside.touch()
    assert file.stat().st_mode == beside.stat().st_mode
    for _ in range(8):
        write_targets(targets, file.with_name("again.safetensors"))
        assert file.with_name("again.safetensors").read_bytes() == file.read_bytes()


def test_round_trip(targets, file):
    again = read_targets(file)
    assert again.vectors.dtype == np.float32
    np.testing.assert_array_equal(again.vectors, targets.vectors)
    assert again.label.tolist() == ["b", "ä", "b"]
    assert again.n_members.tolist() == [4, 1, 2]
    assert (again.model, again.labels, len(again)) == (MODEL, ["b", "ä"], 3)
    np.testing.assert_array_equal(again.of("b"), targets.vectors[[0, 2]])
    assert b"pickle" not in file.read_bytes()


def test_one_label_and_no_target(tmp_path):
    one = Targets(vectors=np.eye(4), label="x", model=MODEL)
    assert one.label.tolist() == ["x"] * 4
    assert one.n_members.tolist() == [1] * 4
    none = Targets(vectors=np.zeros((0, 4)), label="x", model=MODEL)
    write_targets(none, tmp_path / "none.safetensors")
    assert read_targets(tmp_path / "none.safetensors").vectors.shape == (0, 4)


def test_half_precision_will_do(targets):
    half = targets.vectors.astype(np.float16)
    assert len(Targets(vectors=half, label=targets.label, model=MODEL)) == 3


def test_wrong_targets():
    with pytest.raises(ValueError, match="target 2 must be of length 1; it is of 2"):
        Targets(vectors=[[0, 1], [2, 0]], label="x", model=MODEL)
    with pytest.raises(ValueError, match="target 1 must be of length 1; it is of nan"):
        Targets(vectors=[[0, np.nan]], label="x", model=MODEL)
    with pytest.raises(ValueError, match="label must have one entry for each of 2 targets"):
        Targets(vectors=np.eye(2), label=["x"], model=MODEL)
    with pytest.raises(ValueError, match=r"shape \(n, channels\)"):
        Targets(vectors=[0, 1], label="x", model=MODEL)


def test_older_files_are_kept_if_asked(targets, file):
    with pytest.raises(FileExistsError):
        write_targets(targets, file, overwrite=False)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of targets"):
        read_targets(tmp_path / "none")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_cut_files(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is damaged, or no file of targets") as caught:
        read_targets(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "tensors", "message"),
    [
        ({"kind": "x"}, {}, "holds no targets"),
        ({"format": "7"}, {}, "update tomoloc"),
        ({"label": [1, 2, 3]}, {}, "is damaged: label must be a list of strings"),
        ({"label": "["}, {}, "is damaged"),
        ({"label": ["a"]}, {}, "is damaged: label must have one entry for each of 3"),
        ({}, {"vectors": np.full((3, 5), np.nan, np.float32)}, "damaged: target 1 must be"),
        ({}, {"vectors": None}, "is damaged: it lacks 'vectors'"),
    ],
)
def test_files_of_something_else(file, change, tensors, message):
    with safetensors.safe_open(file, framework="numpy") as content:
        metadata = {**json.loads(content.metadata()["tomoloc"]), **change}
    held = {**safetensors.numpy.load_file(file), **tensors}
    held = {name: value for name, value in held.items() if value is not None}
    safetensors.numpy.save_file(held, file, {"tomoloc": json.dumps(metadata)})
    with pytest.raises(ValueError, match=message):
        read_targets(file)


def test_a_model_is_known_by_its_weights():
    check_model(MODEL, "copy:0123456789abcdef", what="x")
    with pytest.raises(ValueError, match=r"the targets: vectors of model general:.* to model b:0"):
        check_model(MODEL, "b:0", what="the targets")
