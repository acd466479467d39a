"""The weak-phase images against the wave itself."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.physics.ctf import (
    aberration_phase,
    electron_wavelength,
    evaluate_ctf,
    interaction_parameter,
)
from tomoloc.physics.filters import band_pass
from tomoloc.physics.imaging import image_depths
from tomoloc.physics.multislice import multislice
from tomoloc.types import CTF, Volume

SPACING = 4.0


def make_ctf(defocus=1.5, **options):
    values = {"spherical_aberration_mm": 2.7, "amplitude_contrast": 0.07, **options}
    return CTF(defocus_u_um=[defocus], defocus_v_um=[defocus - 0.2], defocus_angle=[30.0], **values)


def specimen(rng, scale=1.0, shape=(60, 64, 80), low_pass=16):
    texture = band_pass(rng.standard_normal(shape), voxel_spacing=SPACING, low_pass=low_pass)
    return Volume(data=(scale * texture).astype(np.float32), voxel_spacing=SPACING)


def weak_phase(potential, ctf, **options):
    wavelength = electron_wavelength(ctf.voltage_kv)

    def transfer(_image, heights, fx, fy):
        gx, gy = fx / SPACING, fy / SPACING
        higher = np.pi * wavelength * heights[:, None, None] * SPACING * (gx**2 + gy**2)
        return -np.sin(aberration_phase(ctf, gx, gy) - higher)

    contrast = image_depths(
        potential.data, [0.0], transfer=transfer, border="periodic", margin=80, **options
    )
    return 2 * interaction_parameter(ctf.voltage_kv) * SPACING * contrast[0]


def mismatch(image, expected):
    # Ends of the lines, where the projection is cut out of longer ones, do not count.
    inner = (slice(None), slice(8, -8))
    return np.std((image - expected)[inner]) / np.std(image[inner])


def test_weak_objects_agree(rng):
    potential, ctf = specimen(rng), make_ctf(phase_shift=[20.0])
    image = multislice(potential, ctf=ctf) - 1
    assert 0.01 < image.std() < 0.05
    assert mismatch(image, weak_phase(potential, ctf, step=5.0)) < 0.03


def test_every_layer_has_its_own_defocus(rng):
    """A thick box: one plane for all heights is much worse."""
    potential, ctf = specimen(rng, 0.4, shape=(300, 32, 48), low_pass=9), make_ctf(1.0)
    image = multislice(potential, ctf=ctf) - 1
    error = mismatch(image, weak_phase(potential, ctf, step=20.0))
    assert error < 0.03
    assert mismatch(image, weak_phase(potential, ctf)) > 4 * error


def test_what_is_left_out_is_of_second_order(rng):
    potential, ctf = specimen(rng, 0.5), make_ctf()
    stronger = potential.with_data(8 * potential.data)
    weak = weak_phase(potential, ctf, step=5.0)
    small = multislice(potential, ctf=ctf) - 1 - weak
    large = multislice(stronger, ctf=ctf) - 1 - 8 * weak
    inner = (slice(None), slice(8, -8))
    assert np.std(large[inner]) / np.std(small[inner]) > 8 * 2


def test_beam_tilt_is_coma_and_a_shift():
    """One layer: the spectrum turns by the odd part of the tilted aberrations."""
    ny, nx, spacing, tilt = 60, 72, 2.0, np.array([1e-3, -4e-4])
    layer = np.zeros((1, ny, nx), np.float32)
    layer[0, 20, 30] = 1.0
    ctf = CTF(defocus_u_um=[0.8], defocus_v_um=[0.8], defocus_angle=[0.0])
    potential = Volume(data=layer, voxel_spacing=spacing)
    image = np.fft.fft2(multislice(potential, ctf=ctf, beam_tilt=tilt))
    straight = np.fft.fft2(multislice(potential, ctf=ctf))
    gx, gy = np.fft.fftfreq(nx, spacing), np.fft.fftfreq(ny, spacing)[:, None]
    wavelength, aberration = electron_wavelength(300), 2.7e7
    squared, along = gx**2 + gy**2, gx * tilt[0] + gy * tilt[1]
    odd = 2 * np.pi * along * (8e3 - aberration * (wavelength**2 * squared + tilt @ tilt))
    strong = (np.abs(evaluate_ctf(ctf, gx, gy)[0]) > 0.5) & (squared > 0) & (squared < 0.2**2)
    turned = np.angle(image / straight * np.exp(-1j * odd))
    # The even part changes, too: a little defocus and astigmatism.
    assert np.abs(turned[strong]).max() < 0.02
    assert np.abs(np.angle(np.exp(1j * odd)))[strong].max() > 1
    coma = np.abs(2 * np.pi * along * aberration * wavelength**2 * squared)
    assert coma[strong].max() > 0.3


def test_one_image_at_a_time():
    two = CTF(defocus_u_um=[1.0, 2], defocus_v_um=[1.0, 2], defocus_angle=[0.0, 0])
    with pytest.raises(ValueError, match="one image; got 2"):
        multislice(Volume(data=np.zeros((4, 5, 6)), voxel_spacing=2.0), ctf=two)
