"""What a recipe may hold: one dataclass for each table of its TOML.

A number or a word that may also be drawn for each sample is marked so on its field: in TOML it is
then a value, an even range ``[low, high]`` or a choice ``{ one_of = [a, b, c] }``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from tomoloc.physics.detector import DETECTORS
from tomoloc.simulate.drawn import (
    COUNTED,
    DRAWN,
    WORD,
    Choice,
    Number,
    Range,
    Word,
    bounds,
    check_kinds,
    check_label,
    check_not_negative,
    check_positive,
    check_within,
    check_word,
    in_words,
)
from tomoloc.types import FloatArray

__all__ = [
    "BuiltIn",
    "Carbon",
    "Choice",
    "Contamination",
    "Filaments",
    "Gold",
    "Membranes",
    "Microscope",
    "Number",
    "Part",
    "Range",
    "Reconstruction",
    "Species",
    "Specimen",
    "Word",
]

_MOST_IMAGES = 2000  # of a tilt series


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """The block of ice that is imaged.

    Parameters
    ----------
    shape : tuple of int
        Voxels along z, y and x.
    voxel_spacing : float
    thickness : float, optional
        Of the ice along z; that of the block by default.
    roughness : float
        Root mean square height of the ice's two surfaces; beyond them is vacuum.
    inclination : float
        Of the ice against the block, about the y axis, in degrees, as of a lamella.
    clearance : float
        Least distance between particles.
    border : {"inside", "cut"}
        Whether particles lie wholly inside along x and y, or only their centres must.
    packing : {"random", "tetris"}
        How particles find their places: anywhere, or touching those that are there.
    fraction : float, optional
        Fill this fraction of the ice with particles, as far as there is room. Counts and
        concentrations are then the proportions in which species are drawn.
    """

    shape: tuple[int, int, int]
    voxel_spacing: float = 10.0
    thickness: Number | None = field(default=None, metadata=DRAWN)
    roughness: Number = field(default=0.0, metadata=DRAWN)
    inclination: Number = field(default=0.0, metadata=DRAWN)
    clearance: Number = field(default=10.0, metadata=DRAWN)
    border: Literal["inside", "cut"] = "inside"
    packing: Word = field(default="random", metadata=WORD)
    fraction: Number | None = field(default=None, metadata=DRAWN)

    def __post_init__(self) -> None:
        check_kinds(self)
        shape = tuple(self.shape) if isinstance(self.shape, (list, tuple)) else ()
        if len(shape) != 3 or not all(isinstance(n, int) and n >= 8 for n in shape):
            raise ValueError(
                f"shape must be three whole numbers z, y, x from 8 on; got {self.shape!r}"
            )
        object.__setattr__(self, "shape", shape)
        check_positive(self, "voxel_spacing", "thickness", "fraction")
        check_not_negative(self, "roughness")
        check_within(self, "clearance", 0, 1000)
        check_within(self, "inclination", -45, 45)
        check_within(self, "fraction", 0, 1)
        check_word(self, "border", ("inside", "cut"))
        check_word(self, "packing", ("random", "tetris"))


@dataclass(frozen=True, kw_only=True)
class Microscope:
    """How the tilt series is taken.

    Parameters
    ----------
    tilt_min, tilt_max, tilt_step : float
        In degrees.
    scheme : {"dose-symmetric", "bidirectional", "continuous"}
        Order of the tilts: from the lowest to both sides in turn; from the lowest up, then down;
        from one end to the other.
    dose_e_per_a2 : float
        Of the whole series, spread evenly.
    defocus_um : float
        At the tilt axis and the middle of the ice; underfocus is positive.
    defocus_spread_um, astigmatism_um : float
        Standard deviation of the defocus from image to image; difference between the two axes.
    defocus_gradient : bool
        Whether defocus changes across tilted images and with height.
    voltage_kv, spherical_aberration_mm : float
    amplitude_contrast, phase_shift : float
        A fraction, and degrees of a phase plate.
    beam_tilt_mrad : float
        Along a direction drawn for the series.
    energy_filter : bool
        Whether inelastically scattered electrons are taken away; without, they add to the noise.
    detector : {"ideal", "K2", "K3", "Falcon4"}
    detector_pixel : float
        Of the detector's physical pixels at the specimen; images are binned from there.
    tilt_error, shift_error : float
        Standard deviations, in degrees and Å, by which images lie off from where the
        reconstruction takes them to be.
    motion : float
        Root mean square displacement in Å while an image is taken.
    """

    tilt_min: Number = field(default=-60.0, metadata=DRAWN)
    tilt_max: Number = field(default=60.0, metadata=DRAWN)
    tilt_step: Number = field(default=3.0, metadata=DRAWN)
    scheme: Word = field(default="dose-symmetric", metadata=WORD)
    dose_e_per_a2: Number = field(default=120.0, metadata=DRAWN)
    defocus_um: Number = field(default=3.5, metadata=DRAWN)
    defocus_spread_um: Number = field(default=0.0, metadata=DRAWN)
    astigmatism_um: Number = field(default=0.0, metadata=DRAWN)
    defocus_gradient: bool = True
    voltage_kv: Number = field(default=300.0, metadata=DRAWN)
    spherical_aberration_mm: Number = field(default=2.7, metadata=DRAWN)
    amplitude_contrast: Number = field(default=0.07, metadata=DRAWN)
    phase_shift: Number = field(default=0.0, metadata=DRAWN)
    beam_tilt_mrad: Number = field(default=0.0, metadata=DRAWN)
    energy_filter: bool = True
    detector: Word = field(default="K3", metadata=WORD)
    detector_pixel: Number = field(default=2.0, metadata=DRAWN)
    tilt_error: Number = field(default=0.0, metadata=DRAWN)
    shift_error: Number = field(default=0.0, metadata=DRAWN)
    motion: Number = field(default=0.0, metadata=DRAWN)

    def __post_init__(self) -> None:
        check_kinds(self, "dose_e_per_a2")
        check_positive(self, "tilt_step", "dose_e_per_a2", "detector_pixel")
        check_within(self, "voltage_kv", 20, 3000)
        check_not_negative(
            self, "defocus_spread_um", "astigmatism_um", "tilt_error", "shift_error", "motion"
        )
        check_within(self, "tilt_min", -85, 85)
        check_within(self, "tilt_max", -85, 85)
        check_within(self, "amplitude_contrast", 0, 1)
        check_within(self, "voltage_kv", 20, 2000)
        check_word(self, "scheme", ("dose-symmetric", "bidirectional", "continuous"))
        check_word(self, "detector", tuple(DETECTORS))
        if bounds(self.tilt_min)[1] > bounds(self.tilt_max)[0]:
            raise ValueError("tilt_min must not exceed tilt_max")
        widest = bounds(self.tilt_max)[1] - bounds(self.tilt_min)[0]
        if widest > _MOST_IMAGES * bounds(self.tilt_step)[0]:
            raise ValueError(
                f"tilt_step gives more than {_MOST_IMAGES} images; got {in_words(self.tilt_step)}"
            )

    @property
    def tilt_angles(self) -> FloatArray:
        """Angles of a resolved recipe, sorted."""
        low, high, step = (bounds(v)[0] for v in (self.tilt_min, self.tilt_max, self.tilt_step))
        return low + step * np.arange(int((high - low) / step + 1e-9) + 1)


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How the tomogram is made from the tilt series.

    Parameters
    ----------
    method : {"wbp", "sirt"}
        Weighted back-projection, or simultaneous iterations.
    iterations : int
        Of SIRT.
    roll_off : float
        Fraction of Nyquist at which the ramp filter starts to fall.
    ctf_correction : {"none", "flip", "flip-3d"}
        Phases flipped after the defocus at the tilt axis, or after that at each place and height
        (3D-CTF).
    binning : int
        Voxels of the specimen to one of the tomogram, along each axis.
    halves : bool
        Whether two tomograms with independent noise, from half of the electrons each, are made,
        too.
    denoise : {"none", "gaussian", "median"}
        Filter the tomogram: a Gaussian of one voxel, or the median of 3 x 3 x 3.
    """

    method: Word = field(default="wbp", metadata=WORD)
    iterations: Number = field(default=10, metadata=COUNTED)
    roll_off: Number = field(default=0.9, metadata=DRAWN)
    ctf_correction: Word = field(default="none", metadata=WORD)
    binning: int = 1
    halves: bool = False
    denoise: Word = field(default="none", metadata=WORD)

    def __post_init__(self) -> None:
        check_kinds(self)
        check_positive(self, "iterations", "binning", "roll_off")
        check_within(self, "roll_off", 0, 1)
        check_word(self, "method", ("wbp", "sirt"))
        check_word(self, "ctf_correction", ("none", "flip", "flip-3d"))
        check_word(self, "denoise", ("none", "gaussian", "median"))


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A random complex: the arguments of `tomoloc.simulate.structures.make_complex`."""

    seed: Number = field(metadata=COUNTED)
    mass_kda: Number | None = field(default=None, metadata=DRAWN)
    symmetry: Word | None = field(default=None, metadata=WORD)

    def __post_init__(self) -> None:
        check_kinds(self)
        check_not_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a complex with a label of its own in the atlas.

    Parameters
    ----------
    label : str
    chains : tuple of str
        Chains of the complex's structure that make up the part.
    structure : str
        Or a file of its own, in the same frame as the complex, to which it is added.
    """

    label: str
    chains: tuple[str, ...] = ()
    structure: str = ""

    def __post_init__(self) -> None:
        check_kinds(self)
        if isinstance(self.chains, str) or not all(isinstance(name, str) for name in self.chains):
            raise ValueError(f"chains must be a list of words; got {self.chains!r}")
        object.__setattr__(self, "chains", tuple(self.chains))
        if not self.label:
            raise ValueError("a part needs a label")
        if bool(self.chains) == bool(self.structure):
            raise ValueError(f"part {self.label} needs either chains or a structure")


