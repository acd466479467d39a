"""Score maps of a run: saved beside its tables, and read again to pick anew."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from tomoloc.types import ScoreMap, Volume

__all__ = ["label_files", "read_scores", "score_files"]


def score_files(table: Path, scores: ScoreMap) -> Mapping[Path, Callable[[Path], None]]:
    """Name the files of a score map, and say how each of them is written.

    One MRC map for each label; where there are poses, another one with numbers of rotations, and
    these as quaternions xyzw, shape (n, 4), in a NumPy file.
    """
    files: dict[Path, Callable[[Path], None]] = {}
    for channel, word in enumerate(_words(scores.labels)):
        files[_file(table, word, "scores.mrc")] = partial(_write_map, scores, scores.data[channel])
        if scores.rotation_index is not None:
            # exact as float32 below 2^24, which is more than any sampling or search has
            index = scores.rotation_index[channel].astype(np.float32)
            files[_file(table, word, "poses.mrc")] = partial(_write_map, scores, index)
    if scores.rotations is not None:
        quaternions = scores.rotations.as_quat()
        files[_file(table, "", "rotations.npy")] = partial(_write_array, quaternions)
    return files


def label_files(
    table: Path, segments: Volume, *, legend: Sequence[str], tomogram: Volume
) -> Mapping[Path, Callable[[Path], None]]:
    """Name the files of a label volume, and say how each of them is written.

    The volume lies on the tomogram's own grid; a JSON file names the class of each value, as in a
    simulated sample.
    """
    names = {str(number): name for number, name in enumerate(legend, start=1)}
    text = json.dumps(names, indent=2, ensure_ascii=False) + "\n"

    def write(path: Path) -> None:
        from tomoloc.io.tomograms import write_volume
        from tomoloc.train.frames import nearest_values

        write_volume(tomogram.with_data(nearest_values(segments, tomogram)), path)

    return {
        _file(table, "", "labels.mrc"): write,
        _file(table, "", "labels.json"): lambda path: path.write_text(text, "utf-8"),
    }


def read_scores(table: Path, *, method: str) -> ScoreMap:
    """Read what a run with --save-scores has left beside a table.

    Raises
    ------
    ValueError
        If it left nothing, or was made by another method.
    """
    from tomoloc.io.tomograms import read_volume

    record = table.with_suffix(".run.toml")
    known = tomllib.loads(record.read_text("utf-8")) if record.is_file() else {}
    if "scores" not in known:
        raise ValueError(
            f"--from-scores needs {record} of a run with --save-scores; run that once, then again"
            " with --from-scores"
        )
    if known["method"]["name"] != method:
        raise ValueError(f"the scores of {record} are by pick {known['method']['name']}")
    labels = known["scores"]["labels"]
    words = _words(labels)
    maps = [read_volume(_file(table, word, "scores.mrc")) for word in words]
    rotations = index = None
    turns = _file(table, "", "rotations.npy")
    if turns.is_file():
        rotations = Rotation.from_quat(np.load(turns, allow_pickle=False))
        poses = [read_volume(_file(table, word, "poses.mrc")).data for word in words]
        index = np.stack([np.rint(data).astype(np.int32) for data in poses])
    return ScoreMap(
        data=np.stack([volume.data for volume in maps]),
        voxel_spacing=maps[0].voxel_spacing,
        origin=maps[0].origin,
        name=table.stem,
        labels=tuple(labels),
        rotations=rotations,
        rotation_index=index,
        diameter=known["scores"].get("diameter"),
    )


def _words(labels: Sequence[str]) -> list[str]:
    """Words for file names that labels differ by, without what no file's name may have."""
    if len(labels) == 1:
        return [""]
    plain = [re.sub(r'[\\/:*?"<>|]', "_", label) for label in labels]
    return [
        f"{name}_{number}" if plain.count(name) > 1 else name
        for number, name in enumerate(plain, start=1)
    ]


def _file(table: Path, word: str, ending: str) -> Path:
    return table.with_name(".".join(part for part in (table.stem, word, ending) if part))


def _write_map(scores: ScoreMap, data: np.ndarray, path: Path) -> None:
    from tomoloc.io.tomograms import write_volume

    grid = Volume(data=data, voxel_spacing=scores.voxel_spacing, origin=scores.origin)
    write_volume(grid, path)


def _write_array(values: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
