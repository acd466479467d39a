"""From a specimen's potential to the tilt series that a microscope takes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from tomoloc.physics.ctf import aberration_phase, electron_wavelength, interaction_parameter
from tomoloc.physics.detector import Detector, find_detector
from tomoloc.physics.dose import damage
from tomoloc.physics.imaging import depth_step, image_depths
from tomoloc.physics.materials import VITREOUS_ICE
from tomoloc.physics.projection import project
from tomoloc.simulate.settings import Microscope
from tomoloc.types import CTF, FloatArray, TiltSeries, Volume

__all__ = ["Acquisition", "draw_acquisition", "expose", "tilt_order"]

_STEEPEST = 86.0  # degrees; settings end at 85, and the stage at that
_RADIAL = 4096  # samples of what depends on the spatial frequency's length alone


def tilt_order(tilt_angles: FloatArray, *, scheme: str = "dose-symmetric") -> NDArray[np.intp]:
    """Order in which tilts are taken.

    Parameters
    ----------
    tilt_angles : ndarray, shape (n,)
        Sorted.
    scheme : {"dose-symmetric", "bidirectional", "continuous"}
        From the lowest to both sides in turn, which alternate in pairs (0, +3, -3, -6, +6, +9,
        ...) and so spare the stage half of its long moves [1]_; from the lowest up, then from
        there down; from one end to the other.

    Returns
    -------
    ndarray of int, shape (n,)
        Indices into `tilt_angles`, first exposure first.

    Raises
    ------
    ValueError
        If there is no such scheme.

    References
    ----------
    .. [1] Hagen, Wan & Briggs, J. Struct. Biol. 197 (2017), doi:10.1016/j.jsb.2016.06.007.
    """
    n = len(tilt_angles)
    start = int(np.argmin(np.abs(tilt_angles)))
    above, below = list(range(start + 1, n)), list(range(start - 1, -1, -1))
    if scheme == "continuous":
        return np.arange(n)
    if scheme == "bidirectional":
        return np.array([start, *above, *below])
    if scheme != "dose-symmetric":
        raise ValueError(
            f"scheme must be dose-symmetric, bidirectional or continuous; got {scheme!r}"
        )
    order, sides = [start], [above, below]
    while above or below:
        for side in sides:
            if side:
                order.append(side.pop(0))
        sides.reverse()
    return np.array(order)


@dataclass(frozen=True, eq=False, kw_only=True)
class Acquisition:
    """What was set, and what chance made of it, for each of n images.

    Parameters
    ----------
    tilt_angles : ndarray, shape (n,)
        Where the stage was told to go.
    true_angles : ndarray, shape (n,)
        Where it went.
    shifts : ndarray, shape (n, 2)
        Displacement xy of each image's content that alignment leaves, in angstrom.
    drifts : ndarray, shape (n, 2)
        Way xy that the specimen goes, evenly, while an image is taken, in angstrom.
    beam_tilt : ndarray, shape (2,)
        Along x and y, in radian.
    dose_before, dose_after : ndarray, shape (n,)
        Exposure accumulated at the start and the end of each image, in e/Å².
    ctf : CTF
        At the tilt axis and the middle of the specimen.
    """

    tilt_angles: FloatArray
    true_angles: FloatArray
    shifts: FloatArray
    drifts: FloatArray
    beam_tilt: FloatArray
    dose_before: FloatArray
    dose_after: FloatArray
    ctf: CTF


def draw_acquisition(microscope: Microscope, *, rng: np.random.Generator) -> Acquisition:
    """Draw what differs from image to image.

    As many numbers are drawn whatever the settings, so that changing one leaves the others' alone.

    Parameters
    ----------
    microscope : Microscope
        Resolved: without ranges.
    rng : numpy.random.Generator
    """
    angles = microscope.tilt_angles
    n = len(angles)
    deviation = rng.standard_normal((4, n))
    turn = rng.uniform(0, 2 * np.pi, n)  # of the drifts
    axis, azimuth = rng.uniform(0, 180), rng.uniform(0, 2 * np.pi)
    rank = np.empty(n)
    rank[tilt_order(angles, scheme=str(microscope.scheme))] = np.arange(n)
    dose = _number(microscope.dose_e_per_a2)
    each = 0.0 if np.isinf(dose) else dose / n
    defocus = _number(microscope.defocus_um)
    defocus = defocus + _number(microscope.defocus_spread_um) * deviation[0]
    astigmatism = _number(microscope.astigmatism_um)
    # A way of length L that is gone evenly has a root mean square displacement of L / sqrt(12).
    way = np.sqrt(12) * _number(microscope.motion)
    return Acquisition(
        tilt_angles=angles,
        true_angles=np.clip(
            angles + _number(microscope.tilt_error) * deviation[1], -_STEEPEST, _STEEPEST
        ),
        shifts=_number(microscope.shift_error) * deviation[2:].T,
        drifts=way * np.stack([np.cos(turn), np.sin(turn)], axis=1),
        beam_tilt=1e-3
        * _number(microscope.beam_tilt_mrad)
        * np.array([np.cos(azimuth), np.sin(azimuth)]),
        dose_before=each * rank,
        dose_after=each * (rank + 1),
        ctf=CTF(
            defocus_u_um=defocus + astigmatism / 2,
            defocus_v_um=defocus - astigmatism / 2,
            defocus_angle=np.full(n, axis),
            voltage_kv=_number(microscope.voltage_kv),
            spherical_aberration_mm=_number(microscope.spherical_aberration_mm),
            amplitude_contrast=_number(microscope.amplitude_contrast),
            phase_shift=_number(microscope.phase_shift),
        ),
    )


def expose(
    potential: Volume,
    *,
    microscope: Microscope,
    rng: np.random.Generator,
    thickness: float = 0.0,
    attenuation: Volume | None = None,
    halves: bool = False,
) -> tuple[TiltSeries, ...]:
    """Take a tilt series of a specimen that scatters weakly.

    The electrons that reach a pixel are, in the weak-phase approximation [1]_, ::

        N exp(-path) (1 + 2 sigma sum over h of F⁻¹[CTF(defocus - h) · damage · F V_h])

    with N the dose of one image times the pixel's area, V_h what the projected potential holds at
    height h along the beam, and path how many mean free paths of inelastic scattering the beam
    goes through. Without an energy filter the electrons so lost come back, but carry no contrast.
    The detector counts a Poisson number of the electrons that its quantum efficiency leaves, after
    the optics, and then blurs the counts.

    Images are taken at the true angles and with the true shifts; the series tells the nominal
    ones. The true defocus of each image is told, as a fit to it would find it.

    Parameters
    ----------
    potential : Volume, data shape (z, y, x)
        In volt above ice. It repeats itself along x and y.
    microscope : Microscope
        Resolved: without ranges. With an infinite dose, images have neither noise nor damage.
    rng : numpy.random.Generator
    thickness : float
        Of the ice in angstrom, where no attenuation is given.
    attenuation : Volume, data shape (z, y, x), optional
        Losses of intensity in 1/angstrom, on a grid that may be coarser, over the same space.
    halves : bool
        Whether to give two more series with half of the electrons each; they add up to the first,
        and their noise is independent.

    Returns
    -------
    tuple of TiltSeries
        One, or three with halves. Images of shape (n, y, x) in counts, tilts sorted; without
        noise, the expectation for one electron a pixel.

    Raises
    ------
    ValueError
        If the recipe is not resolved or the detector unknown.

    References
    ----------
    .. [1] Vulović et al., J. Struct. Biol. 183 (2013), doi:10.1016/j.jsb.2013.05.008.
    """
    taken = draw_acquisition(microscope, rng=rng)
    seeds = rng.integers(2**63, size=len(taken.tilt_angles))
    detector, spacing = find_detector(str(microscope.detector)), potential.voxel_spacing
    # Images are no finer than the pixels that took them.
    pixel = min(_number(microscope.detector_pixel), spacing)
    optics = _Optics(
        taken=taken,
        spacing=spacing,
        gradient=microscope.defocus_gradient,
        detector=detector,
        pixel=pixel,
    )
    electrons = optics.image(potential)
    if attenuation is None:
        loss = thickness * VITREOUS_ICE.loss(taken.ctf.voltage_kv)
        path: FloatArray = loss / np.cos(np.deg2rad(taken.true_angles))[:, None, None]
    else:
        path = _paths(attenuation, potential, taken=taken)
    passed = np.exp(-path).astype(np.float32)
    electrons *= passed
    if not microscope.energy_filter:
        electrons += 1 - passed
    dose = _number(microscope.dose_e_per_a2)
    noisy = bool(np.isfinite(dose))
    each = detector.efficiency * (dose / len(seeds) * spacing**2 if noisy else 1.0)
    electrons *= np.float32(each)
    ny, nx = electrons.shape[1:]
    blur = detector.noise_transfer(_radius((ny, nx), spacing), pixel=pixel).astype(np.float32)
    series = _count(electrons, seeds=seeds if noisy else None, blur=blur, halves=halves)
    return tuple(
        TiltSeries(
            tilt_angles=taken.tilt_angles,
            images=images,
            pixel_spacing=spacing,
            dose_e_per_a2=taken.dose_after if noisy else None,
            ctf=taken.ctf,
        )
        for images in series
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Optics:
    """The transfer of each image's planes, from projected potential to intensity."""

    taken: Acquisition
    spacing: float
    gradient: bool
    detector: Detector
    pixel: float

    def image(self, potential: Volume) -> NDArray[np.float32]:
        """Intensity behind the optics, 1 where there is nothing, shape (n, y, x)."""
        taken, ctf = self.taken, self.taken.ctf
        wavelength, nyquist = electron_wavelength(ctf.voltage_kv), 1 / (2 * self.spacing)
        farthest = 1.2e4 * np.abs([ctf.defocus_u_um, ctf.defocus_v_um]).max()
        step = depth_step(self.spacing, voltage_kv=ctf.voltage_kv) / self.spacing
        # The mean gives no phase contrast, whatever a phase plate does; it takes electrons.
        mean = potential.data.mean(dtype=float)
        contrast = image_depths(
            potential.data - np.float32(mean),
            taken.true_angles,
            transfer=self.transfer,
            step=step if self.gradient else np.inf,
            shifts=taken.shifts / self.spacing,
            border="periodic",
            margin=16 + int(np.ceil(wavelength * farthest * nyquist / self.spacing)),
        )
        depth = potential.shape[0] / np.cos(np.deg2rad(taken.true_angles))
        contrast -= (ctf.amplitude_contrast * mean * depth[:, None, None]).astype(np.float32)
        contrast *= np.float32(2 * interaction_parameter(ctf.voltage_kv) * self.spacing)
        contrast += 1
        return np.maximum(contrast, 0, out=contrast)

    def transfer(
        self, image: int, heights: FloatArray, fx: FloatArray, fy: FloatArray
    ) -> NDArray[np.floating | np.complexfloating]:
        """What the optics do to planes at heights: see `tomoloc.physics.imaging.Transfer`."""
        taken, ctf = self.taken, _one(self.taken.ctf, image)
        gx, gy = fx / self.spacing, fy / self.spacing
        squared = (gx**2 + gy**2).astype(np.float32)
        wavelength = electron_wavelength(ctf.voltage_kv)
        height = (heights * self.spacing).astype(np.float32)[:, None, None]
        phase = aberration_phase(ctf, gx, gy).astype(np.float32)
        envelope = self._envelope(image, squared)
        if taken.drifts[image].any():
            envelope = envelope * np.sinc(gx * taken.drifts[image, 0] + gy * taken.drifts[image, 1])
        planes = phase - np.float32(np.pi * wavelength) * height * squared
        planes = np.sin(planes, out=planes)
        planes *= -envelope.astype(np.float32)
        if not taken.beam_tilt.any():
            return planes
        # The odd part of chi(g + tilt / wavelength): coma, and what is higher up is seen askew
        # (Zivanov et al. 2018, doi:10.7554/eLife.42166).
        along = (gx * taken.beam_tilt[0] + gy * taken.beam_tilt[1]).astype(np.float32)
        coma = 1e7 * ctf.spherical_aberration_mm * wavelength**2 * squared
        return planes * np.exp(-2j * np.pi * along * (coma + height)).astype(np.complex64)

    def _envelope(self, image: int, squared: NDArray[np.float32]) -> FloatArray:
        """Damage and the detector's efficiency, at squared spatial frequencies."""
        taken = self.taken
        top = float(np.sqrt(squared.max()))
        table = np.linspace(0, top, _RADIAL)
        values = self.detector.signal_transfer(table, pixel=self.pixel)
        values = values * damage(
            table,
            before=taken.dose_before[image],
            after=taken.dose_after[image],
            voltage_kv=taken.ctf.voltage_kv,
        )
        place = np.sqrt(squared) * np.float32((_RADIAL - 1) / top) + np.float32(0.5)
        return np.asarray(values[place.astype(np.intp)])


