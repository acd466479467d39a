"""Placement of proteins through and on lipid bilayers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tomoloc.physics.rotations import turn_to
from tomoloc.simulate.bilayers import Bilayer
from tomoloc.simulate.packing import Packing
from tomoloc.simulate.placing import TAKEN, Body, Space, is_free, own_stream, turn_body
from tomoloc.simulate.references import Reference
from tomoloc.simulate.room import NO_ICE, Room
from tomoloc.simulate.settings import Species
from tomoloc.types import FloatArray

__all__ = ["place_membrane_proteins"]

_LIPID = 64  # bit of the state of the bilayer in which a protein is to lie
_BILAYERS_TRIED = 8  # in proportion to their area, for one protein
_PLACES_TRIED = 24  # on each
_PROBES = 600  # points of an envelope by which it is pressed to a bilayer


def place_membrane_proteins(
    references: Sequence[Sequence[Reference]],
    counts: Sequence[int],
    *,
    species: Sequence[Species],
    bilayers: Sequence[Bilayer],
    room: Room,
    rng: np.random.Generator,
    clearance: float = 0.0,
    border: Literal["inside", "cut"] = "cut",
) -> Packing:
    """Place proteins at bilayers without overlap, evenly over their area, and take their room.

    Those in the "membrane" stand along the outward normal, as the z axis of their structure's
    own frame, whose plane z = 0 lies in the middle of the bilayer; all turns about the normal
    are as likely. Those "outside" or "inside", turned at random, touch the head groups of that
    leaflet. Lower layers and larger species go first.

    Parameters
    ----------
    references : sequence of sequence of Reference
        Variants of each species, rendered for the room's voxel spacing.
    counts : sequence of int
        Wanted number of each species; those of other locations are left to others.
    species : sequence of Species
        Their `location`, `membrane` and `layer` count.
    bilayers : sequence of Bilayer
        In the room already.
    room : Room
        Changed in place.
    rng : numpy.random.Generator
    clearance : float
        Least distance between proteins, in Å.
    border : {"inside", "cut"}
        Whether proteins lie wholly inside along x and y, or only their centres must.

    Returns
    -------
    Packing
        `container` is the index among `bilayers`. Where no place is found for a protein, its
        species ends.
    """
    at_membranes = [item.location in ("membrane", "outside", "inside") for item in species]
    asked = np.where(at_membranes, counts, 0).astype(int)
    used = [r for group, n in zip(references, asked, strict=True) if n for r in group]
    reach = max((float(np.linalg.norm(r.points, axis=1).max()) for r in used), default=0.0)
    space = Space(
        room=room,
        reach=int(reach / room.voxel_spacing) + 6,
        cut=border == "cut",
        clearance=clearance,
    )
    sites = [_make_site(bilayer, space, rng) for bilayer in bilayers] if used else []
    volumes = np.array([np.mean([r.volume for r in group]) for group in references])
    kinds = [kind for kind in range(len(species)) if asked[kind]]
    kinds.sort(key=lambda kind: (species[kind].layer, -volumes[kind]))
    placer = _Placer(space=space, rng=rng, sites=sites, rows=[])
    for kind in kinds:
        item = species[kind]
        group = [i for i, b in enumerate(bilayers) if item.membrane in ("", b.label)]
        for _ in range(asked[kind]):
            if not placer.place(kind, references[kind], item.location, group):
                break
    space.update_room()
    return placer.packing(asked)


@dataclass(eq=False, kw_only=True)
class _Site:
    """A bilayer as proteins see it: points spread over it, and the voxels that are lipid still."""

    bilayer: Bilayer
    position: FloatArray
    normal: FloatArray
    lipids: NDArray[np.int64]


def _make_site(bilayer: Bilayer, space: Space, rng: np.random.Generator) -> _Site:
    room, grid = space.room, space.room.grid
    position, normal = bilayer.sample(rng, density=1 / room.voxel_spacing**2)
    inside = grid.contains(position)
    z, y, x = np.rint(grid.to_index(position[inside])).astype(int).T
    inside[inside] = room.compartment[z, y, x] != NO_ICE
    box, distance = bilayer.distance(grid, reach=bilayer.half_width + 1)
    own = (np.abs(distance) <= bilayer.half_width) & room.occupied[box]
    corner = np.array([part.start for part in box]) + space.rim
    return _Site(
        bilayer=bilayer,
        position=position[inside],
        normal=normal[inside],
        lipids=space.flat(np.argwhere(own) + corner),
    )


@dataclass(eq=False, kw_only=True)
class _Placer:
    """Places protein after protein and keeps the account."""

    space: Space
    rng: np.random.Generator
    sites: list[_Site]
    rows: list[tuple[int, int, int, FloatArray, FloatArray, float, float]]

    def place(
        self, kind: int, variants: Sequence[Reference], location: str, group: list[int]
    ) -> bool:
        """Place one protein at one of a group of bilayers; tell whether it found a place."""
        area = np.array([len(self.sites[i].position) for i in group], dtype=float)
        if area.sum() == 0:
            return False
        rng = own_stream(self.rng)
        for which in rng.choice(group, size=_BILAYERS_TRIED, p=area / area.sum()):
            conformer = int(rng.integers(len(variants)))
            found = self._find(variants[conformer], self.sites[which], location, rng)
            if found is not None:
                body, voxel = found
                visible = self.space.visible(body, voxel)
                center = voxel[::-1] + body.shift
                volume = variants[conformer].volume * visible
                self.rows.append(
                    (kind, conformer, int(which), center, body.rotation, visible, volume)
                )
                return True
        return False

    def packing(self, asked: NDArray[np.integer]) -> Packing:
        """Return what has been placed."""
        n, room = len(self.rows), self.space.room
        species = np.array([row[0] for row in self.rows], dtype=int)
        ice = room.size()
        return Packing(
            position=np.array([row[3] for row in self.rows]).reshape(n, 3) * room.voxel_spacing,
            rotation=Rotation.from_matrix(np.array([row[4] for row in self.rows]).reshape(n, 3, 3)),
            species=species,
            conformer=np.array([row[1] for row in self.rows], dtype=int),
            container=np.array([row[2] for row in self.rows], dtype=int),
            visible=np.array([row[5] for row in self.rows], dtype=float),
            asked=asked,
            placed=np.bincount(species, minlength=len(asked)),
            fraction=sum(row[6] for row in self.rows) / ice if ice else 0.0,
        )

    def _find(
        self, reference: Reference, site: _Site, location: str, rng: np.random.Generator
    ) -> tuple[Body, NDArray[np.integer]] | None:
        """Find a place on a bilayer and take it: the body, and the voxel zyx of its centre."""
        space, line = self.space, self.space.state.reshape(-1)
        allowed = space.allowed("anywhere") | _LIPID
        # Its lipids make way for a protein; all else that is there does not.
        line[site.lipids] = _LIPID
        found = None
        for row in rng.integers(len(site.position), size=_PLACES_TRIED):
            position, normal = site.position[row], site.normal[row]
            if location == "membrane":
                spin = float(rng.uniform(0, 2 * np.pi))
                rotation = turn_to(normal[None], spin=spin)[0].as_matrix()
                center = position + normal * reference.center[2]
            else:
                rotation = Rotation.random(rng=rng).as_matrix()
                side = 1 if location == "outside" else -1
                points = reference.points @ rotation.T
                center = _press(points, site.bilayer, position, normal, side)
            place = center / space.room.voxel_spacing
            voxel = np.rint(place[::-1]).astype(np.int64)
            if not ((voxel >= 0) & (voxel < space.room.shape)).all():
                continue
            body = turn_body(
                reference,
                rotation=rotation,
                shift=place - voxel[::-1],
                voxel_spacing=space.room.voxel_spacing,
                rng=rng,
            )
            base = int(space.flat(voxel + space.rim))
            if is_free(line, base, space.flat(body.voxels), allowed):
                space.stamp(body, voxel)
                found = body, voxel
                break
        site.lipids = site.lipids[line[site.lipids] == _LIPID]
        line[site.lipids] = TAKEN
        return found


def _press(
    points: FloatArray, bilayer: Bilayer, position: FloatArray, normal: FloatArray, side: int
) -> FloatArray:
    """Centre at which a turned molecule, outside (1) or inside (-1), touches the head groups.

    Its points, about its centre, are moved along the normal through a position of the surface.
    """
    points = points[:: max(len(points) // _PROBES, 1)]
    height = bilayer.half_width - float((points @ normal * side).min())
    # So it is at a plane; beside a bent bilayer another of the points may be the nearest.
    for _ in range(4):
        center = position + side * height * normal
        gap = float((side * bilayer.level(points + center)[0]).min()) - bilayer.half_width
        if abs(gap) < 1:
            break
        height -= gap
    return position + side * height * normal