Location = Literal["anywhere", "cytosol", "lumen", "membrane", "outside", "inside", "interface"]


@dataclass(frozen=True, kw_only=True)
class Species:
    """One kind of particle, or several that are treated alike.

    Parameters
    ----------
    structure : str, BuiltIn, or tuple of str
        A file (.pdb, .cif, .mrc and their kin) or a folder of them, relative to the recipe's own
        folder; "pdb:1bxn"; "builtin:7"; a table with the seed, mass_kda and symmetry of a built-in
        complex; or a list of such words.
    count : float, optional
        How many to place, of each structure where there are several.
    concentration_um : float, optional
        Instead of a count, in µmol/L of the ice or compartment the species lives in.
    choose : int, optional
        How many of several structures to draw for each sample; all by default. From a range of
        built-in seeds, so many different ones are drawn.
    label : str
        By default the name of the structure. Species may share one.
    role : {"target", "distractor"}
        Distractors are in the table and the atlas, but no picker is asked to find them.
    layer : int
        Layers are placed one after the other; within one, large species go first.
    location : str
        "anywhere" in the ice; in the "cytosol" (outside of closed membranes) or the "lumen"
        (inside); through the "membrane"; attached to it, "outside" or "inside"; or at the
        "interface" of ice and air.
    membrane : str
        Label of the membranes meant by `location`; all by default.
    mass_kda : float, optional
        Of the molecule in a density map, whose units are arbitrary (`normalize_map`).
    map_spacing : float, optional
        Voxel spacing of a density map, where its header states none or a wrong one.
    assembly : bool
        Whether to build the first biological assembly that a structure file states.
    conformers : int
        How many flexible variants to make for each sample; 0 takes the structure as it is.
    rmsd : float
        Of a variant from the structure, over the network's nodes (CA and P), in Å.
    parts : tuple of Part
    """

    structure: str | BuiltIn | tuple[str, ...]
    count: Number | None = field(default=None, metadata=COUNTED)
    concentration_um: Number | None = field(default=None, metadata=DRAWN)
    choose: Number | None = field(default=None, metadata=COUNTED)
    label: str = ""
    role: Literal["target", "distractor"] = "target"
    layer: int = 0
    location: Location = "anywhere"
    membrane: str = ""
    mass_kda: float | None = None
    map_spacing: float | None = None
    assembly: bool = False
    conformers: Number = field(default=0, metadata=COUNTED)
    rmsd: Number = field(default=3.0, metadata=DRAWN)
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        structure = self.structure
        if isinstance(structure, list):
            structure = tuple(structure)
        if isinstance(structure, str) and structure.startswith("builtin:"):
            number = structure.removeprefix("builtin:")
            if not number.isdigit():
                raise ValueError(f"a built-in structure is builtin:SEED; got {structure!r}")
            structure = BuiltIn(seed=int(number))
        object.__setattr__(self, "structure", structure)
        object.__setattr__(self, "parts", tuple(self.parts))
        if (self.count is None) == (self.concentration_um is None):
            raise ValueError("a species needs either count or concentration_um")
        check_not_negative(self, "count", "concentration_um", "conformers", "rmsd")
        check_positive(self, "mass_kda", "map_spacing", "choose")
        check_word(self, "role", ("target", "distractor"))
        check_word(self, "location", get_args(Location))

    @property
    def name(self) -> str:
        """Label of the species' particles: its own, or its structure's name."""
        if self.label:
            return self.label
        if isinstance(self.structure, BuiltIn):
            seed = self.structure.seed
            return f"complex-{seed:.0f}" if isinstance(seed, (int, float)) else "complex"
        source = self.structure if isinstance(self.structure, str) else self.structure[0]
        return Path(source.removeprefix("pdb:")).name.split(".")[0]


