"""The simulator: what is random is drawn first, then rendered without further chance."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.physics.potential import ICE_POTENTIAL
from tomoloc.simulate import atlas, surroundings
from tomoloc.simulate.filaments import Filament, add_filaments, draw_filaments
from tomoloc.simulate.helices import make_subunit
from tomoloc.simulate.membrane_proteins import place_membrane_proteins
from tomoloc.simulate.membranes import (
    Bilayer,
    add_bilayer,
    draw_bilayers,
)
from tomoloc.simulate.microscope import expose
from tomoloc.simulate.molecules import make_references
from tomoloc.simulate.packing import Packing, pack
from tomoloc.simulate.recipe import Recipe
from tomoloc.simulate.reconstruct import reconstruct
from tomoloc.simulate.references import Reference, add_particles, make_reference
from tomoloc.simulate.room import Room
from tomoloc.simulate.settings import Filaments, Species
from tomoloc.simulate.solids import Solid, add_solid
from tomoloc.types import Sample, Tomogram, Volume

__all__ = ["Scene", "Simulator", "draw_seed", "numbered_recipes"]

logger = logging.getLogger(__name__)

_CACHE_BYTES = 2**30
_MOST_PARTICLES = 1_000_000  # of one species
_PER_MICROMOLAR = 6.02214e-10  # particles in 1 Å³ at 1 µmol/L
_AT_MEMBRANES = ("membrane", "outside", "inside")

# Numbers of the random streams of one scene. Resolving the recipe takes stream 0.
_STREAMS = {
    "packing": 1,
    "counting": 2,
    "ice": 3,
    "carbon": 4,
    "contamination": 5,
    "membranes": 6,
    "gold": 7,
    "filaments": 8,
    "membrane proteins": 9,
    "conformers": 10,
    "counts": 11,
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """All that chance decided about one sample.

    Parameters
    ----------
    recipe : Recipe
        Resolved: it has no ranges left, and a seed. Drawing from it gives this scene again.
    ice : Ice
    carbon : CarbonFilm, optional
    crystals : Crystals, optional
        Contamination.
    beads : Beads, optional
    bilayers : tuple of tuple of Bilayer
        For each of the recipe's membranes.
    filaments : tuple of tuple of Filament
        For each of the recipe's filaments.
    packing : Packing
        Where the particles lie.
    """

    recipe: Recipe
    ice: surroundings.Ice
    carbon: surroundings.CarbonFilm | None = None
    crystals: surroundings.Crystals | None = None
    beads: surroundings.Beads | None = None
    bilayers: tuple[tuple[Bilayer, ...], ...] = ()
    filaments: tuple[tuple[Filament, ...], ...] = ()
    packing: Packing


@dataclass(frozen=True, eq=False)
class Simulator:
    """Makes samples after a recipe; structures are rendered once and kept.

    Parameters
    ----------
    recipe : Recipe

    Examples
    --------
    >>> import numpy as np
    >>> from tomoloc.simulate.recipe import read_recipe
    >>> simulator = Simulator(read_recipe("demo"))
    >>> scene = simulator.draw(np.random.default_rng(1))
    >>> sample = simulator.render(scene)  # doctest: +SKIP
    """

    recipe: Recipe
    _references: OrderedDict[Any, list[Reference]] = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    def draw(self, rng: np.random.Generator | None = None, *, name: str | None = None) -> Scene:
        """Draw a scene.

        Parameters
        ----------
        rng : numpy.random.Generator, optional
            Source of the scene's seed. Without it the recipe's own seed counts: a resolved recipe
            gives its scene again.
        name : str, optional
            Of the sample; that of the recipe by default.

        Raises
        ------
        ValueError
            If neither `rng` nor the recipe has a seed, or a particle is too large for the ice.
        """
        if rng is None and self.recipe.seed is None:
            raise ValueError(f"recipe {self.recipe.name} has no seed of its own; pass rng")
        seed = draw_seed(rng) if rng is not None else int(self.recipe.seed or 0)
        return self.draw_resolved(self.recipe.resolve(seed, name=name))

    def draw_resolved(self, recipe: Recipe) -> Scene:
        """Draw the scene of a resolved recipe, which may differ from this simulator's."""
        ice = surroundings.draw_ice(recipe.specimen, rng=_stream(recipe, "ice"))
        room = surroundings.make_room(recipe.specimen, ice)
        carbon = crystals = beads = None
        if recipe.carbon is not None:
            rng = _stream(recipe, "carbon")
            carbon = surroundings.draw_carbon(recipe.carbon, room=room, rng=rng)
        if recipe.contamination is not None:
            rng = _stream(recipe, "contamination")
            crystals = surroundings.draw_contamination(recipe.contamination, room=room, rng=rng)
        rng = _stream(recipe, "membranes")
        bilayers = tuple(
            tuple(draw_bilayers(settings, room=room, rng=rng)) for settings in recipe.membranes
        )
        if recipe.gold is not None:
            beads = surroundings.draw_beads(recipe.gold, room=room, rng=_stream(recipe, "gold"))
        rng = _stream(recipe, "filaments")
        filaments = tuple(
            tuple(
                draw_filaments(
                    settings,
                    reference=self._subunit(settings, recipe),
                    room=room,
                    rng=rng,
                    clearance=_number(recipe.specimen.clearance),
                )
            )
            for settings in recipe.filaments
        )
        packing = self._pack(recipe, room, bilayers)
        _report_missing(recipe, packing)
        return Scene(
            recipe=recipe,
            ice=ice,
            carbon=carbon,
            crystals=crystals,
            beads=beads,
            bilayers=bilayers,
            filaments=filaments,
            packing=packing,
        )

    def render(self, scene: Scene) -> Sample:
        """Make the sample of a scene: the same scene gives the same bytes.

        Returns
        -------
        Sample
            `density` is the potential above ice in volt; `instances` are rows of `particles`
            plus one, followed by the numbers of filaments, membranes and the rest, whose ranges
            `summary` tells; `labels` number the recipe's labels from 1 in their order.
        """
        recipe, specimen = scene.recipe, scene.recipe.specimen
        model = self._model(scene)
        solids = [solid for solid, _ in _solids(scene).values()]
        loss = None
        if scene.ice.heights.size or solids:
            loss = surroundings.attenuation(
                scene.ice,
                solids,
                shape=specimen.shape,
                voxel_spacing=specimen.voxel_spacing,
                voltage_kv=_number(recipe.microscope.voltage_kv),
            )
        taken = expose(
            _without_even_ice(model.density, scene.ice),
            microscope=recipe.microscope,
            rng=_stream(recipe, "counting"),
            thickness=scene.ice.thickness,
            attenuation=loss,
            halves=recipe.reconstruction.halves,
        )
        tomogram, *halves = [
            reconstruct(
                series, settings=recipe.reconstruction, shape=specimen.shape, name=recipe.name
            )
            for series in taken
        ]
        return self._describe(scene, model, tomogram, tuple(halves))

    def stream(self, *, seed: int, workers: int = 0, start: int = 0) -> Iterator[Sample]:
        """Make samples without end, for training.

        Parameters
        ----------
        seed : int
            Sample i is a function of the seed and i alone, whatever the number of workers; it is
            the one that ``tomoloc simulate --seed`` writes as number i.
        workers : int
            Processes that make samples ahead; with 0 they are made here, when they are asked for.
            Scripts then need the usual ``if __name__ == "__main__"`` around what starts them.
        start : int
            Number of the first sample, to go on with an earlier stream.

        Yields
        ------
        Sample
            In order. Close the iterator, or let go of it, to end the processes.

        Raises
        ------
        ValueError
            If `workers` or `start` is negative, or the recipe cannot be made.
        ChildProcessError
            If a process is killed.
        """
        from tomoloc.simulate.stream import stream

        return stream(self.recipe, seed=seed, workers=workers, start=start)

    def _model(self, scene: Scene) -> _Model:
        """Put everything at its place: potential, instances and labels."""
        recipe, packing = scene.recipe, scene.packing
        shape, spacing = recipe.specimen.shape, recipe.specimen.voxel_spacing
        numbers = _number_instances(scene)
        total = sum(count for _, count in numbers.values())
        density = np.zeros(shape, dtype=np.float32)
        instances = np.zeros(shape, dtype=np.uint16 if total < 2**16 else np.uint32)
        labels = np.zeros(shape, dtype=np.uint16)
        legend = atlas.make_legend(recipe)
        values = {name: value for value, name in legend.items()}
        grid = Volume(data=density, voxel_spacing=spacing, name=recipe.name)
        references, label_values, offsets = [], [], [0]
        for species, variants in zip(recipe.species, self._variants(recipe), strict=True):
            references += variants
            label_values += [atlas.values_of(species, legend)] * len(variants)
            offsets.append(len(references))
        add_particles(
            density,
            instances,
            references,
            index=grid.to_index(packing.position),
            rotation=packing.rotation,
            species=np.array(offsets[:-1], dtype=int)[packing.species] + packing.conformer,
            labels=labels,
            label_values=label_values,
        )
        first = numbers["filaments"][0]
        for settings, group in zip(recipe.filaments, scene.filaments, strict=True):
            add_filaments(
                density,
                instances,
                list(group),
                reference=self._subunit(settings, recipe),
                voxel_spacing=spacing,
                first=first,
                labels=labels,
                label_values=atlas.values_of(settings, legend),
            )
            first += len(group)
        coverage = np.broadcast_to(scene.ice.coverage(grid), shape)
        first = numbers["membranes"][0]
        for bilayer in (one for group in scene.bilayers for one in group):
            add_bilayer(
                density,
                instances,
                bilayer,
                voxel_spacing=spacing,
                instance=first,
                labels=labels,
                label=values[bilayer.label],
                ice=coverage,
            )
            first += 1
        surroundings.add_vacuum(density, scene.ice.coverage(grid))
        for name, (solid, label) in _solids(scene).items():
            add_solid(
                density,
                instances,
                solid,
                voxel_spacing=spacing,
                instance=numbers[name][0],
                labels=labels,
                label=values[label],
            )
        return _Model(density=grid, instances=instances, labels=labels, legend=legend)

    def _describe(
        self, scene: Scene, model: _Model, tomogram: Tomogram, halves: tuple[Tomogram, ...]
    ) -> Sample:
        """Put the truth beside the tomogram, on its grid."""
        recipe, numbers = scene.recipe, _number_instances(scene)
        factor = recipe.reconstruction.binning
        grid = model.density
        coverage = np.broadcast_to(scene.ice.coverage(grid), grid.shape)
        particles = atlas.list_particles(
            recipe, scene.packing, self._variants(recipe), first=numbers["membranes"][0]
        )
        membranes = atlas.list_membranes(
            recipe, scene.bilayers, grid=grid, ice=coverage, first=numbers["membranes"][0]
        )
        filaments = atlas.list_filaments(
            recipe,
            scene.filaments,
            subunits=[self._subunit(settings, recipe) for settings in recipe.filaments],
            grid=grid,
            first=numbers["filaments"][0],
        )
        centers = np.rint(grid.to_index(scene.packing.position)).astype(int)
        instances, labels = atlas.bin_instances(
            model.instances, model.labels, factor, centers=centers
        )
        # Positions count from the centre of the tomogram's own first voxel.
        moved = [
            None if table is None else replace(table, position=table.position - tomogram.origin)
            for table in (particles, membranes, filaments)
        ]
        tomogram, *halves_ = (replace(one, origin=np.zeros(3)) for one in (tomogram, *halves))
        density = atlas.bin_grid(grid, factor)
        return Sample(
            tomogram=tomogram,
            particles=moved[0] or particles,
            labels=density.with_data(labels),
            legend=model.legend,
            instances=density.with_data(instances),
            membranes=moved[1],
            filaments=moved[2],
            halves=tuple(halves_),
            summary=_summarize(scene),
            scene=scene,
            density=density,
        )

    def _pack(
        self, recipe: Recipe, room: Room, bilayers: tuple[tuple[Bilayer, ...], ...]
    ) -> Packing:
        """Place membrane proteins, then soluble particles."""
        specimen, variants = recipe.specimen, self._variants(recipe)
        rng = _stream(recipe, "counts")
        counts = np.array([_count(species, room, rng) for species in recipe.species], dtype=float)
        bound = np.array([s.location in _AT_MEMBRANES for s in recipe.species], dtype=bool)
        packings = []
        clearance = _number(specimen.clearance)
        if bound.any():
            packings.append(
                place_membrane_proteins(
                    variants,
                    np.where(bound, counts, 0).astype(int).tolist(),
                    species=recipe.species,
                    bilayers=[bilayer for group in bilayers for bilayer in group],
                    room=room,
                    rng=_stream(recipe, "membrane proteins"),
                    clearance=clearance,
                    border=specimen.border,
                )
            )
        packings.append(
            pack(
                variants,
                np.where(bound, 0, counts).tolist(),
                room=room,
                rng=_stream(recipe, "packing"),
                locations=[
                    "anywhere" if b else s.location
                    for s, b in zip(recipe.species, bound, strict=True)
                ],
                layers=[species.layer for species in recipe.species],
                clearance=clearance,
                border=specimen.border,
                method=str(specimen.packing),
                fraction=None if specimen.fraction is None else _number(specimen.fraction),
            )
        )
        return Packing.concatenate(packings)

    def _variants(self, recipe: Recipe) -> list[list[Reference]]:
        """References of each species; of flexible ones, those of this very recipe."""
        variants = []
        for number, species in enumerate(recipe.species):
            key: tuple[Any, ...] = (
                species.structure,
                species.mass_kda,
                species.map_spacing,
                species.assembly,
                species.parts,
                recipe.specimen.voxel_spacing,
            )
            if species.conformers:
                key = (*key, species.conformers, species.rmsd, recipe.seed, number)
            if key not in self._references:
                rng = np.random.default_rng([int(recipe.seed or 0), _STREAMS["conformers"], number])
                self._references[key] = make_references(
                    species, voxel_spacing=recipe.specimen.voxel_spacing, rng=rng
                )
            self._references.move_to_end(key)
            variants.append(self._references[key])
        self._forget()
        return variants

    def _subunit(self, settings: Filaments, recipe: Recipe) -> Reference:
        spacing = recipe.specimen.voxel_spacing
        helix = (settings.kind, settings.structure, settings.rise, settings.twist)
        key = ("filament", helix, settings.parts, spacing)
        if key not in self._references:
            self._references[key] = [
                make_reference(make_subunit(settings), voxel_spacing=spacing, parts=settings.parts)
            ]
        return self._references[key][0]

    def _forget(self) -> None:
        """Let go of the references that were used longest ago, beyond a gigabyte."""
        sizes = {
            key: sum(one.potential.data.nbytes for one in variants)
            for key, variants in self._references.items()
        }
        excess = sum(sizes.values()) - _CACHE_BYTES
        for key, size in sizes.items():
            if excess <= 0:
                break
            del self._references[key]
            excess -= size


