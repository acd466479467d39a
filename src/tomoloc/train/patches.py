"""What a network is shown: patches of samples, and what is true at each point of its grid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tomoloc.train.frames import STRIDE, frame, is_usable, learned_part, nearest_values
from tomoloc.types import FloatArray, Sample, Tomogram

__all__ = [
    "BACKGROUND",
    "OFF_CENTER",
    "Batch",
    "Patching",
    "Placed",
    "Prepared",
    "choose_start",
    "draw_batch",
    "label_number",
    "prepare",
]

IntArray = NDArray[np.integer]

BACKGROUND = 0
OFF_CENTER = -1
"""Numbers of what has no label: ice, and places in or near a particle but not at its centre."""

_HALF = (STRIDE - 1) / 2
_REACH = 3  # grid points around a centre that are near it


def label_number(label: str) -> int:
    """Turn a label into a number that is the same in every process and run, from 1 on."""
    digest = hashlib.blake2b(label.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (2**62) + 1


class Placed(Protocol):
    """A volume with places around which patches are laid."""

    @property
    def data(self) -> NDArray[Any]:
        """Voxels (z, y, x)."""

    @property
    def index(self) -> FloatArray:
        """Places zyx in voxels, shape (n, 3)."""

    @property
    def label(self) -> IntArray:
        """What is there, shape (n,)."""

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which places count, shape (n,)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """What is kept of a sample while it is trained on.

    Parameters
    ----------
    data : ndarray of float16, shape (z, y, x)
        Standardised, protein bright, at the model's voxel spacing; reflected at its borders where
        the tomogram is smaller than a patch.
    index : ndarray, shape (n, 3)
        Centres of particles, zyx in voxels.
    label : ndarray of int, shape (n,)
        `label_number` of each.
    usable : ndarray of bool, shape (n,)
        Whether enough of a particle lies in the volume to learn from it.
    matter : ndarray of uint8, shape (z / 2, y / 2, x / 2)
        What else is at each point of the grid: index into `kinds`, from 1; 0 for nothing.
    kinds : tuple of int
        `label_number` of membranes, filaments, gold and the like.
    inside : tuple of (int, int)
        First and last grid point, plus one, along z, y and x that belong to the tomogram itself.
    """

    data: NDArray[np.float16]
    index: FloatArray
    label: IntArray
    usable: NDArray[np.bool_]
    matter: NDArray[np.uint8]
    kinds: tuple[int, ...]
    inside: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Patching:
    """How batches are cut from samples.

    Parameters
    ----------
    number : int
        Patches of a batch; they come from samples that share labels where there are such.
    shape : tuple of int
        Voxels of a patch along z, y and x.
    center_radius, ring_radius : float
        Voxels around a centre that count as the particle, and that count as nothing.
    heat_sigma : float
        Of the Gaussian that stands for a centre, in voxels.
    margin : int
        Grid points at a patch's borders that are not learned from, as too little is seen there.
    points, background, matter : int
        At most so many points of each particle; so many of ice and as many beside centres in each
        patch; and at most so many of each kind of other matter in each patch.
    particles : int
        At most so many particles of a batch.
    positive : float
        Fraction of patches that are laid around a particle; the others lie anywhere.
    """

    number: int = 4
    shape: tuple[int, int, int] = (80, 80, 80)
    center_radius: float = 2.2
    ring_radius: float = 5.0
    heat_sigma: float = 2.0
    margin: int = 2
    points: int = 4
    background: int = 96
    matter: int = 48
    particles: int = 400
    positive: float = 0.8

    def __post_init__(self) -> None:
        if self.number < 1 or any(n < 16 or n % 8 for n in self.shape):
            raise ValueError(
                "a batch needs at least one patch with sides that are multiples of 8 from 16 on;"
                f" got {self.number} of {self.shape}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Patches, and what is true of them.

    Parameters
    ----------
    data : ndarray of float32, shape (b, z, y, x)
    heat : ndarray of float32, shape (b, z / 2, y / 2, x / 2)
        1 at centres of particles, falling off as a Gaussian.
    counts : ndarray of bool, shape of `heat`
        Where `heat` is known.
    point : ndarray of int, shape (m, 4)
        Patch and place zyx on the grid of the points whose embeddings are compared.
    label : ndarray of int, shape (m,)
        What is there: `label_number`, `BACKGROUND` or `OFF_CENTER`.
    instance : ndarray of int, shape (m,)
        Points of one particle share a number below `particles`; all others have their own.
    particles : int
    """

    data: NDArray[np.float32]
    heat: NDArray[np.float32]
    counts: NDArray[np.bool_]
    point: IntArray
    label: IntArray
    instance: IntArray
    particles: int