@dataclass(frozen=True, kw_only=True)
class Membranes:
    """Lipid bilayers of one kind.

    Parameters
    ----------
    shape : {"sphere", "ellipsoid", "blob", "tube", "sheet"}
        A blob is a sphere with smooth random dents; a tube is closed by caps; a sheet is open and
        goes through the whole volume.
    count : int
    diameter : float
        Of the middle of the bilayer; of a tube, across it. Sheets have none.
    elongation : float
        Longest to shortest axis of ellipsoids, and length to diameter of tubes.
    undulation : float, optional
        Root mean square height of smooth undulations of the surface, in Å; by default 20, and none
        for spheres and ellipsoids.
    thickness : float
        From the head groups of one leaflet to those of the other.
    label : str
    """

    shape: Word = field(default="blob", metadata=WORD)
    count: Number = field(default=1, metadata=COUNTED)
    diameter: Number = field(default=800.0, metadata=DRAWN)
    elongation: Number = field(default=1.5, metadata=DRAWN)
    undulation: Number | None = field(default=None, metadata=DRAWN)
    thickness: Number = field(default=38.0, metadata=DRAWN)
    label: str = "membrane"

    def __post_init__(self) -> None:
        check_kinds(self)
        check_label(self)
        check_word(self, "shape", ("sphere", "ellipsoid", "blob", "tube", "sheet"))
        check_positive(self, "diameter", "elongation")
        check_within(self, "thickness", 10, 200)
        check_not_negative(self, "count", "undulation")
        if bounds(self.diameter)[0] <= bounds(self.thickness)[1]:
            raise ValueError(
                f"diameter must exceed the bilayer's thickness; got {in_words(self.diameter)}"
            )


