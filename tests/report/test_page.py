"""The report of a pick folder: counts, truth, what is missing, one self-contained file."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tomoloc.report.gather import read_runs
from tomoloc.report.page import Facts, Note, Page, Picture, Section, Table, write_page
from tomoloc.report.picks import report_picks


class Text(HTMLParser):
    """Collect cells, and check that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1].append(data)


def page_of(picked, **options) -> tuple[str, Text]:
    html = report_picks(picked.folder, **options).read_text("utf-8")
    text = Text(html)
    assert text.open == []
    return html, text


def row(text: Text, name: str) -> list[str]:
    return next(cells for cells in text.rows if cells[0] == name)


def test_page_counts_and_scores(picked):
    html, text = page_of(picked)
    assert "<h1>9 particles in 1 tomogram</h1>" in html
    # truth, picks, found, false, missed, precision, recall, F1
    assert row(text, "ball")[1:9] == ["10", "9", "8", "1", "2", "0.889", "0.800", "0.842"]
    assert row(text, "TS_7") == [
        "TS_7", "60 × 44 × 24", "12.50", "9", "-", "0.25", "10", "8", "1", "0.842", "1.8", "0.42",
        "cpu",
    ]  # fmt: skip
    assert "matches within 50 Å" in html
    assert "ball &lt;80S&gt;.mrc" in html
    assert "<dt>angular_step</dt><dd>12.5</dd>" in html


def test_page_needs_nothing_else(picked):
    html, text = page_of(picked)
    assert not re.search(r"https?:", html)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in text.links)
    assert "<script" not in html


def test_pictures_lie_beside_the_page(picked):
    page_of(picked)
    pictures = sorted(path.name for path in (picked.folder / "pictures").iterdir())
    assert pictures == [
        "TS_7_montage.png",
        "TS_7_slices.png",
        "precision_recall.png",
        "scores.png",
    ]
    for name in pictures:
        with Image.open(picked.folder / "pictures" / name) as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 100
    assert (picked.folder / "pictures" / "TS_7_slices.png").stat().st_size < 600_000


def test_same_input_gives_the_same_page(picked):
    assert page_of(picked)[0] == page_of(picked)[0]


def test_without_truth_there_are_no_scores(picked):
    (picked.sample / "particles.star").unlink()
    html, text = page_of(picked)
    assert "precision" not in html
    assert row(text, "TS_7")[3] == "9"


def test_truth_and_radius_can_be_given(picked):
    moved = picked.sample / "particles.star"
    moved = moved.rename(picked.sample / "truth.star")
    _, text = page_of(picked, truth=moved, radius=8)
    # Picks are off by half a voxel along each axis: 10.8 Å.
    assert row(text, "ball")[3] == "0"
    _, text = page_of(picked, truth=moved, radius=11)
    assert row(text, "ball")[3] == "8"


def test_a_missing_or_damaged_tomogram_is_said_so(picked, caplog):
    picked.tomogram.write_bytes(b"no tomogram")
    html, text = page_of(picked)
    assert "No pictures of this tomogram:" in html
    assert row(text, "ball")[3] == "8"
    picked.tomogram.unlink()
    html, text = page_of(picked)
    assert "TS_7.mrc is missing" in html
    assert row(text, "TS_7")[3] == "9"
    assert "no pictures" in caplog.text


def test_no_run_file(picked):
    (picked.folder / "TS_7.run.toml").unlink()
    html, text = page_of(picked)
    assert "No run files" in html
    assert row(text, "TS_7")[:6] == ["TS_7", "60 × 44 × 24", "12.50", "9", "-", "-"]


def test_unknown_diameter(picked):
    record = picked.folder / "TS_7.run.toml"
    record.write_text(record.read_text().replace("diameter = 100.0\n", ""))
    html, _ = page_of(picked)
    assert "give a radius to score" in html
    assert "a guess, as none was stated" in html
    assert "give a radius" not in page_of(picked, radius=50)[0]


def test_labels_that_do_not_fit(picked):
    truth = picked.sample / "particles.star"
    truth.write_text(truth.read_text().replace(" ball ", " cube "))
    html, _ = page_of(picked)
    assert "No scores: no label is common to both" in html


def test_several_tomograms(picked):
    """The second has no picks, the third no truth; all are counted, one is shown."""
    for name, rows in (("TS_8", []), ("TS_9", [(5, 6, 7, "ball", 0.5)])):
        (picked.folder / f"{name}.star").write_text(picked.star(name, rows))
    truth = picked.sample / "truth.star"
    rows = [(*center, "ball", 0) for center in picked.centers]
    truth.write_text(picked.star("TS_7.mrc", rows))
    other = picked.sample / "more"
    other.mkdir()
    (other / "a.star").write_text(truth.read_text())
    (other / "b.star").write_text(picked.star("TS_8_rec", rows[:3]))
    html, text = page_of(picked, truth=other, n_pictures=1)
    assert "<h1>10 particles in 3 tomograms</h1>" in html
    assert row(text, "ball")[1:6] == ["13", "9", "8", "1", "5"]
    assert [row(text, name)[6:10] for name in ("TS_7", "TS_8", "TS_9")] == [
        ["10", "8", "1", "0.842"],
        ["3", "0", "0", "0.000"],
        ["-", "-", "-", "-"],
    ]
    assert "95 % interval" in html
    assert "2 more tomograms are counted above but not shown" in html


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="holds no picks: expected"):
        report_picks(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        report_picks(tmp_path / "nowhere")


def test_blocks_escape_what_they_are_given(tmp_path):
    bad = '<b>&"'
    page = Page(
        title=bad,
        subtitle=bad,
        tiles=[(bad, bad)],
        sections=[
            Section(
                bad,
                [
                    Note(bad),
                    Facts([(bad, bad)]),
                    Table([bad], [[bad]], bad),
                    Picture("../x y", b"png", bad),
                ],
            )
        ],
    )
    html = write_page(page, tmp_path).read_text("utf-8")
    assert "<b>" not in html
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [".._x_y.png"]
    assert Text(html).open == []


def test_pictures_count_from_the_first_voxel_as_picks_do(picked):
    """An OME-Zarr image may lie anywhere; its picks are stated from its first voxel."""
    import zarr

    image = zarr.open_group(picked.sample / "TS_7.zarr", mode="w", zarr_format=2)
    image.create_array("0", data=picked.data)
    steps = [
        {"type": "scale", "scale": [12.5] * 3},
        {"type": "translation", "translation": [500] * 3},
    ]
    image.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"],
            "datasets": [{"path": "0", "coordinateTransformations": steps}],
        }
    ]
    record = picked.folder / "TS_7.run.toml"
    record.write_text(record.read_text().replace("TS_7.mrc", "TS_7.zarr"))
    (run,) = read_runs(picked.folder)
    tomogram = run.read_tomogram()
    assert tomogram.to_index(run.particles.position[0])[::-1] == pytest.approx(
        picked.centers[0] + 0.5
    )