@dataclass(frozen=True, eq=False, kw_only=True)
class _Model:
    """A rendered scene before the microscope."""

    density: Volume
    instances: NDArray[np.integer[Any]]
    labels: NDArray[np.uint16]
    legend: dict[int, str]


def draw_seed(rng: np.random.Generator) -> int:
    """Draw the seed of one scene."""
    return int(rng.integers(2**62))


def numbered_recipes(recipe: Recipe, *, number: int, seed: int | None = None) -> list[Recipe]:
    """Resolve a recipe for a series of samples, each of which depends on its number alone.

    A resolved recipe stands for itself where one sample without another seed is asked for.
    """
    if recipe.seed is not None and seed is None and number == 1:
        return [recipe]
    return [
        recipe.resolve(
            draw_seed(np.random.default_rng([seed or 0, i])), name=f"{recipe.name}_{i:03d}"
        )
        for i in range(number)
    ]


def _number_instances(scene: Scene) -> dict[str, tuple[int, int]]:
    """First instance number and how many there are, of each kind of thing."""
    counts = {
        "particles": len(scene.packing.position),
        "filaments": sum(len(group) for group in scene.filaments),
        "membranes": sum(len(group) for group in scene.bilayers),
        **{name: len(solid) for name, (solid, _) in _solids(scene).items()},
    }
    numbers, first = {}, 1
    for name, count in counts.items():
        numbers[name] = (first, count)
        first += count
    return numbers