@dataclass(frozen=True, kw_only=True)
class Filaments:
    """Filaments of one kind.

    Parameters
    ----------
    kind : {"actin", "microtubule", "cofilactin", "tmv", "helix"}
        A helix needs `structure`, `rise` and `twist` of its own.
    count : int
        Of filaments, or of bundles.
    length : float, optional
        By default they go through the whole volume.
    persistence_length : float, optional
        In Å; that of the kind by default.
    arrangement : {"random", "bundle", "network"}
        Each on its own; parallel in hexagonal bundles; or branching off from each other.
    bundle_size : int
        Filaments of a bundle.
    bundle_spacing : float, optional
        Between their axes; 1.3 diameters by default.
    structure : str
        File of one subunit placed about the helical axis z; that of the kind, which is built in,
        by default.
    rise, twist : float, optional
        From one subunit to the next, in Å and degrees; those of the kind by default.
    location : {"anywhere", "cytosol", "lumen"}
    label : str
        That of the kind by default.
    parts : tuple of Part
    """

    kind: Literal["actin", "microtubule", "cofilactin", "tmv", "helix"] = "actin"
    count: Number = field(default=1, metadata=COUNTED)
    length: Number | None = field(default=None, metadata=DRAWN)
    persistence_length: Number | None = field(default=None, metadata=DRAWN)
    arrangement: Word = field(default="random", metadata=WORD)
    bundle_size: Number = field(default=7, metadata=COUNTED)
    bundle_spacing: Number | None = field(default=None, metadata=DRAWN)
    structure: str = ""
    rise: float | None = None
    twist: float | None = None
    location: Literal["anywhere", "cytosol", "lumen"] = "cytosol"
    label: str = ""
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        object.__setattr__(self, "parts", tuple(self.parts))
        check_word(self, "kind", ("actin", "microtubule", "cofilactin", "tmv", "helix"))
        if any(part.structure for part in self.parts):
            raise ValueError("parts of filaments must be chains of the subunit; got a structure")
        check_word(self, "arrangement", ("random", "bundle", "network"))
        check_word(self, "location", ("anywhere", "cytosol", "lumen"))
        check_positive(
            self, "length", "persistence_length", "rise", "bundle_size", "bundle_spacing"
        )
        check_not_negative(self, "count")
        check_within(self, "rise", 0.5, 1000)
        check_within(self, "bundle_size", 1, 500)
        if self.kind == "helix" and (not self.structure or None in (self.rise, self.twist)):
            raise ValueError("a helix needs structure, rise and twist")

    @property
    def name(self) -> str:
        """Label of the filaments: their own, or their kind."""
        return self.label or self.kind


