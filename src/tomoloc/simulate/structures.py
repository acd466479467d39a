"""Built-in structures: random multi-domain complexes that look like proteins at 10 to 20 Å."""

from __future__ import annotations

from string import ascii_uppercase

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.physics.rotations import symmetry_group
from tomoloc.types import FloatArray, Structure

__all__ = ["SYMMETRIES", "make_complex"]

#: Point groups that `make_complex` draws from, and how often.
SYMMETRIES = {
    "C1": 0.3, "C2": 0.14, "C3": 0.06, "C4": 0.05, "C5": 0.04, "C6": 0.05, "C7": 0.03, "C8": 0.03,
    "D2": 0.07, "D3": 0.06, "D4": 0.04, "D5": 0.03, "D6": 0.02, "D7": 0.03, "T": 0.03, "O": 0.02,
}  # fmt: skip

# The average residue: non-hydrogen atoms, dalton with its hydrogens, and Å³ at 0.81 Da/Å³.
_CARBON = 6
_RESIDUE_ATOMS = {_CARBON: 4.99, 7: 1.36, 8: 1.49}
_RESIDUE_MASS = 110.7
_RESIDUE_VOLUME = _RESIDUE_MASS / 0.81
_LATTICE = _RESIDUE_VOLUME ** (1 / 3)
_CREVICES, _CREVICE_PERIOD = 0.2, 30.0  # fraction of the molecule's space, and Å
_CLEFT = 0.15  # how much shallower the field is where two domains meet
_DIRECTIONS = 12  # tried for the place of a subunit
_MASS_RANGE = (10.0, 10_000.0)


def make_complex(
    seed: int, *, mass_kda: float | None = None, symmetry: str | None = None
) -> Structure:
    """Make a random protein complex; the same arguments give the same complex.

    A subunit is a chain of ellipsoidal, dented domains. Its copies are moved towards the
    symmetry axis until they hold together, each in the space nearest to itself, so that rings,
    barrels and cages arise where the group has them. Every residue is one point on a jittered
    lattice at the density of protein (1.35 g/cm³).

    Parameters
    ----------
    seed : int
        Chooses the complex.
    mass_kda : float, optional
        Drawn between 40 and 3000 (log-uniform) by default.
    symmetry : str, optional
        Point group: C1 to C8, D2 to D7, T, O. Drawn from `SYMMETRIES` by default, among those
        that leave at least 12 kDa to a subunit.

    Returns
    -------
    Structure
        Centred at the origin, the main symmetry axis along z; carbon, nitrogen and oxygen of
        each residue as three weighted pseudo-atoms, its hydrogens implied; the carbon is the
        node. Subunits are chains A, B and so on.

    Raises
    ------
    ValueError
        If the mass is not from 10 to 10,000 kDa or the point group is unknown.
    """
    kind, rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    if mass_kda is None:
        mass_kda = float(np.exp(kind.uniform(np.log(40), np.log(3000))))
    if not _MASS_RANGE[0] <= mass_kda <= _MASS_RANGE[1]:
        raise ValueError(f"mass_kda must be from 10 to 10000; got {mass_kda:g}")
    if symmetry is None:
        symmetry = _draw_symmetry(kind, mass_kda)
    group = symmetry_group(symmetry)
    n_residues = max(round(mass_kda * 1000 / _RESIDUE_MASS / len(group)), 8)
    subunit = _Subunit(rng, n_residues)
    residues = _assemble(subunit, group, symmetry, rng)
    position = []
    for _ in _RESIDUE_ATOMS:
        scattered = residues + rng.normal(0, 1.2, residues.shape)
        position += [turn.apply(scattered) for turn in group]
    numbers = np.repeat(list(_RESIDUE_ATOMS), len(residues) * len(group))
    subunits = np.array(list(ascii_uppercase[: len(group)]), dtype=np.str_)
    return Structure(
        position=np.concatenate(position),
        atomic_number=numbers,
        weight=np.repeat(list(_RESIDUE_ATOMS.values()), len(residues) * len(group)),
        name=f"complex-{seed}",
        symmetry=symmetry,
        chain=np.tile(np.repeat(subunits, len(residues)), len(_RESIDUE_ATOMS)),
        is_node=numbers == _CARBON,
    ).centered()