def _solids(scene: Scene) -> dict[str, tuple[Solid, str]]:
    """Things of gold, carbon and ice that the scene has, with their labels."""
    recipe = scene.recipe
    solids: dict[str, tuple[Solid, str]] = {}
    for name, solid, settings in (
        ("gold", scene.beads, recipe.gold),
        ("carbon", scene.carbon, recipe.carbon),
        ("contamination", scene.crystals, recipe.contamination),
    ):
        if solid is not None and settings is not None:
            solids[name] = (solid, settings.label)
    return solids


def _without_even_ice(density: Volume, ice: surroundings.Ice) -> Volume:
    """Fill the vacuum beside an even layer of ice up to the potential of ice.

    An even layer has no contrast, however inclined; but it would end where the volume does.
    """
    even = replace(ice, heights=np.zeros((2, 0, 0))).coverage(density)
    if even.size == 1:
        return density
    return density.with_data(density.data + np.float32(ICE_POTENTIAL) * (1 - even))


def _summarize(scene: Scene) -> dict[str, Any]:
    """What the tables and volumes of a sample do not tell."""
    recipe, packing = scene.recipe, scene.packing
    rows = zip(recipe.species, packing.asked, packing.placed, strict=True)
    items: list[Species | Filaments] = [*recipe.species, *recipe.filaments]
    return {
        "volume_fraction": round(packing.fraction, 5),
        "species": [
            {"label": s.name, "role": s.role, "asked": int(asked), "placed": int(placed)}
            for s, asked, placed in rows
        ],
        "parts": {part.label: item.name for item in items for part in item.parts},
        "instances": {
            name: {"first": first, "count": count}
            for name, (first, count) in _number_instances(scene).items()
            if count
        },
    }


