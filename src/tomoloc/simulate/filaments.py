"""Filaments: worm-like chains of subunits on a helix, alone, in bundles and in networks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from tomoloc.physics.potential import MOLECULAR_SURFACE
from tomoloc.simulate.helices import Helix, find_helix, make_subunit
from tomoloc.simulate.references import Reference, add_particles
from tomoloc.simulate.room import Room
from tomoloc.simulate.settings import Filaments, Number
from tomoloc.types import FloatArray, Volume

__all__ = ["Filament", "add_filaments", "draw_filaments", "make_subunit"]

logger = logging.getLogger(__name__)

# What is taken, the compartments, and which of these are allowed.
_Space = tuple[NDArray[np.bool_], NDArray[np.uint8], NDArray[np.bool_]]

_TRIES = 1000  # places and directions for one filament or bundle
_ANCHORS = 4096  # points among which those in free ice are found
_SHORTEST = 4.0  # diameters that a filament which ends at an obstacle is long at least
_BUNDLE_SPACING = 1.3  # diameters between neighbours
_BRANCH_ANGLE, _BRANCH_SPREAD = 70.0, 7.0  # degrees: Mullins 1998, doi:10.1073/pnas.95.11.6181
_BRANCH_TRIES = 400
_WALKING, _LEFT, _BLOCKED = 0, 1, 2
_HALF_DIAGONAL = np.sqrt(3) / 2  # of a voxel: a point and the centre of its voxel may differ so


@dataclass(frozen=True, eq=False, kw_only=True)
class Filament:
    """The subunits of one filament that show in the volume, from its minus end on.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        Points xyz of the centreline, at the height of each subunit's centre.
    rotation : Rotation of length n
        Takes z to the tangent, towards the plus (barbed) end, and x to the subunit.
    arc_length : ndarray, shape (n,)
        Of each point, from where the filament begins, be it outside the volume.
    bundle : int
        Number of the bundle it belongs to, or -1.
    parent : int
        Index of the filament that it branches off, or -1.
    """

    position: FloatArray
    rotation: Rotation
    arc_length: FloatArray
    bundle: int = -1
    parent: int = -1

    def __len__(self) -> int:
        return len(self.position)


def draw_filaments(
    settings: Filaments,
    *,
    reference: Reference,
    room: Room,
    rng: np.random.Generator,
    clearance: float = 0.0,
) -> list[Filament]:
    """Draw the courses of filaments through free ice, and mark the room they take.

    A course is a worm-like chain [1]_: its direction diffuses so that the cosine between two
    tangents falls as exp(-s / persistence length). Its frame is carried along without turning
    about the tangent; the helix turns in that frame. Courses are proposed in any place and
    direction of the location, and taken where a tube about the filament lies in free ice. They
    may leave the volume through its sides along x and y. Without a `length`, one that fits from
    side to side is sought first; where there is none, the longest that ends at an obstacle.

    In a bundle all filaments are parallel and point the same way. In a network, each filament
    begins beside an earlier one, at 70 degrees to its direction, as actin does at Arp2/3.

    Parameters
    ----------
    settings : Filaments
        Of a resolved recipe.
    reference : Reference
        Of the subunit that `make_subunit` gives.
    room : Room
        Changed in place: the tubes become occupied.
    rng : numpy.random.Generator
    clearance : float
        Least distance to what is placed later.

    Returns
    -------
    list of Filament
        Fewer than asked for, with a warning in the log, where there is no room.

    References
    ----------
    .. [1] Kratky & Porod, Recl. Trav. Chim. Pays-Bas 68 (1949), doi:10.1002/recl.19490681203.
    """
    count = int(_number(settings.count))
    drawing = _Drawing(settings, reference, room, rng, clearance)
    filaments: list[Filament] = []
    for number in range(count):
        members: list[Filament] = []
        if settings.arrangement == "network" and filaments:
            members = drawing.branch(filaments)
        members = members or drawing.start()
        if not members:
            logger.warning("%s: room for %d of %d filaments", settings.name, number, count)
            break
        bundle = number if settings.arrangement == "bundle" else -1
        filaments += [replace(member, bundle=bundle) for member in members]
    return filaments


def add_filaments(
    density: FloatArray,
    instances: NDArray[np.integer],
    filaments: list[Filament],
    *,
    reference: Reference,
    voxel_spacing: float,
    first: int,
    labels: NDArray[np.uint16] | None = None,
    label_values: NDArray[np.integer] | None = None,
) -> None:
    """Add filaments to a density, in place, and number the voxels they take.

    Between subunits, where none reaches the potential of a molecule's surface but their sum does,
    voxels are those of the nearest subunit.

    Parameters
    ----------
    density : ndarray of float32, shape (z, y, x)
    instances : ndarray of int, shape (z, y, x)
        Voxels that are not 0 keep their value, and their label.
    filaments : list of Filament
    reference : Reference
        Of their subunit.
    voxel_spacing : float
    first : int
        Instance number of the first filament; the others have those that follow.
    labels : ndarray of uint16, shape (z, y, x), optional
    label_values : ndarray of int, optional
        Label of the filament, then those of the subunit's parts.
    """
    if not filaments:
        return
    radial = np.array([np.hypot(*reference.center[:2]), 0, 0])
    rotation = Rotation.concatenate([filament.rotation for filament in filaments])
    center = np.concatenate([filament.position for filament in filaments]) + rotation.apply(radial)
    counts = [len(filament) for filament in filaments]
    own = np.zeros_like(density)
    add_particles(
        own,
        instances,
        [reference],
        index=Volume(data=density, voxel_spacing=voxel_spacing).to_index(center),
        rotation=rotation * to_subunit(reference),
        species=np.zeros(len(center), dtype=int),
        values=np.repeat(first + np.arange(len(filaments)), counts),
        labels=labels,
        label_values=[] if label_values is None else [label_values],
    )
    density += own
    surface = min(MOLECULAR_SURFACE, float(reference.potential.data.max()) / 2)
    joints = np.argwhere((own > surface) & (instances == 0))
    _fill_joints(instances, labels, joints, first, first + len(filaments) - 1)


def to_subunit(reference: Reference) -> Rotation:
    """Turn about z that takes the subunit's own frame to one with its centre towards x."""
    return Rotation.from_euler("z", -np.arctan2(reference.center[1], reference.center[0]))