def _one(ctf: CTF, image: int) -> CTF:
    """Parameters of one image."""
    names = ("defocus_u_um", "defocus_v_um", "defocus_angle", "phase_shift")
    return replace(ctf, **{name: getattr(ctf, name)[image : image + 1] for name in names})


def _paths(attenuation: Volume, potential: Volume, *, taken: Acquisition) -> NDArray[np.float32]:
    """Mean free paths that the beam goes through above each pixel, shape (n, y, x)."""
    coarse, fine = attenuation.voxel_spacing, potential.voxel_spacing
    # Both grids turn about the potential's middle.
    offset = attenuation.center - potential.center
    turn = np.deg2rad(taken.true_angles)
    along = taken.shifts[:, 0] + offset[0] * np.cos(turn) + offset[2] * np.sin(turn)
    shifts = np.stack([along, np.zeros_like(along)], axis=1) / coarse
    paths = coarse * project(attenuation.data, taken.true_angles, shifts=shifts, border="periodic")
    # Along y rows are sampled where they lie; beyond the first and the last, nothing changes.
    places = [
        (np.arange(n) - (n - 1) / 2) * fine / coarse + (size - 1) / 2
        for n, size in zip(potential.shape[1:], paths.shape[1:], strict=True)
    ]
    rows = places[0] - (taken.shifts[:, 1:] + offset[1]) / coarse
    paths = _sample(paths.transpose(0, 2, 1), rows).transpose(0, 2, 1)
    paths = _sample(paths, np.broadcast_to(places[1], (len(paths), len(places[1]))))
    return np.maximum(paths, 0)


