"""Helical filaments: how their subunits repeat, and what a built-in subunit looks like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoloc.simulate.drawn import bounds
from tomoloc.simulate.settings import Filaments
from tomoloc.types import FloatArray, Structure, Volume

__all__ = ["HELICES", "Helix", "find_helix", "make_subunit"]


@dataclass(frozen=True, kw_only=True)
class Helix:
    """How the subunits of a filament repeat along its axis.

    Parameters
    ----------
    rise, twist : float
        From one subunit to the next, in Å and degrees; right-handed helices have a positive twist.
    persistence_length : float
        Over which the direction of the thermally bent filament is lost, in Å.
    strands : int
        Subunits that `rise` and `twist` lead around the axis once; each then repeats along the
        axis on its own, as the protofilaments of a microtubule do. 1 where the helix goes on.
    repeat : float
        Of each of several strands along the axis.
    """

    rise: float
    twist: float
    persistence_length: float
    strands: int = 1
    repeat: float = 0.0

    def places(self, length: float, *, phase: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """List the subunits whose height is from 0 to a length.

        Parameters
        ----------
        length : float
        phase : float
            Where in its repeat the helix begins, from 0 to 1.

        Returns
        -------
        height, angle : ndarray, shape (n,)
            Along the axis, ascending, in Å; about it, in degrees.
        """
        step = self.rise if self.strands == 1 else self.repeat
        turn = self.twist if self.strands == 1 else 0.0
        strand = np.arange(self.strands)
        below = int(np.ceil(self.strands * self.rise / step)) + 1
        number = np.arange(-below, int(length / step) + 2)[:, None]
        height = ((number + phase) * step + strand * self.rise).ravel()
        angle = (number * turn + strand * self.twist).ravel()
        inside = np.flatnonzero((height >= 0) & (height <= length))
        chosen = inside[np.argsort(height[inside], kind="stable")]
        return height[chosen], angle[chosen]


#: Actin: about the helices of Dominguez & Holmes 2011 (doi:10.1146/annurev-biophys-042910-155359)
#: and, with cofilin, of Tanaka et al. 2018 (doi:10.1038/s41467-018-04290-w); persistence lengths
#: of both by McCullough et al. 2008 (doi:10.1016/j.jmb.2008.05.055). Microtubule: 13
#: protofilaments in three left-handed starts of 41 Å monomers, 82 Å between dimers; persistence
#: length of Gittes et al. 1993 (doi:10.1083/jcb.120.4.923). Tobacco mosaic virus: helix of PDB 2OM3
#: (Sachse et al. 2007, doi:10.1016/j.jmb.2007.05.088); taken as too stiff for a bend to show.
HELICES = {
    "actin": Helix(rise=27.6, twist=-166.6, persistence_length=9.8e4),
    "cofilactin": Helix(rise=27.6, twist=-162.1, persistence_length=2.2e4),
    "microtubule": Helix(
        rise=3 * 41 / 13, twist=-360 / 13, persistence_length=5.2e7, strands=13, repeat=82.0
    ),
    "tmv": Helix(rise=1.408, twist=22.03, persistence_length=1e7),
}
_PERSISTENCE_LENGTH = 1e5  # of helices that are not built in


class _Domain(NamedTuple):
    """An ellipsoid about the helical frame: x radial, y tangential, z towards the plus end."""

    chain: str
    residues: int
    center: tuple[float, float, float]
    radii: tuple[float, float, float]


# Measured on models in the helical frame: F-actin (PDB 3LUE) by its four subdomains; TMV (2OM3)
# and the tubulins of a microtubule's wall by five clusters of residues each. Where cofilin binds:
# the homologous place between subdomains 1 and 3 that gelsolin takes in PDB 1H1V.
_ACTIN = (
    _Domain("A", 145, (25, -11, 3), (18, 17, 18)),
    _Domain("A", 37, (20, -10, -25), (9, 11, 15)),
    _Domain("A", 104, (14, 8, 14), (16, 15, 19)),
    _Domain("A", 89, (7, 13, -10), (13, 17, 19)),
)
_COFILIN = (_Domain("B", 166, (40, 11, 27), (17, 16, 20)),)
_TMV = (
    _Domain("A", 25, (29, -2, 8), (12, 7, 15)),
    _Domain("A", 39, (48, -6, 3), (12, 11, 12)),
    _Domain("A", 26, (59, -3, -8), (10, 14, 8)),
    _Domain("A", 28, (67, -2, 1), (12, 12, 9)),
    _Domain("A", 40, (77, 10, -4), (12, 13, 11)),
    _Domain("R", 9, (40, -6, -8), (11, 13, 10)),  # three nucleotides, by thirds
)
_TUBULIN = (
    _Domain("", 82, (-14, -9, -7), (15, 15, 16)),
    _Domain("", 79, (-11, 13, -2), (14, 13, 20)),
    _Domain("", 95, (-1, -13, 6), (16, 14, 18)),
    _Domain("", 94, (8, 10, -11), (17, 16, 16)),
    _Domain("", 90, (14, 0, 12), (15, 15, 16)),
)
_WALL_RADIUS = 112.0  # of the middle of a microtubule's wall with 13 protofilaments

# Non-hydrogen atoms of the average residue, and of a third of a nucleotide.
_RESIDUE = {6: 4.99, 7: 1.36, 8: 1.49}
_NUCLEOTIDE_THIRD = {6: 3.17, 7: 1.25, 8: 2.33, 15: 0.33}
_LATTICE = (110.7 / 0.81) ** (1 / 3)  # Å between residues at the density of protein
_SOLVENT = 0.1  # fraction of a molecule's space that clefts take
_TEXTURE_PERIOD = 20.0
_DENTS = 0.12  # in radii of a domain


def find_helix(settings: Filaments) -> Helix:
    """Return the helix of filaments: that of their kind, with what the settings say otherwise.

    A microtubule's `rise` and `twist` lead from one protofilament to the next; the twist tells
    how many there are, such as -360 / 14.

    Raises
    ------
    ValueError
        If a microtubule's twist is 0.
    """
    helix = HELICES.get(settings.kind)
    if helix is None:
        helix = Helix(rise=1.0, twist=0.0, persistence_length=_PERSISTENCE_LENGTH)
    helix = replace(
        helix,
        rise=helix.rise if settings.rise is None else settings.rise,
        twist=helix.twist if settings.twist is None else settings.twist,
    )
    if settings.persistence_length is not None:
        helix = replace(helix, persistence_length=bounds(settings.persistence_length)[0])
    if helix.strands == 1:
        return helix
    if helix.twist == 0:
        raise ValueError(
            f"twist of a {settings.kind} must lead from one protofilament to the next,"
            f" such as {HELICES[settings.kind].twist:.2f}; got 0"
        )
    return replace(helix, strands=max(round(360 / abs(helix.twist)), 1))


def make_subunit(settings: Filaments) -> Structure | Volume:
    """Make or read the subunit of a filament, placed about the helical axis z.

    Built-in subunits are ellipsoidal domains at the places and of the sizes that models of the
    filament show, filled with residues at the density of protein, each in the space that is
    nearer to it than to its neighbours in the filament. Their plus (barbed) end is at positive z.
    Chains: actin is A; cofilactin A with cofilin B; tubulin A (alpha) and B (beta); the coat
    protein of tobacco mosaic virus A with its RNA R.

    Parameters
    ----------
    settings : Filaments
        Of a resolved recipe.

    Raises
    ------
    ValueError
        If the file that the settings name is no structure or map.
    OSError
        If it cannot be read.
    """
    if settings.structure:
        from tomoloc.io.structures import read_structure

        return read_structure(settings.structure)
    helix = find_helix(settings)
    if settings.kind == "microtubule":
        radius = _WALL_RADIUS * helix.strands / HELICES["microtubule"].strands
        half = helix.repeat / 4
        dimer = (("A", -half), ("B", half))
        domains = [
            item._replace(chain=chain, center=(x + radius, y, z + height))
            for chain, height in dimer
            for item in _TUBULIN
            for x, y, z in (item.center,)
        ]
    else:
        known = {"actin": _ACTIN, "cofilactin": (*_ACTIN, *_COFILIN), "tmv": _TMV}
        domains = list(known[settings.kind])
    return _fill(domains, helix, name=settings.kind)


def _fill(domains: list[_Domain], helix: Helix, *, name: str) -> Structure:
    """Fill domains with residues."""
    rng = np.random.default_rng(0)
    centers, radii = (np.array([item[i] for item in domains], dtype=float) for i in (2, 3))
    low, high = (centers - 1.3 * radii).min(axis=0), (centers + 1.3 * radii).max(axis=0)
    axes = [np.arange(a, b, _LATTICE) for a, b in zip(low, high, strict=True)]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    lattice += rng.uniform(-0.3, 0.3, lattice.shape) * _LATTICE
    waves = rng.normal(0, 2 * np.pi / _TEXTURE_PERIOD, (2, 12, 3)), rng.uniform(0, 6.28, (2, 12))
    names = np.array([item.chain for item in domains])
    # Of each atom kind: positions, atomic numbers, weights, chains, nodes.
    columns: list[tuple[FloatArray, int, float, str, bool]] = []
    for chain in dict.fromkeys(names.tolist()):
        own = names == chain
        middle = centers[own].mean(axis=0)
        clefts, dents = (
            np.cos((lattice - middle) @ k.T + p).mean(axis=1) for k, p in zip(*waves, strict=True)
        )
        place = lattice[clefts <= np.quantile(clefts, 1 - _SOLVENT)]
        dents = dents[clefts <= np.quantile(clefts, 1 - _SOLVENT)]
        depth = _depth(place, centers[own], radii[own])
        free = depth <= _others(place, centers, radii, own, helix)
        place, depth = place[free], (depth + _DENTS * dents)[free]
        count = sum(item.residues for item in domains if item.chain == chain)
        residues = place[np.argsort(depth, kind="stable")[:count]]
        atoms = _NUCLEOTIDE_THIRD if chain == "R" else _RESIDUE
        columns += [
            (residues + rng.normal(0, 1.2, residues.shape), number, weight, chain, number == 6)
            for number, weight in atoms.items()
        ]
    counts = [len(column[0]) for column in columns]
    return Structure(
        position=np.concatenate([column[0] for column in columns]),
        atomic_number=np.repeat([column[1] for column in columns], counts),
        weight=np.repeat([column[2] for column in columns], counts),
        chain=np.repeat([column[3] for column in columns], counts),
        is_node=np.repeat([column[4] for column in columns], counts),
        name=name,
    )


def _depth(position: FloatArray, centers: FloatArray, radii: FloatArray) -> FloatArray:
    """Distance to the nearest domain, in its radii."""
    away = (position[:, None] - centers) / radii
    return np.sqrt((away**2).sum(axis=2).min(axis=1))


def _others(
    position: FloatArray,
    centers: FloatArray,
    radii: FloatArray,
    own: NDArray[np.bool_],
    helix: Helix,
) -> FloatArray:
    """Depth in the nearest of all other chains, of the same subunit and of its neighbours."""
    nearest = np.full(len(position), np.inf)
    if not own.all():
        nearest = _depth(position, centers[~own], radii[~own])
    reach = float(np.ptp(position[:, 2]) + 2 * radii[:, 2].max())
    height, angle = helix.places(2 * reach, phase=reach / (helix.repeat or helix.rise) % 1)
    at_home = int(np.argmin(np.abs(height - reach)))
    for h, a in zip(height - height[at_home], np.radians(angle - angle[at_home]), strict=True):
        if (h, a) == (0, 0):
            continue
        cos, sin = np.cos(a), np.sin(a)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        back = (position - [0, 0, h]) @ turn.T
        nearest = np.minimum(nearest, _depth(back, centers, radii))
    return nearest