def _count(species: Species, room: Room, rng: np.random.Generator) -> float:
    """How many particles a recipe asks for; fractions of one by chance."""
    chance = rng.random()
    if species.concentration_um is None:
        count = _number(species.count)
    else:
        location = species.location if species.location in {"cytosol", "lumen"} else "anywhere"
        expected = _number(species.concentration_um) * _PER_MICROMOLAR * room.size(location)
        count = int(expected + chance)
    if count > _MOST_PARTICLES:
        raise ValueError(
            f"species {species.name}: {count:.4g} particles are too many; ask for at most"
            f" {_MOST_PARTICLES}"
        )
    return count


def _report_missing(recipe: Recipe, packing: Packing) -> None:
    if recipe.specimen.fraction is not None:
        if not recipe.species:
            return
        wanted = _number(recipe.specimen.fraction)
        if packing.fraction < 0.9 * wanted:
            logger.warning(
                "%s: no room for more than %.3f of the ice; %.3f was asked for",
                recipe.name,
                packing.fraction,
                wanted,
            )
        return
    rows = zip(recipe.species, packing.asked, packing.placed, strict=True)
    short = [f"{placed} of {asked} {s.name}" for s, asked, placed in rows if placed < asked]
    if short:
        logger.warning("%s: no room for more than %s", recipe.name, ", ".join(short))


def _stream(recipe: Recipe, part: str) -> np.random.Generator:
    """Give each part of a scene its own chance, so that fixing one leaves the others alone."""
    return np.random.default_rng([int(recipe.seed or 0), _STREAMS[part]])


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise ValueError(f"expected a resolved recipe with single numbers; got {value}")
    return float(value)