def _draw_symmetry(rng: np.random.Generator, mass_kda: float) -> str:
    allowed = [name for name in SYMMETRIES if mass_kda / len(symmetry_group(name)) >= 12]
    chances = np.array([SYMMETRIES[name] for name in allowed])
    return str(rng.choice(allowed, p=chances / chances.sum()))


class _Subunit:
    """A chain of domains as a field: the lower `depth`, the deeper inside."""

    def __init__(self, rng: np.random.Generator, n_residues: int) -> None:
        self.n_residues = n_residues
        volume = n_residues * _RESIDUE_VOLUME
        size = rng.uniform(15, 45) * 1000 / _RESIDUE_MASS  # residues of a typical domain
        n_domains = int(np.clip(round(n_residues / size), 1, 30))
        shares = rng.dirichlet(np.full(n_domains, 4.0))
        radii = (3 * volume * shares / (4 * np.pi)) ** (1 / 3)
        self.centers = _chain(rng, radii, tries=int(rng.choice([1, 4, 12, 30])))
        stretch = np.exp(rng.normal(0, 0.28, (n_domains, 3)))
        stretch *= (radii / np.cbrt(stretch.prod(axis=1)))[:, None]
        self.axes = Rotation.random(n_domains, rng=rng).as_matrix() / stretch[:, None]
        self.wave_vectors = rng.normal(0, 2 * np.pi / 45, (8, 3))
        self.phases = rng.uniform(0, 2 * np.pi, 8)
        self.roughness = rng.uniform(0.18, 0.35)
        middle = shares @ self.centers
        self.centers = self.centers - middle
        reach = np.linalg.norm(self.centers, axis=1) + 1.7 * radii
        self.reach = float(reach.max()) + 10
        steps = np.arange(-self.reach, self.reach, _LATTICE)
        lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
        lattice += rng.uniform(-0.3, 0.3, lattice.shape) * _LATTICE
        lattice = lattice[~_crevices(rng, lattice)]
        depth = self.depth(lattice)
        # Points far outside never belong to the subunit, wherever its neighbours push it.
        chosen = depth <= np.sort(depth)[min(3 * n_residues, len(depth) - 1)]
        self.points, self.own_depth = lattice[chosen], depth[chosen]

    def depth(self, position: FloatArray) -> FloatArray:
        """Evaluate the field at positions, shape (n, 3)."""
        return _depth(
            np.ascontiguousarray(position),
            self.centers,
            self.axes,
            self.wave_vectors,
            self.phases,
            self.roughness,
        )

    def residues(self, offset: FloatArray, group: Rotation, *, every: int = 1) -> FloatArray:
        """Choose the residues of the subunit at `offset` that leave its copies their space.

        With `every`, one of so many, evenly over the subunit, for a faster look.
        """
        position, own = self.points[::every] + offset, self.own_depth[::every]
        for turn in group[1:]:
            free = own <= self.depth(turn.apply(position) - offset)
            position, own = position[free], own[free]
        return position[np.argsort(own, kind="stable")[: self.n_residues // every]]


def _crevices(rng: np.random.Generator, position: FloatArray) -> NDArray[np.bool_]:
    """Tell which positions solvent takes inside the molecule, in clefts of some 10 Å.

    Without them the potential at 20 Å would be a fifth higher than that of real proteins.
    """
    waves = np.zeros(len(position))
    for _ in range(12):
        waves += np.cos(
            position @ rng.normal(0, 2 * np.pi / _CREVICE_PERIOD, 3) + rng.uniform(0, 2 * np.pi)
        )
    return waves > np.quantile(waves, 1 - _CREVICES)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _depth(
    position: FloatArray,
    centers: FloatArray,
    axes: FloatArray,
    wave_vectors: FloatArray,
    phases: FloatArray,
    roughness: float,
) -> FloatArray:
    """Distance to the nearest domain in its radii, dented, with clefts between domains."""
    depth = np.empty(len(position))
    for i in range(len(position)):
        x, y, z = position[i]
        first, second = 1e30, 1e30
        for domain in range(len(centers)):
            c, a = centers[domain], axes[domain]
            u, v, w = x - c[0], y - c[1], z - c[2]
            square = (
                (u * a[0, 0] + v * a[1, 0] + w * a[2, 0]) ** 2
                + (u * a[0, 1] + v * a[1, 1] + w * a[2, 1]) ** 2
                + (u * a[0, 2] + v * a[1, 2] + w * a[2, 2]) ** 2
            )
            if square < first:
                first, second = square, first
            elif square < second:
                second = square
        first, second = np.sqrt(first), np.sqrt(second)
        depth[i] = first
        if first > 2.5:
            continue
        wave = 0.0
        for k in range(len(phases)):
            g = wave_vectors[k]
            wave += np.cos(x * g[0] + y * g[1] + z * g[2] + phases[k])
        cleft = _CLEFT * np.exp(-(second - first) / 0.12)
        depth[i] += roughness * wave / len(phases) + cleft
    return depth


def _chain(rng: np.random.Generator, radii: FloatArray, *, tries: int) -> FloatArray:
    """Attach each domain to an earlier one; the more tries, the more compact the result."""
    centers = [np.zeros(3)]
    for i in range(1, len(radii)):
        placed = np.array(centers)
        best, best_cost = placed[0], np.inf
        for _ in range(tries):
            partner = int(rng.integers(i))
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            place = placed[partner] + 0.85 * direction * (radii[partner] + radii[i])
            overlap = radii[:i] + radii[i] - np.linalg.norm(placed - place, axis=1)
            cost = 50 * np.clip(overlap - 0.2 * radii[i], 0, None).sum()
            if tries > 1:
                cost += np.linalg.norm(place - placed.mean(axis=0))
            if cost < best_cost:
                best, best_cost = place, cost
        centers.append(best)
    return np.array(centers)


def _assemble(
    subunit: _Subunit, group: Rotation, symmetry: str, rng: np.random.Generator
) -> FloatArray:
    """Place the subunit as far out as its copies hold together, in the first good direction."""
    if len(group) == 1:
        return subunit.residues(np.zeros(3), group)
    best: FloatArray = np.zeros((0, 3))
    for _ in range(_DIRECTIONS):
        direction = rng.normal(size=3)
        if symmetry.startswith("C"):
            direction[2] = 0
        elif symmetry.startswith("D"):
            direction[2] *= 0.6
        direction /= np.linalg.norm(direction)
        residues = _push_together(subunit, group, direction)
        if len(residues) > len(best):
            best = residues
        if len(best) == subunit.n_residues:
            break
    return best


def _push_together(subunit: _Subunit, group: Rotation, direction: FloatArray) -> FloatArray:
    """Find the farthest offset along a direction at which the copies are one piece.

    In some directions that leaves a subunit too little space for all of its residues.
    """
    every = int(np.clip(subunit.n_residues // 300, 1, 6))
    reach = 1.4 * _LATTICE * np.cbrt(every)
    low, high = 0.0, 3 * subunit.reach
    for _ in range(8):
        middle = (low + high) / 2
        residues = subunit.residues(middle * direction, group, every=every)
        if len(residues) and _holds_together(residues, group, reach):
            low = middle
        else:
            high = middle
    return subunit.residues(low * direction, group)


def _holds_together(residues: FloatArray, group: Rotation, reach: float) -> bool:
    """Tell whether copies with residues within `reach` of each other connect the whole group."""
    tree = cKDTree(residues)
    needed = max(3, len(residues) // 30)
    matrices = group.as_matrix()
    touching = []
    for matrix in matrices:
        distance, _ = tree.query(residues @ matrix.T, distance_upper_bound=reach)
        if np.isfinite(distance).sum() >= needed:
            touching.append(matrix)
    reached = [np.eye(3)]
    for member in reached:
        for step in touching:
            product = member @ step
            if all(np.abs(product - other).max() > 1e-6 for other in reached):
                reached.append(product)
    return len(reached) == len(matrices)