def prepare(sample: Sample, *, voxel_spacing: float, least: Sequence[int]) -> Prepared:
    """Bring a sample to what the network sees.

    Parameters
    ----------
    sample : Sample
        Protein dark. Without `labels`, all that is no particle counts as ice.
    voxel_spacing : float
        Of the model.
    least : sequence of int
        Voxels along z, y and x that the result has at least.

    Returns
    -------
    Prepared

    Raises
    ------
    ValueError
        If the tomogram is empty.
    """
    framed = frame(sample.tomogram, voxel_spacing=voxel_spacing, least=least)
    tomogram = framed.tomogram
    index = tomogram.to_index(sample.particles.position).reshape(-1, 3)
    names = np.asarray(sample.particles.label)
    numbers = {name: label_number(name) for name in sample.particles.labels}
    matter, kinds = _find_matter(sample, tomogram)
    return Prepared(
        data=framed.data,
        index=(index + framed.before).astype(np.float32),
        label=np.array([numbers[str(name)] for name in names], dtype=np.int64),
        usable=is_usable(sample),
        matter=np.pad(matter, [(a // STRIDE, (b + 1) // STRIDE) for a, b in framed.pads]),
        kinds=kinds,
        inside=tuple((low // STRIDE, high // STRIDE) for low, high in framed.inside),
    )


def _find_matter(sample: Sample, tomogram: Tomogram) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Look up what is neither ice nor particle at the grid points of a rescaled tomogram."""
    if sample.labels is None:
        return np.zeros(tuple(n // STRIDE for n in tomogram.shape), dtype=np.uint8), ()
    particles = set(sample.particles.labels)
    parts = set(sample.summary.get("parts", ()))
    others = {v: name for v, name in sample.legend.items() if name not in particles | parts}
    numbers = {name: i + 1 for i, name in enumerate(dict.fromkeys(others.values()))}
    table = np.zeros(max([*sample.legend, int(sample.labels.data.max())]) + 1, dtype=np.uint8)
    for value, name in others.items():
        table[value] = numbers[name]
    values = nearest_values(sample.labels, tomogram, stride=STRIDE, offset=_HALF)
    return table[values], tuple(label_number(n) for n in numbers)


def draw_batch(
    samples: Sequence[Prepared], *, patching: Patching, rng: np.random.Generator
) -> Batch:
    """Cut patches from samples that share labels, turned so that the missing wedge stays.

    All patches of a batch are mirrored or none is: a mirrored molecule is another one.

    Parameters
    ----------
    samples : sequence of Prepared
    patching : Patching
    rng : numpy.random.Generator

    Returns
    -------
    Batch
    """
    chosen = _choose_samples(samples, patching.number, rng)
    shared = _shared_labels([samples[i] for i in chosen])
    mirrored = bool(rng.integers(2))
    cuts = []
    for number in chosen:
        sample = samples[number]
        start = choose_start(sample, shared, patching, rng)
        cut = _cut(sample, start, patching)
        cuts.append(_turned(cut, rng, mirrored=mirrored))
    rows = [_choose_points(cut, patching, rng) for cut in cuts]
    return _join(cuts, rows, patching, rng)


def _choose_samples(
    samples: Sequence[Prepared], number: int, rng: np.random.Generator
) -> list[int]:
    """Choose one sample, and others that share the most labels with it."""
    first = int(rng.integers(len(samples)))
    labels = set(samples[first].label.tolist())
    common = np.array([len(labels.intersection(s.label.tolist())) for s in samples], dtype=float)
    common[first] = 0
    # A third of the labels is a kin: samples of one group differ in what is placed.
    kin = np.flatnonzero(common >= max(1.0, len(labels) / 3))
    others = rng.permutation(kin)[: number - 1].tolist()
    return (([first, *others]) * number)[:number]


def _shared_labels(samples: Sequence[Prepared]) -> IntArray:
    """Labels that at least two of the samples have, or else all."""
    labels = [np.unique(sample.label[sample.usable]) for sample in samples]
    values, counts = np.unique(np.concatenate(labels), return_counts=True)
    return values[counts > 1] if (counts > 1).any() else values


def choose_start(
    sample: Placed, shared: IntArray, patching: Patching, rng: np.random.Generator
) -> IntArray:
    """Choose a patch's first voxel: mostly so that a particle of a drawn label lies in it.

    Parameters
    ----------
    sample : Placed
    shared : ndarray of int
        Labels, as the sample has them; where the sample has none of them, a patch lies anywhere.
    patching : Patching
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int, shape (3,)
        zyx, multiples of `STRIDE`.
    """
    room = np.array(sample.data.shape, dtype=int) - np.array(patching.shape, dtype=int)
    start = rng.integers(0, room // STRIDE + 1) * STRIDE
    candidates = np.intersect1d(shared, sample.label[sample.usable])
    if len(candidates) and rng.random() < patching.positive:
        label = candidates[rng.integers(len(candidates))]
        rows = np.flatnonzero((sample.label == label) & sample.usable)
        center = sample.index[rows[rng.integers(len(rows))]]
        place = rng.uniform(0.2, 0.8, 3) * patching.shape
        start = np.rint((center - place) / STRIDE).astype(int) * STRIDE
    return np.clip(start, 0, room // STRIDE * STRIDE)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Cut:
    """A patch with its truth on the grid."""

    data: NDArray[np.float32]
    owner: IntArray  # row of the nearest particle, -1 if there is none within reach
    distance: NDArray[np.float32]  # to its centre, in voxels
    matter: NDArray[np.uint8]
    inside: NDArray[np.bool_]
    sample: Prepared


def _cut(sample: Prepared, start: IntArray, patching: Patching) -> _Cut:
    z, y, x = (slice(a, a + n) for a, n in zip(start, patching.shape, strict=True))
    grid = tuple(n // STRIDE for n in patching.shape)
    first = start // STRIDE
    gz, gy, gx = (slice(a, a + n) for a, n in zip(first, grid, strict=True))
    inside = np.zeros(grid, dtype=bool)
    inside[learned_part(sample.inside, first, grid, margin=patching.margin)] = True
    owner, distance = _nearest(sample.index - start, grid)
    return _Cut(
        data=sample.data[z, y, x].astype(np.float32),
        owner=owner,
        distance=distance,
        matter=sample.matter[gz, gy, gx],
        inside=inside,
        sample=sample,
    )


def _nearest(index: FloatArray, grid: tuple[int, ...]) -> tuple[IntArray, NDArray[np.float32]]:
    """Row of and distance to the nearest centre, at grid points within reach of one."""
    owner = np.full(grid, -1, dtype=np.int32)
    distance = np.full(grid, np.inf, dtype=np.float32)
    place = (index - _HALF) / STRIDE
    near = ((place > -_REACH) & (place < np.array(grid) + _REACH)).all(axis=1)
    rows = np.flatnonzero(near)
    steps = np.arange(-_REACH, _REACH + 1)
    window = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.rint(place[rows]).astype(int)[:, None] + window
    away = STRIDE * np.linalg.norm(points - place[rows][:, None], axis=-1)
    kept = ((points >= 0) & (points < np.array(grid))).all(axis=-1)
    flat = np.ravel_multi_index(tuple(points[kept].T), grid)
    away, who = away[kept], np.broadcast_to(rows[:, None], kept.shape)[kept]
    order = np.argsort(-away, kind="stable")  # the nearest is written last
    owner.reshape(-1)[flat[order]] = who[order]
    distance.reshape(-1)[flat[order]] = away[order]
    return owner, distance


def _turned(cut: _Cut, rng: np.random.Generator, *, mirrored: bool) -> _Cut:
    """Turn a patch by half a turn about an axis, or mirror it at a plane or the point."""
    flips = rng.integers(2, size=3).astype(bool)
    if bool(flips.sum() % 2) != mirrored:
        flips[0] = not flips[0]
    axes = tuple(np.flatnonzero(flips).tolist())
    return _Cut(
        data=np.flip(cut.data, axes),
        owner=np.flip(cut.owner, axes),
        distance=np.flip(cut.distance, axes),
        matter=np.flip(cut.matter, axes),
        inside=np.flip(cut.inside, axes),
        sample=cut.sample,
    )


def _choose_points(
    cut: _Cut, patching: Patching, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Choose the points to compare: (flat place, label, row of a particle or -1)."""
    owner, distance = cut.owner.reshape(-1), cut.distance.reshape(-1)
    inside, matter = cut.inside.reshape(-1), cut.matter.reshape(-1)
    known = np.append(cut.sample.usable, True)[owner]  # the last is for owner -1
    chosen: list[tuple[int, int, int]] = []
    at_center = rng.permutation(
        np.flatnonzero(inside & known & (distance <= patching.center_radius))
    )
    taken: dict[int, int] = {}
    for place in at_center.tolist():
        row = int(owner[place])
        if taken.setdefault(row, 0) < patching.points:
            taken[row] += 1
            chosen.append((place, int(cut.sample.label[row]), row))
    free = inside & (distance > patching.ring_radius)
    groups = [
        (OFF_CENTER, free & known & (owner >= 0), patching.background),
        (BACKGROUND, free & (owner < 0) & (matter == 0), patching.background),
        *(
            (number, free & (matter == i + 1), patching.matter)
            for i, number in enumerate(cut.sample.kinds)
        ),
    ]
    for label, where, limit in groups:
        places = np.flatnonzero(where)
        drawn = rng.choice(places, size=min(limit, len(places)), replace=False)
        chosen += [(place, label, -1) for place in drawn.tolist()]
    return chosen


def _join(
    cuts: Sequence[_Cut],
    rows: Sequence[list[tuple[int, int, int]]],
    patching: Patching,
    rng: np.random.Generator,
) -> Batch:
    """Put patches and points together, and number the particles."""
    grid = cuts[0].owner.shape
    table = np.array(
        [(i, *row) for i, group in enumerate(rows) for row in group], dtype=np.int64
    ).reshape(-1, 4)
    patch, place, label, owner = table.T
    particles = np.unique(table[owner >= 0][:, [0, 3]], axis=0)
    kept = rng.permutation(len(particles))[: patching.particles]
    numbers = {(int(a), int(b)): i for i, (a, b) in enumerate(particles[np.sort(kept)])}
    instance = np.array(
        [numbers.get((int(a), int(b)), -1) for a, b in zip(patch, owner, strict=True)],
        dtype=np.int64,
    )
    use = (owner < 0) | (instance >= 0)
    alone = np.flatnonzero(owner < 0)
    instance[alone] = len(particles) + np.arange(len(alone))
    heat = [np.exp(-0.5 * (cut.distance / patching.heat_sigma) ** 2) for cut in cuts]
    counts = []
    for cut in cuts:
        known = np.append(cut.sample.usable, True)[cut.owner]
        counts.append(cut.inside & (known | (cut.distance > patching.ring_radius)))
    return Batch(
        data=np.stack([cut.data for cut in cuts]),
        heat=np.stack(heat).astype(np.float32),
        counts=np.stack(counts),
        point=np.column_stack([patch, *np.unravel_index(place, grid)])[use],
        label=label[use],
        instance=instance[use],
        particles=len(particles),
    )