class _Course(NamedTuple):
    """A piece of a chain in voxels: points xyz, frames with the tangent as third column.

    `clear` tells that nothing but the sides of the volume or its own length ends it.
    """

    position: FloatArray
    frame: FloatArray
    clear: bool


class _Drawing:
    """What the filaments of one call have in common. Lengths are in voxels."""

    def __init__(
        self,
        settings: Filaments,
        reference: Reference,
        room: Room,
        rng: np.random.Generator,
        clearance: float,
    ) -> None:
        self.rng, self.room, self.voxel = rng, room, room.voxel_spacing
        self.helix: Helix = find_helix(settings)
        self.whole = settings.length is None
        around = reference.points + reference.center
        self.radius = float(np.hypot(around[:, 0], around[:, 1]).max()) / self.voxel
        #: How far a subunit reaches beyond its centre along the axis, and from the axis' point.
        self.overhang = float(np.abs(reference.points[:, 2]).max()) / self.voxel
        self.reach = self.radius + self.overhang
        self.offsets: FloatArray = np.zeros((1, 2))
        if settings.arrangement == "bundle":
            spacing = 2 * _BUNDLE_SPACING * self.radius
            if settings.bundle_spacing is not None:
                spacing = _number(settings.bundle_spacing) / self.voxel
                if spacing < 2 * self.radius:
                    raise ValueError(
                        f"bundle_spacing of {settings.name} must be at least its diameter,"
                        f" {2 * self.radius * self.voxel:.0f} Å; got {spacing * self.voxel:g}"
                    )
            self.offsets = spacing * _hexagonal(int(_number(settings.bundle_size)))
        self.stiffness = self.helix.persistence_length / self.voxel
        self.step = min(0.5, self.stiffness / 50)
        diagonal = float(np.linalg.norm(room.shape))
        length = 2 * diagonal if self.whole else _number(settings.length) / self.voxel
        self.steps = max(round(length / self.step), 1)
        allowed = np.zeros(256, np.bool_)
        allowed[list(room.allowed(settings.location))] = True
        self.space = (room.occupied, room.compartment, allowed)
        self.section = self._section(self.radius)
        # A few points of the section show most collisions.
        self.few = self.section[: max(len(self.section) // 24, 9 * len(self.offsets))]
        self.margin = float(np.abs(self.section).max()) + self.reach
        self.grown = self.radius + clearance / self.voxel + _HALF_DIAGONAL

    def start(self) -> list[Filament]:
        """Draw one filament or bundle anywhere, in any direction."""
        anchors = self.rng.uniform(-0.5, np.array(self.room.shape[::-1]) - 0.5, (_ANCHORS, 3))
        anchors = anchors[_are_free(self.space, anchors)][:_TRIES]
        frames = Rotation.random(len(anchors), rng=self.rng).as_matrix()
        half = self.steps // 2
        best: _Course | None = None
        for anchor, frame in zip(anchors, frames, strict=True):
            if not _is_free(self.space, self.few, anchor, frame):
                continue
            back = self._grow(anchor, frame, half, -self.step)
            if not (back.clear or self.whole):
                continue
            forth = self._grow(anchor, frame, self.steps - half, self.step)
            course = _Course(
                np.concatenate([back.position[:0:-1], forth.position]),
                np.concatenate([back.frame[:0:-1], forth.frame]),
                back.clear and forth.clear,
            )
            found = self._free_part(course, len(back.position) - 1, best)
            if found is not None and found.clear:
                return self._take(found)
            best = found or best
        return [] if best is None else self._take(best)

    def branch(self, filaments: list[Filament]) -> list[Filament]:
        """Draw a filament that begins beside one of those that are there."""
        best: _Course | None = None
        parent = -1
        for _ in range(_BRANCH_TRIES):
            number = int(self.rng.integers(len(filaments)))
            mother = filaments[number]
            inside = np.flatnonzero(self.room.grid.contains(mother.position))
            if not len(inside):
                continue
            row = int(self.rng.choice(inside))
            base = mother.rotation[row].as_matrix()
            angle = np.radians(self.rng.normal(_BRANCH_ANGLE, _BRANCH_SPREAD))
            angle = float(np.clip(angle, np.pi / 6, np.pi - np.pi / 6))
            turn = Rotation.from_euler("ZY", [self.rng.uniform(0, 2 * np.pi), angle])
            frame = base @ turn.as_matrix()
            # Where the rim of its first disc clears the tube of the mother.
            away = self.grown + _HALF_DIAGONAL + self.radius * abs(np.cos(angle))
            anchor = mother.position[row] / self.voxel + frame[:, 2] * away / np.sin(angle)
            ahead = anchor + frame[:, 2] * (_SHORTEST * 2 * self.radius)
            shown = self.room.grid.contains(np.array([anchor, ahead]) * self.voxel).all()
            if not shown or not _is_free(self.space, self.few, anchor, frame):
                continue
            found = self._free_part(self._grow(anchor, frame, self.steps, self.step), 0, best)
            if found is not None:
                best, parent = found, number
                if found.clear:
                    break
        if best is None:
            return []
        return [replace(member, parent=parent) for member in self._take(best)]

    def _grow(self, anchor: FloatArray, frame: FloatArray, steps: int, step: float) -> _Course:
        """Walk on until the volume's side, the chain's end or an obstacle, as far as few show."""
        spread = np.sqrt(abs(step) / self.stiffness)
        positions, frames = [anchor[None]], [frame[None]]
        state, chunk = _WALKING, 64
        while steps > 0 and state == _WALKING:
            bends = self.rng.normal(0, spread, (min(chunk, steps), 2))
            start = (positions[-1][-1], frames[-1][-1])
            position, frame, state = _walk(self.space, self.few, start, bends, step, self.margin)
            if len(position):
                positions.append(position)
                frames.append(frame)
            steps, chunk = steps - len(bends), 2 * chunk
        return _Course(np.concatenate(positions), np.concatenate(frames), state != _BLOCKED)

    def _free_part(self, course: _Course, anchor: int, best: _Course | None) -> _Course | None:
        """Find the piece about the anchor whose tube is free, if it is better than the best."""
        wanted = _SHORTEST * 2 * self.radius / self.step if best is None else len(best.position)
        if not course.clear and (not self.whole or len(course.position) <= wanted):
            return None
        first, last = _free_run(self.space, self.section, course.position, course.frame, anchor)
        whole = last - first + 1 == len(course.position)
        if not whole and (not self.whole or last - first + 1 <= wanted):
            return None
        piece = slice(first, last + 1)
        return _Course(course.position[piece], course.frame[piece], course.clear and whole)

    def _take(self, course: _Course) -> list[Filament]:
        """Mark the tubes of a course as occupied and set the subunits on it."""
        tube = self._section(self.grown)
        _stamp(self.room.occupied, tube, course.position, course.frame)
        members = [self._subunits(course, offset) for offset in self.offsets]
        volume = self.room.grid
        return [member for member in members if volume.contains(member.position).any()]

    def _subunits(self, course: _Course, offset: FloatArray) -> Filament:
        position = course.position + course.frame[:, :, :2] @ offset
        arc = np.concatenate([[0], np.linalg.norm(np.diff(position, axis=0), axis=1).cumsum()])
        length = max(float(arc[-1] - 2 * self.overhang) * self.voxel, 0.0)
        # The shortest filament still is one subunit.
        phase = self.rng.uniform(0, min(length / self.helix.rise, 1))
        azimuth = self.rng.uniform(0, 360)
        height, angle = self.helix.places(length, phase=phase)
        place = np.minimum(height / self.voxel + self.overhang, arc[-1])
        line = np.stack([np.interp(place, arc, column) for column in position.T], axis=1)
        low, high = -0.5 - self.reach, np.array(self.room.shape[::-1]) - 0.5 + self.reach
        shown = ((line > low) & (line < high)).all(axis=1)
        place, line, angle = place[shown], line[shown], angle[shown]
        if not len(place):
            return Filament(
                position=line, rotation=Rotation.from_quat(np.zeros((0, 4))), arc_length=place
            )
        frame = Slerp(arc, Rotation.from_matrix(course.frame))(place)
        return Filament(
            position=line * self.voxel,
            rotation=frame * Rotation.from_euler("z", angle[:, None] + azimuth, degrees=True),
            arc_length=place * self.voxel,
        )

    def _section(self, radius: float) -> FloatArray:
        """Points across all tubes, half a voxel apart, their centres first, then scattered."""
        steps = np.arange(-np.ceil(2 * radius), np.ceil(2 * radius) + 1) / 2
        grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        rim = radius * np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
        disc = np.concatenate([grid[np.hypot(*grid.T) <= radius], rim])
        disc = disc[np.argsort(np.hypot(*disc.T) > 0, kind="stable")]
        disc[1:] = np.random.default_rng(0).permutation(disc[1:])
        return np.ascontiguousarray((disc[:, None] + self.offsets).reshape(-1, 2))


_TURN = np.linspace(0, 2 * np.pi, 32, endpoint=False)


def _hexagonal(number: int) -> FloatArray:
    """The points of a hexagonal lattice that are nearest to one of them, shape (number, 2)."""
    steps = np.arange(-number, number + 1)
    i, j = (grid.ravel() for grid in np.meshgrid(steps, steps))
    points = np.stack([i + j / 2, j * np.sqrt(3) / 2], axis=1)
    nearest = np.argsort(np.round(np.hypot(*points.T), 6), kind="stable")
    return points[nearest[:number]]


def _number(value: Number | None) -> float:
    if not isinstance(value, (int, float)):
        raise ValueError(f"expected a resolved recipe with single numbers; got {value}")
    return float(value)


@njit(cache=True, nogil=True)
def _fill_joints(
    instances: NDArray[np.integer],
    labels: NDArray[np.uint16] | None,
    joints: NDArray[np.integer],
    first: int,
    last: int,
) -> None:
    """Give voxels zyx the number and label of a neighbour that has one of the numbers.

    From both ends in turn, until those that touch such a voxel, or one another, have theirs.
    """
    nz, ny, nx = instances.shape
    for sweep in range(6):
        for n in range(len(joints)):
            z, y, x = joints[n if sweep % 2 == 0 else len(joints) - 1 - n]
            if instances[z, y, x] != 0:
                continue
            nearest = 4
            for dz in range(-1, 2):
                for dy in range(-1, 2):
                    for dx in range(-1, 2):
                        a, b, c = z + dz, y + dy, x + dx
                        if not (0 <= a < nz and 0 <= b < ny and 0 <= c < nx):
                            continue
                        distance = dz * dz + dy * dy + dx * dx
                        if distance < nearest and first <= instances[a, b, c] <= last:
                            nearest = distance
                            instances[z, y, x] = instances[a, b, c]
                            if labels is not None:
                                labels[z, y, x] = labels[a, b, c]


@njit(cache=True, nogil=True)
def _walk(  # type: ignore[no-untyped-def]  # noqa: ANN202
    space: _Space,
    section: FloatArray,
    start: tuple[FloatArray, FloatArray],
    bends: FloatArray,
    step: float,
    margin: float,
):
    """Walk along the tangent, bending it by small angles towards the first two axes.

    The frame turns about axes across the tangent only: it is carried along in parallel. Returns
    the free points up to where the volume is left through its sides by the margin, their frames,
    and what ended the walk.
    """
    n = len(bends)
    _, ny, nx = space[0].shape
    position, frames = np.empty((n + 1, 3)), np.empty((n + 1, 3, 3))
    position[0], frames[0] = start
    for i in range(n):
        f = frames[i]
        a, b = bends[i]
        angle = np.sqrt(a * a + b * b)
        cos, sin = np.cos(angle), np.sin(angle)
        u, v = (a / angle, b / angle) if angle > 0 else (1.0, 0.0)
        for axis in range(3):
            toward = u * f[axis, 0] + v * f[axis, 1]
            change = (cos - 1) * toward - sin * f[axis, 2]
            frames[i + 1, axis, 0] = f[axis, 0] + u * change
            frames[i + 1, axis, 1] = f[axis, 1] + v * change
            frames[i + 1, axis, 2] = cos * f[axis, 2] + sin * toward
        middle = f[:, 2] + frames[i + 1, :, 2]
        position[i + 1] = position[i] + middle * (step / np.sqrt((middle * middle).sum()))
        x, y = position[i + 1, 0], position[i + 1, 1]
        if min(x, y) < -0.5 - margin or x > nx - 0.5 + margin or y > ny - 0.5 + margin:
            return position[1 : i + 1], frames[1 : i + 1], _LEFT
        if not _is_free(space, section, position[i + 1], frames[i + 1]):
            return position[1 : i + 1], frames[1 : i + 1], _BLOCKED
    return position[1:], frames[1:], _WALKING


@njit(cache=True, nogil=True)
def _free_run(  # type: ignore[no-untyped-def]  # noqa: ANN202
    space: _Space, section: FloatArray, position: FloatArray, frames: FloatArray, anchor: int
):
    """Return the first and the last point of the free piece about the anchor."""
    ends = np.array([anchor + 1, anchor])
    for side in range(2):
        i = ends[side] + 2 * side - 1
        while 0 <= i < len(position) and _is_free(space, section, position[i], frames[i]):
            ends[side] = i
            i += 2 * side - 1
    return ends[0], ends[1]


@njit(cache=True, nogil=True)
def _is_free(  # type: ignore[no-untyped-def]  # noqa: ANN202
    space: _Space, section: FloatArray, position: FloatArray, frame: FloatArray
):
    """Tell whether no point of a section lies in what is taken or not allowed.

    Points beyond the volume's sides along x and y are free.
    """
    occupied, compartment, allowed = space
    nz, ny, nx = occupied.shape
    for p in range(len(section)):
        u, v = section[p]
        x = int(np.floor(position[0] + frame[0, 0] * u + frame[0, 1] * v + 0.5))
        y = int(np.floor(position[1] + frame[1, 0] * u + frame[1, 1] * v + 0.5))
        if not (0 <= x < nx and 0 <= y < ny):
            continue
        z = int(np.floor(position[2] + frame[2, 0] * u + frame[2, 1] * v + 0.5))
        if not 0 <= z < nz or occupied[z, y, x] or not allowed[compartment[z, y, x]]:
            return False
    return True


@njit(cache=True, nogil=True)
def _are_free(space: _Space, position: FloatArray) -> NDArray[np.bool_]:
    """Tell which points xyz lie in free ice."""
    point, frame = np.zeros((1, 2)), np.eye(3)
    result = np.zeros(len(position), np.bool_)
    for i in range(len(position)):
        result[i] = _is_free(space, point, position[i], frame)
    return result


@njit(cache=True, nogil=True)
def _stamp(
    grid: NDArray[np.bool_], section: FloatArray, position: FloatArray, frames: FloatArray
) -> None:
    """Mark the voxels of the tubes about a course."""
    nz, ny, nx = grid.shape
    for i in range(len(position)):
        f = frames[i]
        for p in range(len(section)):
            u, v = section[p]
            x = int(np.floor(position[i, 0] + f[0, 0] * u + f[0, 1] * v + 0.5))
            y = int(np.floor(position[i, 1] + f[1, 0] * u + f[1, 1] * v + 0.5))
            z = int(np.floor(position[i, 2] + f[2, 0] * u + f[2, 1] * v + 0.5))
            if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz:
                grid[z, y, x] = True
