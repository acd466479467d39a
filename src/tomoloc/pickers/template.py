"""Template matching: correlation with a known structure in all orientations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from tomoloc.arrays import sparse_zeros
from tomoloc.features.spectra import filter_tiles, local_spectrum, noise_like
from tomoloc.localize import (
    estimate_threshold,
    expected_false_peaks,
    false_discovery_rate,
    find_peaks,
    local_maxima,
    paint,
    separate_scores,
    suppress,
)
from tomoloc.nn.device import resolve_device
from tomoloc.physics.filters import (
    band_pass_weights,
    radial_frequency,
    radial_spectrum,
    rescale,
)
from tomoloc.physics.potential import (
    MOLECULAR_SURFACE,
    make_potential,
    mass_center,
    normalize_map,
)
from tomoloc.physics.rotations import sample_rotations, symmetry_group
from tomoloc.physics.wedge import tilt_weights
from tomoloc.pickers.correlation import (
    OVERSAMPLING,
    RotatedReference,
    correlate,
    spherical_mask,
)
from tomoloc.pickers.matching import Rivals, imbalance, search
from tomoloc.types import (
    FloatArray,
    Particles,
    ScoreMap,
    Structure,
    TiltSeries,
    Tomogram,
    Volume,
)

__all__ = ["TemplatePicker"]

_ROOM = 6
"""Voxels added around the mask, so that filters do not wrap around the box."""
_COARSE_STEP = 11.0
_QUIET_VOXELS = 1 << 19
"""Of the noise that template and decoy are compared in: exhaustively, fewer must do."""
_DECOY_ROUNDS = 10
_MOSTLY_ROUND = 0.5
_FINEST_WITHOUT_CTF = 30.0
_WHOLE = 1 << 27
"""Voxels up to which a tomogram is filtered as a whole, beyond in tiles."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TemplatePicker:
    """Find a known structure by local correlation in all orientations.

    The template is turned, weighted in Fourier space as the tilt series has weighted the
    tomogram (missing wedge, and CTF and dose where they are known), and correlated locally [1]_;
    both are whitened by the tomogram's radial power spectrum. A decoy, a random density of the
    template's shape, symmetry and amplitude spectrum, is searched alike, and its score is
    subtracted, as is the median of the difference. As neither fits noise better than the other,
    the scores of noise are about symmetric, and how far they go below 0 tells how far they go
    above: `threshold` follows from that without any model of the noise, as target-decoy
    competition does in proteomics [2]_.

    Not every orientation is tried at every voxel. Turned copies of the template span few
    dimensions; a few dozen correlations tell where the tomogram has energy in them, and all
    orientations are scored there. `exhaustive` tries all at all voxels.

    Several templates compete: of particles of different labels that overlap, the one that is less
    likely to be noise stays.

    Other molecules may resemble the template more than the decoy. They are told apart only where
    their scores form a group of their own, or by a finer angular step.

    Parameters
    ----------
    template : Structure or Volume, or a tuple of these
        Atoms, or a density map, protein positive. Particles are found where its centre of mass
        lies.
    label : str
        Of the particles found; the template's name by default. Of several templates, separated by
        commas.
    angular_step : float
        Angle between neighbouring orientations.
    low_pass : float, optional
        Finest resolution used, in angstrom; by default two voxels, but not below 30 Å where the
        tilt series does not state its CTF, as contrast may be inverted beyond.
    symmetry : str
        Point group of the template: C1, C2, ..., D2, ..., T, O or I, its main axis along z. One for
        all templates, or one each, separated by commas.
    diameter : float, optional
        Of the spherical mask; by default that of the smallest centred ball around the template.
    false_positives : float
        Expected number of false particles in a tomogram.
    ctf_correction : {"none", "flip", "full"}
        What has been done to the tomogram's contrast transfer: nothing, phases flipped, or
        amplitudes restored too (deconvolved). Matters where the tilt series states its CTF.
    whiten : bool
        Divide out the tomogram's radial power spectrum.
    separate : bool
        Raise the threshold above other structures where scores form two groups.
    handedness : bool
        Look for the template's mirror image, too, which competes: where most picks are mirrored,
        the tomogram's or the template's hand is wrong.
    exhaustive : bool
        Try all orientations at all voxels: the reference, hundreds of times slower.
    top_hat : bool
        Of the exhaustive search: keep of the score map only what is narrower than a fifth of the
        diameter [3]_, so that broad maxima, of membranes or carbon, fall.
    detectability : float
        Of the search that is not exhaustive: what it uses of what makes particles stand out in the
        background, from 0 to 1.
    refine : bool
        Of the search that is not exhaustive: let orientations leave the grid where the template is
        found.
    device : str
        auto, cpu or cuda.
    seed : int
        Of the decoy.

    References
    ----------
    .. [1] Roseman, Ultramicroscopy 94, 225 (2003), doi:10.1016/S0304-3991(02)00333-9.
    .. [2] Elias & Gygi, Nature Methods 4, 207 (2007), doi:10.1038/nmeth1019; random-phase
       templates in tomograms: Wan et al., Acta Cryst. D 80, 336 (2024),
       doi:10.1107/S205979832400295X.
    .. [3] Chaillet et al., Int. J. Mol. Sci. 24, 13375 (2023), doi:10.3390/ijms241713375.
    """

    template: Structure | Volume | tuple[Structure | Volume, ...]
    label: str = ""
    angular_step: float = 15.0
    low_pass: float | None = None
    symmetry: str = "C1"
    diameter: float | None = None
    false_positives: float = 1.0
    ctf_correction: Literal["none", "flip", "full"] = "none"
    whiten: bool = True
    separate: bool = True
    handedness: bool = False
    exhaustive: bool = False
    top_hat: bool = False
    detectability: float = 0.87
    refine: bool = True
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("symmetry", "label"):
            words, n = getattr(self, name).split(","), len(self._templates)
            if len(words) not in {1, n} or (name == "label" and words != [""] and len(words) != n):
                raise ValueError(f"{name} needs one word for each of {n} templates; got {words}")
        for symmetry in self.symmetry.split(","):
            symmetry_group(symmetry)
        if not 1 <= self.angular_step <= 180:
            raise ValueError(f"angular_step must be from 1 to 180 degrees; got {self.angular_step}")
        for name in ("low_pass", "diameter", "false_positives"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive; got {value}")
        if self.top_hat and not self.exhaustive:
            raise ValueError("top_hat needs the whole score map: give exhaustive, too")
        if not 0 < self.detectability <= 1:
            raise ValueError(f"detectability must be from 0 to 1; got {self.detectability}")

    @cached_property
    def particle_diameter(self) -> float:
        """Diameter of the mask in angstrom, of the smallest of several templates."""
        return min(self._diameters)

    @property
    def _templates(self) -> tuple[Structure | Volume, ...]:
        return self.template if isinstance(self.template, tuple) else (self.template,)

    @cached_property
    def _diameters(self) -> list[float]:
        if self.diameter is not None:
            return [self.diameter] * len(self._templates)
        return [
            template.diameter if isinstance(template, Structure) else _map_diameter(template)
            for template in self._templates
        ]

    def working_spacing(self, voxel_spacing: float) -> float:
        """Return the spacing to search at: no finer than orientations are told apart.

        Raises
        ------
        ValueError
            If `low_pass` leaves nothing of the template.
        """
        useful = self.particle_diameter * np.deg2rad(self.angular_step) / 8
        if self.low_pass is not None:
            if self.low_pass > self.particle_diameter:
                raise ValueError(
                    f"low_pass is {self.low_pass:g} Å, coarser than the template itself"
                    f" ({self.particle_diameter:.0f} Å); give a finer resolution"
                )
            useful = max(useful, self.low_pass / 2.5)
        return float(useful) if voxel_spacing < 0.7 * useful else voxel_spacing

    def score(self, tomogram: Tomogram) -> ScoreMap:
        """Correlate a tomogram with the template and the decoy.

        Parameters
        ----------
        tomogram : Tomogram
            Protein bright, with its tilt series.

        Returns
        -------
        ScoreMap
            Correlation with the template less that with the decoy, each at its best orientation,
            less the median of that difference.

        Raises
        ------
        ValueError
            If the tilt angles are unknown, or the template is larger than the tomogram.
        """
        series, spacing = tomogram.tilt_series, tomogram.voxel_spacing
        if series is None:
            raise ValueError(
                "template matching needs the tilt angles: give --tilt-range LO HI or --tilt-file"
            )
        if max(self._diameters) > tomogram.extent.min():
            raise ValueError("the template is larger than the tomogram")
        data, filter_of = self._filter(tomogram)
        labels, rivals = self._rivals(series, spacing, filter_of)
        scores, index, turns = (self._try_all if self.exhaustive else self._try_some)(data, rivals)
        return ScoreMap(
            data=scores,
            voxel_spacing=spacing,
            origin=tomogram.origin,
            name=tomogram.name,
            labels=tuple(labels),
            rotations=turns,
            rotation_index=index,
        )

    def _try_all(
        self, data: NDArray[np.float32], rivals: list[Rivals]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], Rotation]:
        """Scores of shape (label, z, y, x), the numbers of the best rotations, and these."""
        shape = (len(rivals), *data.shape)
        scores, index = np.empty(shape, np.float32), np.empty(shape, np.int32)
        start = 0
        noise = noise_like(data, max_voxels=_QUIET_VOXELS, rng=np.random.default_rng(self.seed))
        for number, pair in enumerate(rivals):
            better, which = self._compare(data, pair)
            quiet, _ = self._compare(noise, pair)
            places = np.unique(
                np.concatenate([local_maxima(s * quiet, threshold=0.0) for s in (1, -1)]), axis=0
            )
            scale = imbalance(places, quiet[tuple(places.T)], diameter=pair.diameter)
            scores[number] = better * np.where(better < 0, scale, np.float32(1))
            index[number] = which + start
            start += len(pair.rotations)
        return scores, index, Rotation.concatenate([pair.rotations for pair in rivals])

    def _compare(
        self, data: NDArray[np.float32], pair: Rivals
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Template's best correlation less the decoy's, of median 0, and the best rotation."""
        (score, which), (rival, _) = correlate(
            data,
            [pair.template, pair.decoy],
            pair.rotations,
            device=resolve_device(self.device),
        )
        better = score - rival
        # The more a reference varies with direction, the higher the best of many orientations
        # is in mere noise: the hollow sphere of ferritin stays below its decoy everywhere.
        if self.top_hat:
            reach = 2 * int(pair.diameter / 10) + 3
            better = ndimage.white_tophat(better, size=(reach,) * 3, mode="nearest")
        return better - np.median(better), which

    def _try_some(
        self, data: NDArray[np.float32], rivals: list[Rivals]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], Rotation]:
        """Do the same by the compressed search; 0 where neither template nor decoy can be."""
        shape = (len(rivals), *data.shape)
        scores, index = sparse_zeros(shape, np.float32), sparse_zeros(shape, np.int32)
        hits = search(
            data,
            rivals,
            angular_step=self.angular_step,
            detectability=self.detectability,
            refine=self.refine,
            device=resolve_device(self.device),
            seed=self.seed,
        )
        start = 0
        for number, found in enumerate(hits):
            place = (number, *found.voxel.T)
            scores[place] = found.score
            index[place] = start + np.arange(len(found.score))
            peaks = found.voxel[found.peak]
            paint(scores[number], peaks + found.offset, found.score[found.peak])
            start += len(found.score)
        return scores, index, Rotation.concatenate([found.rotation for found in hits])

    def _rivals(
        self,
        series: TiltSeries,
        spacing: float,
        filter_of: Callable[[FloatArray], FloatArray],
    ) -> tuple[list[str], list[Rivals]]:
        """Labels, and templates and decoys as the tilt series shows them."""
        n = len(self._templates)
        symmetries = self.symmetry.split(",") * (n if "," not in self.symmetry else 1)
        names = self.label.split(",") if self.label else [t.name for t in self._templates]
        labels, rivals = [], []
        for number, template in enumerate(self._templates):
            diameter = self._diameters[number] / spacing
            size = 2 * int(np.ceil((diameter + 2) / 2)) + 1 + _ROOM
            frequency = radial_frequency((size,) * 3, spacing)
            weights = tilt_weights(
                (size,) * 3,
                series,
                voxel_spacing=spacing,
                ctf=self.ctf_correction != "full",
                phase_flipped=self.ctf_correction == "flip",
            )
            if series.ctf is not None and self.ctf_correction == "none":
                weights = -weights  # underfocus turns protein dark; the tomogram has been inverted
            weights = (weights * filter_of(frequency)).astype(np.float32)
            mask = spherical_mask(size, diameter + 2)
            density = _sample_density(template, spacing / OVERSAMPLING, OVERSAMPLING * size + 1)
            label = names[number] or (f"template_{number + 1}" if n > 1 else "template")
            for mirrored in (False, True)[: 1 + self.handedness]:
                shown = np.ascontiguousarray(density[::-1]) if mirrored else density
                decoy = _make_decoy(shown, symmetry=symmetries[number], seed=self.seed)
                labels.append(f"{label}-mirrored" if mirrored else label)
                rivals.append(
                    Rivals(
                        template=RotatedReference(shown, weights, mask),
                        decoy=RotatedReference(decoy, weights, mask),
                        rotations=sample_rotations(self.angular_step, symmetries[number]),
                        coarse=sample_rotations(
                            max(self.angular_step, _COARSE_STEP), symmetries[number]
                        ),
                        diameter=diameter,
                    )
                )
        return labels, rivals

    def threshold(
        self, scores: ScoreMap, *, min_distance: float, mask: Volume | None = None
    ) -> FloatArray:
        """Set the threshold: for the stated number of false positives, or higher.

        The noise threshold follows from the scores below zero. Where the scores above it form
        two groups, those of the template and of other structures, it is raised to between them
        (see `tomoloc.localize.separate_scores`).

        Parameters
        ----------
        scores : ScoreMap
            From `score`.
        min_distance : float
            As for `find_peaks`, in angstrom.
        mask : Volume, data shape (z, y, x), optional
            Where peaks count.

        Returns
        -------
        ndarray, shape (label,)
        """
        noise = estimate_threshold(
            _null(scores),
            false_positives=self.false_positives,
            min_distance=min_distance,
            mask=mask,
            n_tail=self._n_tail,
        )
        if not self.separate:
            return noise
        peaks = find_peaks(scores, threshold=noise, min_distance=min_distance, mask=mask)
        label, score = np.asarray(peaks.label), np.asarray(peaks.score)
        return np.array(
            [
                separate_scores(score[label == name], lower=float(lower))
                for name, lower in zip(scores.labels, noise, strict=True)
            ]
        )

    def assess(
        self,
        particles: Particles,
        scores: ScoreMap,
        *,
        min_distance: float,
        mask: Volume | None = None,
    ) -> Particles:
        """Let particles of different labels compete, and say how sure each of them is.

        Parameters
        ----------
        particles : Particles
            Peaks of `scores`.
        scores : ScoreMap
            From `score`.
        min_distance : float
            That the peaks were found with, in angstrom; labels compete within it.
        mask : Volume, data shape (z, y, x), optional
            Where peaks count.

        Returns
        -------
        Particles
            With two extra columns: `tomolocPValue`, the chance that noise has a peak as high
            anywhere in the mask, and `tomolocFDR`, the part of noise to be expected among the
            particles of the label that score as high or higher.
        """
        expected = expected_false_peaks(
            particles, null=_null(scores), min_distance=min_distance, mask=mask, n_tail=self._n_tail
        )
        kept = np.arange(len(particles))
        if len(scores.labels) > 1:
            kept = suppress(
                particles.position, -np.log(expected + 1e-300), min_distance=min_distance
            )
        found = particles[np.sort(kept)]
        expected = expected[np.sort(kept)]
        rate = false_discovery_rate(np.asarray(found.label), expected)
        columns = {"tomolocPValue": -np.expm1(-expected), "tomolocFDR": rate}
        return replace(found, extra={**found.extra, **columns})

    @property
    def _n_tail(self) -> int:
        """Noise peaks whose heights are known well: of the compressed search only the highest."""
        return 100 if self.exhaustive else 25

    def _filter(self, tomogram: Tomogram) -> tuple[FloatArray, Callable[[FloatArray], FloatArray]]:
        """Whiten and band-limit a tomogram; also return the filter as a function of frequency."""
        spacing = tomogram.voxel_spacing
        series = tomogram.tilt_series
        blind = self.ctf_correction == "none" and (series is None or series.ctf is None)
        finest = _FINEST_WITHOUT_CTF if blind else 0.0
        low_pass = max(self.low_pass or finest, 2 * spacing)
        large = tomogram.data.size > _WHOLE
        if large:
            power: FloatArray = local_spectrum(tomogram.data, seed=self.seed)
            shells: FloatArray = np.linspace(0, 0.5 / spacing, len(power))
        else:
            shells, power = radial_spectrum(tomogram.data, voxel_spacing=spacing)
        # Shells without power (an empty tomogram, a filtered one) must not be blown up.
        floor = power[1:].max() * 1e-6 or 1.0
        gain = 1 / np.sqrt(np.maximum(power, floor))
        gain[0] = gain[1]

        def weights(frequency: FloatArray) -> FloatArray:
            band = band_pass_weights(frequency, low_pass=low_pass)
            return band * np.interp(frequency, shells, gain) if self.whiten else band

        if large:
            return filter_tiles(tomogram.data, lambda f: (f > 0) * weights(f / spacing)), weights
        spectrum = fft.rfftn(np.asarray(tomogram.data, dtype=np.float32), workers=-1)
        spectrum *= weights(radial_frequency(tomogram.shape, spacing))
        spectrum[0, 0, 0] = 0
        return fft.irfftn(spectrum, s=tomogram.shape, workers=-1), weights


def _null(scores: ScoreMap) -> ScoreMap:
    """Scores of noise: in noise, the decoy is as often better as the template is."""
    return replace(scores, data=-scores.data)


def _sample_density(template: Structure | Volume, spacing: float, size: int) -> NDArray[np.float32]:
    """Sample a template on a cube of odd size, its centre in the middle."""
    if isinstance(template, Structure):
        box = max(size, int(template.diameter / spacing) + 6)
        box += 1 - box % 2
        volume = make_potential(
            template,
            voxel_spacing=spacing,
            shape=(box, box, box),
            low_pass=2 * OVERSAMPLING * spacing,
        )
        start = (box - size) // 2
        return volume.crop((start,) * 3, (start + size,) * 3).data
    density = normalize_map(template)
    center = mass_center(density)
    volume = rescale(density, spacing)
    offset = (np.arange(size) - size // 2) * spacing
    axes = [volume.to_index(center + offset[:, None])[:, axis] for axis in range(3)]
    grid = np.meshgrid(*axes, indexing="ij")
    return ndimage.map_coordinates(volume.data, grid, order=3, mode="constant")


def _map_diameter(volume: Volume) -> float:
    """Twice the distance from the centre of mass to the farthest voxel of the molecule."""
    density = normalize_map(volume)
    position = density.to_position(np.argwhere(density.data > MOLECULAR_SURFACE))
    distance = np.linalg.norm(position - mass_center(density), axis=1)
    return float(2 * distance.max() + volume.voxel_spacing)


def _make_decoy(density: NDArray[np.float32], *, symmetry: str, seed: int) -> NDArray[np.float32]:
    """Make a density that is like a template in all but its structure.

    White noise, averaged over the point group, is made to fulfil two conditions in turn: in
    Fourier space the template's amplitudes, in real space its envelope. Without the envelope a
    decoy is a cloud that fills its box, which other proteins resemble less than they resemble the
    template. A template that is much the same in all directions, such as ferritin, has hardly any
    orientations to choose from in noise, so its decoy must be as round: see `_flip_shells`.
    """
    flipped, roundness = _flip_shells(density)
    if roundness > _MOSTLY_ROUND:
        return flipped
    smooth = ndimage.gaussian_filter(density, OVERSAMPLING)
    solid = ndimage.binary_dilation(smooth > 0.15 * smooth.max(), iterations=OVERSAMPLING)
    envelope = ndimage.gaussian_filter(solid.astype(np.float32), 1)
    amplitude = np.abs(fft.rfftn(density, workers=-1))
    noise = np.random.default_rng(seed).standard_normal(density.shape).astype(np.float32)
    decoy = _symmetrise(noise, symmetry) * envelope
    for _ in range(_DECOY_ROUNDS):
        spectrum = fft.rfftn(decoy, workers=-1)
        spectrum *= amplitude / np.maximum(np.abs(spectrum), 1e-20)
        decoy = fft.irfftn(spectrum, s=density.shape, workers=-1) * envelope
    return decoy.astype(np.float32)


def _flip_shells(density: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Change the sign of shells of frequency that hold half of a density's power.

    Also return how much of the power, shell by shell and on average, is the same in all
    directions: 1 for a sphere.
    """
    size = density.shape[0]
    spectrum = fft.rfftn(fft.ifftshift(density), workers=-1)  # real for a sphere
    number = np.rint(radial_frequency(density.shape, 1.0) * size).astype(int)
    count = np.bincount(number.ravel())
    power = np.bincount(number.ravel(), np.abs(spectrum.ravel()) ** 2)
    even = np.bincount(number.ravel(), spectrum.real.ravel()) ** 2 / count
    useful = slice(1, size // (2 * OVERSAMPLING))  # up to the tomogram's Nyquist frequency
    roundness = float(np.mean(even[useful] / np.maximum(power[useful], 1e-30)))
    signs = np.ones(len(power))
    balance = 0.0
    for shell in np.argsort(-power):
        signs[shell] = -1.0 if balance > 0 else 1.0
        balance += signs[shell] * power[shell]
    flipped = fft.irfftn(spectrum * signs[number], s=density.shape, workers=-1)
    return fft.fftshift(flipped).astype(np.float32), roundness


def _symmetrise(density: NDArray[np.float32], symmetry: str) -> NDArray[np.float32]:
    """Average a cube of odd size over the rotations of a point group about its middle."""
    middle = np.array(density.shape) // 2
    turned = [
        ndimage.affine_transform(density, matrix, middle - matrix @ middle, order=1)
        # arrays are zyx, rotations xyz
        for matrix in symmetry_group(symmetry).as_matrix()[:, ::-1, ::-1]
    ]
    return np.mean(turned, axis=0, dtype=np.float32)