@dataclass(frozen=True, kw_only=True)
class Gold:
    """Fiducial beads.

    Parameters
    ----------
    count : int
        How many beads.
    diameter : float
        Their mean; beads differ by some 5 %.
    location : {"anywhere", "surface"}
        In the ice, or on its surfaces.
    label : str
    """

    count: Number = field(default=10, metadata=COUNTED)
    diameter: Number = field(default=100.0, metadata=DRAWN)
    location: Word = field(default="anywhere", metadata=WORD)
    label: str = "gold"

    def __post_init__(self) -> None:
        check_kinds(self)
        check_label(self)
        check_not_negative(self, "count")
        check_positive(self, "diameter")
        check_word(self, "location", ("anywhere", "surface"))


@dataclass(frozen=True, kw_only=True)
class Carbon:
    """The support film, whose hole the field of view looks through.

    Parameters
    ----------
    hole_diameter : float
        Of the round hole.
    edge : float
        Distance of the hole's edge from the middle of the field of view; negative where the
        middle lies on the film.
    thickness : float
    label : str
    """

    hole_diameter: Number = field(default=12000.0, metadata=DRAWN)
    edge: Number = field(default=500.0, metadata=DRAWN)
    thickness: Number = field(default=120.0, metadata=DRAWN)
    label: str = "carbon"

    def __post_init__(self) -> None:
        check_kinds(self)
        check_label(self)
        check_positive(self, "hole_diameter", "thickness")


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """Crystals of ice on the surfaces.

    Parameters
    ----------
    count : int
        How many crystals.
    diameter : float
        Their mean.
    label : str
    """

    count: Number = field(default=2, metadata=COUNTED)
    diameter: Number = field(default=600.0, metadata=DRAWN)
    label: str = "contamination"

    def __post_init__(self) -> None:
        check_kinds(self)
        check_label(self)
        check_not_negative(self, "count")
        check_positive(self, "diameter")
