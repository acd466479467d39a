"""Where training has its samples from: mixtures in a stated ratio."""

from itertools import islice

import numpy as np
import pytest

from tomoloc.cli.sources import _Mixture, read_data
from tomoloc.io.samples import write_sample
from tomoloc.types import Particles, Sample, Tomogram, Volume


class Numbers:
    def __init__(self, name, number):
        self.name, self.number = name, number

    def __call__(self, start):
        while True:
            yield f"{self.name}{start}"
            start += 1


def make_sample(name, *, position=(20, 20, 20), labels=True):
    data = np.random.default_rng(0).normal(size=(8, 10, 12)).astype(np.float32)
    return Sample(
        tomogram=Tomogram(data=data, voxel_spacing=10.0, name=name),
        particles=Particles(position=[position], label="ball", tomogram=name),
        labels=Volume(data=np.ones((8, 10, 12), np.int16), voxel_spacing=10.0) if labels else None,
        legend={1: "ball"} if labels else {},
    )


@pytest.fixture
def folders(tmp_path):
    for name in ("sim/a", "sim/b", "sim/c", "sim/d", "real/one"):
        write_sample(make_sample(name.rpartition("/")[2]), tmp_path / name)
    return tmp_path


def test_mixtures_keep_their_ratio_and_go_on_anywhere():
    mixture = _Mixture([Numbers("a", 4), Numbers("b", 1), Numbers("c", 5)], [3, 1, 2])
    whole = list(islice(mixture(0), 24))
    assert whole[:6] == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert [sum(one[0] == name for one in whole) for name in "abc"] == [12, 4, 8]
    for start in range(1, 14):
        assert list(islice(mixture(start), 10)) == whole[start : start + 10]
    # All five of c have been seen after three turns.
    assert mixture.number == 18
    seen = set(whole[:18])
    assert {"c0", "c1", "c2", "c3", "c4", "a3"} <= seen


def names(data, n):
    return [sample.tomogram.name for sample in islice(data.source(0), n)]


def test_data_are_taken_in_a_ratio(folders):
    words = [str(folders / "sim"), str(folders / "real")]
    data = read_data(words, words[:1], seed=0, jobs=0, apart=False, ratio=[2, 1])
    found = names(data, 12)
    assert found.count("one") == 4
    assert set(found) == {"a", "b", "c", "d", "one"}
    assert data.number == 6
    # a source of one sample is not held out
    data = read_data(words, None, seed=0, jobs=0, apart=False, ratio=[1, 1])
    assert [sample.tomogram.name for sample in data.held_out] == ["d", "b"]
    assert names(data, 4).count("one") == 2


def test_without_a_ratio_all_folders_are_one_source(folders):
    words = [str(folders / "sim"), str(folders / "real")]
    annotated = [make_sample("marked")]
    data = read_data(words, words[:1], seed=0, jobs=0, apart=False, annotated=annotated)
    found = names(data, 10)
    assert found[1::2] == ["marked"] * 5
    assert sorted(found[::2]) == ["a", "b", "c", "d", "one"]
    assert data.number == 10  # so that a ring of them holds all


@pytest.mark.parametrize("ratio", [[1], [1, 0], [1, 2, 3]])
def test_wrong_ratios_are_refused(folders, ratio):
    words = [str(folders / "sim"), str(folders / "real")]
    with pytest.raises(ValueError, match="--ratio needs 2 whole numbers from 1 on"):
        read_data(words, None, seed=0, jobs=0, apart=False, ratio=ratio)


def test_particles_outside_a_tomogram_without_label_volume(tmp_path):
    folder = tmp_path / "lost"
    write_sample(make_sample("lost", position=(20, 500, 20), labels=False), folder)
    with pytest.raises(ValueError, match=r"particle 1 at \(20, 500, 20\) Å lies outside tomogram"):
        names(read_data([str(folder)], None, seed=0, jobs=0, apart=False), 1)
