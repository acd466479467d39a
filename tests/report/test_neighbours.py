"""Neighbours and clusters, by hand."""

from types import SimpleNamespace

import numpy as np

from tomoloc.report.neighbours import find_groups, make_section, nearest_distances
from tomoloc.report.picks import report_picks
from tomoloc.types import Particles

# A row of four, 300 Å apart, one alone far away, and two near each other.
PLACES = np.array(
    [[0, 0, 0], [300, 0, 0], [600, 0, 0], [900, 0, 0], [9000, 0, 0], [0, 5000, 0], [0, 5100, 0]]
)


def test_distances_to_the_nearest():
    expected = [300, 300, 300, 300, 8100, 100, 100]
    np.testing.assert_allclose(nearest_distances(PLACES), expected)
    assert len(nearest_distances(PLACES[:1])) == 0
    assert len(nearest_distances(np.zeros((0, 3)))) == 0


def test_clusters():
    assert find_groups(PLACES).tolist() == [0, 0, 0, 0, -1, -1, -1]
    assert find_groups(PLACES, least=2).tolist() == [0, 0, 0, 0, -1, 1, 1]
    assert find_groups(PLACES, reach=250).tolist() == [-1] * 7
    assert find_groups(np.zeros((0, 3))).tolist() == []


def run(particles):
    return SimpleNamespace(particles=particles)


def test_the_section_counts_tomograms_apart():
    one = Particles(position=PLACES, label="ribosome")
    # The same places in another tomogram are no neighbours of them.
    table, note = make_section([run(one), run(one[:4])]).blocks
    (row,) = table.rows
    assert [*row[:3], *row[4:]] == ["ribosome", "11", "30.0", "2", "8", "4"]
    low, high = (float(word) for word in row[3].split(" to "))
    distance = [*nearest_distances(PLACES), 300, 300, 300, 300]
    np.testing.assert_allclose([low, high], np.percentile(distance, [5, 95]) / 10, atol=0.06)
    assert "50 nm" in note.text


def test_filaments_are_measured_and_no_neighbours():
    points = Particles(
        position=np.column_stack([np.arange(8) * 40.0, np.zeros(8), np.zeros(8)]),
        label="actin",
        extra={
            "tomolocFilament": [1] * 5 + [2] * 3,
            "tomolocArcLength": [0, 40, 80, 120, 160, 0, 40, 80],
        },
    )
    (table,) = make_section([run(points)]).blocks
    assert table.rows == [["actin", "2", "24", "12"]]
    both = Particles.concatenate(
        [points, Particles(position=PLACES, label="ball", extra={
            "tomolocFilament": np.zeros(7, int), "tomolocArcLength": np.zeros(7)})]
    )  # fmt: skip
    section = make_section([run(both)])
    particles, _, filaments = section.blocks
    assert (particles.rows[0][0], filaments.rows[0][0]) == ("ball", "actin")


def test_nothing_to_tell():
    assert make_section([run(Particles(position=PLACES[:1], label="a"))]) is None
    assert make_section([run(Particles(position=np.zeros((0, 3))))]) is None


def test_the_page_has_the_section(picked):
    text = report_picks(picked.folder).read_text("utf-8")
    assert "Neighbours" in text
    assert "nearest: median (nm)" in text
