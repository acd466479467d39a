"""Placement of particles that do not overlap, at random or touching each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tomoloc.simulate.placing import Body, Space, draw_body, own_stream
from tomoloc.simulate.references import Reference
from tomoloc.simulate.room import Room
from tomoloc.simulate.tetris import Cluster
from tomoloc.types import FloatArray

__all__ = ["Packing", "pack"]

_ORIENTATIONS = 20  # tried before a particle is given up


@dataclass(frozen=True, eq=False, kw_only=True)
class Packing:
    """Where particles lie.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        Centres xyz, voxel 0 being the origin.
    rotation : Rotation of length n
        Reference to tomogram, uniform over all orientations that fit.
    species : ndarray of int, shape (n,)
        Index of each particle's species.
    conformer : ndarray of int, shape (n,)
        Index among the variants of its species.
    container : ndarray of int, shape (n,)
        Bilayer that a membrane protein sits in or on; -1 for others.
    visible : ndarray, shape (n,)
        Fraction of each particle's envelope inside the volume.
    asked, placed : ndarray of int, shape (n species,)
    fraction : float
        Of the ice that envelopes take.
    """

    position: FloatArray
    rotation: Rotation
    species: NDArray[np.integer]
    conformer: NDArray[np.integer]
    container: NDArray[np.integer]
    visible: FloatArray
    asked: NDArray[np.integer]
    placed: NDArray[np.integer]
    fraction: float

    @classmethod
    def concatenate(cls, packings: Sequence[Packing]) -> Packing:
        """Join packings of the same species and the same ice.

        Raises
        ------
        ValueError
            If there are none, or they differ in their number of species.
        """
        if len({len(packing.asked) for packing in packings}) != 1:
            raise ValueError("expected one or more packings of the same species to join")
        quaternions = np.concatenate([p.rotation.as_quat().reshape(-1, 4) for p in packings])
        return cls(
            position=np.concatenate([p.position for p in packings]),
            rotation=Rotation.from_quat(quaternions),
            species=np.concatenate([p.species for p in packings]),
            conformer=np.concatenate([p.conformer for p in packings]),
            container=np.concatenate([p.container for p in packings]),
            visible=np.concatenate([p.visible for p in packings]),
            asked=np.sum([p.asked for p in packings], axis=0),
            placed=np.sum([p.placed for p in packings], axis=0),
            fraction=float(sum(p.fraction for p in packings)),
        )


def pack(
    references: Sequence[Sequence[Reference]],
    counts: Sequence[float],
    *,
    room: Room,
    rng: np.random.Generator,
    locations: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    clearance: float = 0.0,
    border: Literal["inside", "cut"] = "inside",
    method: str = "random",
    fraction: float | None = None,
) -> Packing:
    """Place particles, turned at random, without overlap, and take their places in the room.

    An orientation is drawn for each particle, then places are searched for it, so crowding does
    not favour any orientation. All voxels of a particle lie in its location, and none where
    something is already. A particle that finds no place in 20 orientations ends its species:
    `Packing.placed` is then less than `Packing.asked`.

    Parameters
    ----------
    references : sequence of sequences of Reference
        Variants of each species, rendered for the room's voxel spacing; each particle is one of
        them, drawn evenly.
    counts : sequence of float
        Wanted number of each species; with `fraction`, the proportions of these numbers.
    room : Room
        Changed in place.
    rng : numpy.random.Generator
    locations : sequence of {"anywhere", "cytosol", "lumen", "interface"}, optional
        Of each species; "anywhere" by default. At the interface, a particle touches the upper or
        lower surface of the ice.
    layers : sequence of int, optional
        Species of lower layers are placed first; all in one layer by default.
    clearance : float
        Least distance between particles, in Å; with 0 they may touch.
    border : {"inside", "cut"}
        Whether particles lie wholly inside along x and y, or only their centres must.
    method : {"random", "tetris"}
        Anywhere, the larger species of a layer first; or each touching what is there, in random
        order (`tomoloc.simulate.tetris.Cluster`).
    fraction : float, optional
        Go on until particles take this fraction of the ice, or none finds a place. Where the ice
        gets too crowded for some species, the others make up for them.

    Raises
    ------
    ValueError
        If a wanted particle is too large for the ice of a room in which nothing lies, or a
        location or method is unknown.
    """
    locations = list(locations or ["anywhere"] * len(references))
    _check(locations, method)
    ranks = np.array(layers if layers is not None else [0] * len(references), dtype=int)
    reach = _reach(references, counts) / room.voxel_spacing
    space = Space(room=room, reach=int(reach) + 6, cut=border == "cut", clearance=clearance)
    packer = _Packer(
        references=references,
        locations=locations,
        space=space,
        rng=rng,
        cluster=Cluster(space) if method == "tetris" else None,
    )
    wanted = np.array(counts, dtype=float)
    if fraction is None:
        asked = wanted.astype(int)
        packer.place_layers(asked, ranks)
    else:
        asked = packer.fill(wanted, ranks, fraction * room.size())
    space.update_room()
    return packer.packing(asked)


class _Packer:
    """Places particle after particle and keeps the account."""

    def __init__(
        self,
        *,
        references: Sequence[Sequence[Reference]],
        locations: Sequence[str],
        space: Space,
        rng: np.random.Generator,
        cluster: Cluster | None,
    ) -> None:
        self.references = references
        self.locations = locations
        self.space = space
        self.rng = rng
        self.cluster = cluster
        self.volumes = np.array([np.mean([r.volume for r in group]) for group in references])
        self.ended = np.zeros(len(references), dtype=bool)
        self.taken = 0.0
        self.was_empty = not space.room.occupied.any()
        self.rows: list[tuple[int, int, FloatArray, FloatArray, float]] = []

    def place_layers(self, counts: NDArray[np.integer], ranks: NDArray[np.integer]) -> None:
        """Place so many of each species, layer by layer."""
        for rank in np.unique(ranks):
            kinds = np.flatnonzero(ranks == rank)
            kinds = kinds[np.argsort(-self.volumes[kinds], kind="stable")]
            order = np.repeat(kinds, counts[kinds])
            if self.cluster is not None:
                order = self.rng.permutation(order)
            for kind in order:
                if not self.ended[kind]:
                    self.ended[kind] = not self._place(int(kind))

    def fill(
        self, proportions: FloatArray, ranks: NDArray[np.integer], volume: float
    ) -> NDArray[np.integer]:
        """Place species in proportion until they take a volume, and tell how many that asks for."""
        asked = np.zeros(len(proportions), dtype=int)
        while True:
            share = np.where(self.ended, 0.0, proportions)
            each = float(share @ self.volumes)
            missing = volume - self.taken
            if each == 0 or missing < 0.5 * each / share.sum():
                return asked
            ideal = share * (missing / each)
            # Rounded by chance, so that rare species come, too.
            counts = (ideal + self.rng.random(len(ideal))).astype(int)
            if not asked.any():
                asked = counts
            self.place_layers(counts, ranks)

    def packing(self, asked: NDArray[np.integer]) -> Packing:
        """Return what has been placed."""
        n, spacing = len(self.rows), self.space.room.voxel_spacing
        species = np.array([row[0] for row in self.rows], dtype=int)
        ice = self.space.room.size()
        return Packing(
            position=np.array([row[2] for row in self.rows]).reshape(n, 3) * spacing,
            rotation=Rotation.from_matrix(np.array([row[3] for row in self.rows]).reshape(n, 3, 3)),
            species=species,
            conformer=np.array([row[1] for row in self.rows], dtype=int),
            container=np.full(n, -1),
            visible=np.array([row[4] for row in self.rows], dtype=float),
            asked=asked,
            placed=np.bincount(species, minlength=len(self.references)),
            fraction=self.taken / ice if ice else 0.0,
        )

    def _place(self, kind: int) -> bool:
        variants, rng = self.references[kind], own_stream(self.rng)
        for _ in range(_ORIENTATIONS):
            conformer = int(rng.integers(len(variants)))
            reference, spacing = variants[conformer], self.space.room.voxel_spacing
            body = draw_body(reference, voxel_spacing=spacing, rng=rng)
            voxel = self._find(body, self.locations[kind], rng)
            if voxel is None:
                continue
            self.space.stamp(body, voxel)
            visible = self.space.visible(body, voxel)
            self.taken += reference.volume * visible
            self.rows.append((kind, conformer, voxel[::-1] + body.shift, body.rotation, visible))
            return True
        if self.was_empty and not self.rows:
            self._refuse(kind)
        return False

    def _find(
        self, body: Body, location: str, rng: np.random.Generator
    ) -> NDArray[np.integer] | None:
        if location == "interface":
            voxel = self.space.find_on_surface(body, rng=rng)
        else:
            voxel = self.cluster.find(body, location) if self.cluster else None
            if voxel is None:
                voxel = self.space.find(body, location, rng=rng)
        if voxel is not None and self.cluster:
            self.cluster.grow(body, voxel)
        return voxel

    def _refuse(self, kind: int) -> None:
        """Tell that a particle is too large for an empty room, if there is such a room."""
        low, high = self.space.extent(self.locations[kind])
        if (high < low).any():
            return
        room = " x ".join(
            f"{n * self.space.room.voxel_spacing:.0f}" for n in (high - low + 1)[::-1]
        )
        raise ValueError(
            f"{self.references[kind][0].potential.name or 'a particle'} does not fit into the ice"
            f" of {room} Å (xyz) in any orientation tried; enlarge the volume or the ice"
        )


def _check(locations: Sequence[str], method: str) -> None:
    known = ("anywhere", "cytosol", "lumen", "interface")
    for location in locations:
        if location not in known:
            raise ValueError(f"expected a location among {', '.join(known)}; got {location!r}")
    if method not in ("random", "tetris"):
        raise ValueError(f"method must be random or tetris; got {method!r}")


def _reach(references: Sequence[Sequence[Reference]], counts: Sequence[float]) -> float:
    """Radius in Å of the largest ball about the centre of any particle."""
    wanted = (r for group, count in zip(references, counts, strict=True) if count for r in group)
    return max((float(np.linalg.norm(r.points, axis=1).max()) for r in wanted), default=0.0)
