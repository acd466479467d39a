"""The simulator: what is random is drawn first, then rendered without further chance."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from tomoloc.simulate.microscope import expose, reconstruct
from tomoloc.simulate.packing import Packing, pack
from tomoloc.simulate.recipe import Recipe
from tomoloc.simulate.references import Reference, add_particles, make_reference
from tomoloc.simulate.settings import BuiltIn, Species
from tomoloc.simulate.structures import make_complex
from tomoloc.types import CTF, Particles, Sample, Structure, TiltSeries, Volume

__all__ = ["Scene", "Simulator", "draw_seed", "load_structure", "numbered_recipes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """All that chance decided about one sample.

    Parameters
    ----------
    recipe : Recipe
        Resolved: it has no ranges left, and a seed. Drawing from it gives this scene again.
    packing : Packing
        Where the particles lie.
    """

    recipe: Recipe
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
    _references: dict[tuple[object, ...], Reference] = field(
        default_factory=dict, init=False, repr=False
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
        specimen = recipe.specimen
        packing = pack(
            [self._reference(species, recipe) for species in recipe.species],
            [int(_number(species.count)) for species in recipe.species],
            shape=specimen.shape,
            voxel_spacing=specimen.voxel_spacing,
            rng=_stream(recipe, 1),
            thickness=None if specimen.thickness is None else _number(specimen.thickness),
            clearance=specimen.clearance,
            border=specimen.border,
        )
        _report_missing(recipe, packing)
        return Scene(recipe=recipe, packing=packing)

    def render(self, scene: Scene) -> Sample:
        """Make the sample of a scene: the same scene gives the same bytes.

        Returns
        -------
        Sample
            `density` is the potential above ice in volt; `instances` are rows of `particles`
            plus one, `labels` number the recipe's labels from 1 in their order.
        """
        recipe, packing = scene.recipe, scene.packing
        specimen, spacing = recipe.specimen, recipe.specimen.voxel_spacing
        density = np.zeros(specimen.shape, dtype=np.float32)
        width = np.uint16 if len(packing.position) < 2**16 else np.uint32
        instances = np.zeros(specimen.shape, dtype=width)
        potential = Volume(data=density, voxel_spacing=spacing, name=recipe.name)
        add_particles(
            density,
            instances,
            [self._reference(species, recipe) for species in recipe.species],
            index=potential.to_index(packing.position),
            rotation=packing.rotation,
            species=packing.species,
        )
        names = list(dict.fromkeys(species.name for species in recipe.species))
        value = np.array([names.index(species.name) + 1 for species in recipe.species], int)
        lookup = np.concatenate([[0], value[packing.species]]).astype(np.uint16)
        tilt_series = _expose(recipe, potential)
        tomogram = reconstruct(tilt_series, shape=specimen.shape, name=recipe.name)
        return Sample(
            tomogram=tomogram,
            particles=_particles(recipe, packing),
            labels=potential.with_data(lookup[instances]),
            legend={i + 1: name for i, name in enumerate(names)},
            instances=potential.with_data(instances),
            scene=scene,
            density=potential,
        )

    def _reference(self, species: Species, recipe: Recipe) -> Reference:
        spacing = recipe.specimen.voxel_spacing
        key = (species.structure, species.mass_kda, species.assembly, spacing)
        if key not in self._references:
            source = load_structure(species)
            self._references[key] = make_reference(
                source, voxel_spacing=spacing, mass_kda=species.mass_kda
            )
        return self._references[key]


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


def load_structure(species: Species) -> Structure | Volume:
    """Make or read the structure of one species of a resolved recipe."""
    structure = species.structure
    if isinstance(structure, BuiltIn):
        mass = structure.mass_kda
        return make_complex(
            int(_number(structure.seed)),
            mass_kda=None if mass is None else _number(mass),
            symmetry=structure.symmetry,
        )
    from tomoloc.io.structures import read_structure

    return read_structure(structure, assembly=species.assembly)


def _expose(recipe: Recipe, potential: Volume) -> TiltSeries:
    microscope = recipe.microscope
    angles = microscope.tilt_angles
    defocus = np.full(len(angles), _number(microscope.defocus_um))
    ctf = CTF(
        defocus_u_um=defocus,
        defocus_v_um=defocus,
        defocus_angle=np.zeros(len(angles)),
        voltage_kv=microscope.voltage_kv,
        spherical_aberration_mm=microscope.spherical_aberration_mm,
        amplitude_contrast=_number(microscope.amplitude_contrast),
        phase_shift=_number(microscope.phase_shift),
    )
    ice = recipe.specimen.thickness
    return expose(
        potential,
        tilt_angles=angles,
        dose_e_per_a2=_number(microscope.dose_e_per_a2),
        ctf=ctf,
        rng=_stream(recipe, 2),
        thickness=float(potential.extent[2]) if ice is None else _number(ice),
    )


def _particles(recipe: Recipe, packing: Packing) -> Particles:
    labels = np.array([species.name for species in recipe.species], dtype=np.str_)
    n = len(packing.position)
    return Particles(
        position=packing.position,
        label=labels[packing.species],
        tomogram=recipe.name,
        rotation=packing.rotation,
        extra={
            "tomolocInstance": np.arange(1, n + 1),
            "tomolocConformer": np.zeros(n, dtype=int),
            "tomolocVisibleFraction": np.round(packing.visible, 4),
        },
    )


def _report_missing(recipe: Recipe, packing: Packing) -> None:
    rows = zip(recipe.species, packing.asked, packing.placed, strict=True)
    short = [f"{placed} of {asked} {s.name}" for s, asked, placed in rows if placed < asked]
    if short:
        logger.warning("%s: no room for more than %s", recipe.name, ", ".join(short))


def _stream(recipe: Recipe, number: int) -> np.random.Generator:
    """Give each part of a scene its own chance, so that fixing one leaves the others alone."""
    return np.random.default_rng([int(recipe.seed or 0), number])


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise ValueError(f"expected a resolved recipe with single numbers; got {value}")
    return float(value)