def _sample(lines: NDArray[np.float32], places: FloatArray) -> NDArray[np.float32]:
    """Interpolate each image's lines (n, m, size) linearly at fractional places (n, count)."""
    places = np.clip(places, 0, lines.shape[2] - 1)
    low = np.clip(places.astype(int), 0, max(lines.shape[2] - 2, 0))
    part = (places - low).astype(np.float32)[:, None]
    near = np.take_along_axis(lines, low[:, None], axis=2)
    far = np.take_along_axis(lines, np.minimum(low + 1, lines.shape[2] - 1)[:, None], axis=2)
    return near + (far - near) * part


def _count(
    electrons: NDArray[np.float32],
    *,
    seeds: NDArray[np.int64] | None,
    blur: NDArray[np.float32],
    halves: bool,
) -> tuple[NDArray[np.float32], ...]:
    """Count electrons, each image with its own chance, and blur the counts."""
    series = tuple(np.empty_like(electrons) for _ in range(3 if halves else 1))
    shape = electrons.shape[1:]
    flat = bool((blur == 1).all())

    def detect(image: int) -> None:
        counts: list[NDArray[np.floating | np.integer]] = [electrons[image]]
        if seeds is not None:
            rng = np.random.default_rng(seeds[image])
            drawn = rng.poisson(electrons[image])
            # Choosing half of the electrons blindly splits one Poisson number into two.
            half = rng.binomial(drawn, 0.5) if halves else drawn
            counts = [drawn, half, drawn - half]
        elif halves:
            counts += [electrons[image] / 2, electrons[image] / 2]
        for target, values in zip(series, counts, strict=False):
            target[image] = (
                values if flat else fft.irfft2(fft.rfft2(values.astype(np.float32)) * blur, s=shape)
            )

    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        list(pool.map(detect, range(len(electrons))))
    return series


def _radius(shape: tuple[int, int], spacing: float) -> FloatArray:
    """Lengths of the spatial frequencies of rfft2 in 1/angstrom."""
    return np.hypot(fft.fftfreq(shape[0], spacing)[:, None], fft.rfftfreq(shape[1], spacing))


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise ValueError(f"expected a resolved recipe with single numbers; got {value}")
    return float(value)
