"""The contrast transfer function against its closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.constants as si

from tomoloc.physics.ctf import electron_wavelength, evaluate_ctf, interaction_parameter
from tomoloc.types import CTF


def make_ctf(**options):
    values = {
        "defocus_u_um": [3.0],
        "defocus_v_um": [3.0],
        "defocus_angle": [0.0],
        "spherical_aberration_mm": 0.0,
        "amplitude_contrast": 0.0,
    }
    return CTF(**{**values, **options})


@pytest.mark.parametrize("voltage_kv", [80.0, 200.0, 300.0])
def test_wavelength_is_that_of_relativity(voltage_kv):
    energy = si.e * voltage_kv * 1e3
    momentum = np.sqrt(2 * si.m_e * energy + (energy / si.c) ** 2)
    assert electron_wavelength(voltage_kv) == pytest.approx(si.h / momentum * 1e10, rel=1e-7)


def test_wavelength_as_tables_give_it():
    assert electron_wavelength(300) == pytest.approx(0.01969, abs=5e-6)
    assert electron_wavelength(200) == pytest.approx(0.02508, abs=5e-6)
    with pytest.raises(ValueError, match="voltage_kv must be positive"):
        electron_wavelength(0)


def test_zeros_without_aberration():
    n = np.arange(1, 20)
    zeros = np.sqrt(n / (electron_wavelength(300) * 3e4))
    np.testing.assert_allclose(evaluate_ctf(make_ctf(), zeros, 0), 0, atol=1e-5)


def test_zeros_with_aberration_and_phase_shift():
    wavelength, defocus, aberration, shift = electron_wavelength(200), 1.2e4, 2.7e7, np.pi / 3
    ctf = make_ctf(
        defocus_u_um=[1.2],
        defocus_v_um=[1.2],
        voltage_kv=200,
        spherical_aberration_mm=2.7,
        phase_shift=[60.0],
    )
    # chi is a quadratic in g^2: pi l d s - pi l^3 Cs s^2 / 2 + shift = n pi
    n = np.arange(1, 8)
    a = -np.pi * wavelength**3 * aberration / 2
    b = np.pi * wavelength * defocus
    squared = (-b + np.sqrt(b**2 - 4 * a * (shift - n * np.pi))) / (2 * a)
    np.testing.assert_allclose(evaluate_ctf(ctf, 0, np.sqrt(squared)), 0, atol=1e-5)


def test_origin_is_minus_the_amplitude_contrast():
    for contrast in (0.0, 0.07, 1.0):
        value = evaluate_ctf(make_ctf(amplitude_contrast=contrast), 0.0, 0.0)
        assert value.shape == (1,)
        assert value[0] == pytest.approx(-contrast, abs=1e-7)


def test_underfocus_makes_positive_potential_dark():
    low = np.linspace(0.001, 0.02, 20)
    assert (evaluate_ctf(make_ctf(), low, 0) < 0).all()
    overfocus = make_ctf(defocus_u_um=[-3.0], defocus_v_um=[-3.0])
    assert (evaluate_ctf(overfocus, low, 0) > 0).all()
    plate = make_ctf(defocus_u_um=[0.0], defocus_v_um=[0.0], phase_shift=[90.0])
    np.testing.assert_allclose(evaluate_ctf(plate, low, 0), -1, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 30.0, -65.0])
def test_astigmatism_has_its_axes(angle):
    ctf = make_ctf(defocus_u_um=[3.4], defocus_v_um=[2.6], defocus_angle=[angle])
    g = np.linspace(0, 0.05, 50)
    for turn, defocus in ((0, 3.4), (90, 2.6), (45, 3.0), (180, 3.4)):
        direction = np.deg2rad(angle + turn)
        round_ = make_ctf(defocus_u_um=[defocus], defocus_v_um=[defocus])
        np.testing.assert_allclose(
            evaluate_ctf(ctf, g * np.cos(direction), g * np.sin(direction)),
            evaluate_ctf(round_, g, 0),
            atol=1e-5,
        )


def test_each_image_has_its_own():
    ctf = make_ctf(defocus_u_um=[2.0, 4.0], defocus_v_um=[2.0, 4.0], defocus_angle=[0.0, 0.0])
    x, y = np.linspace(0, 0.1, 7), np.linspace(-0.1, 0.1, 5)[:, None]
    both = evaluate_ctf(ctf, x, y)
    assert both.shape == (2, 5, 7)
    assert both.dtype == np.float32
    for i, defocus in enumerate((2.0, 4.0)):
        alone = make_ctf(defocus_u_um=[defocus], defocus_v_um=[defocus])
        np.testing.assert_array_equal(both[i], evaluate_ctf(alone, x, y)[0])


def test_agrees_with_torch_ctf():
    """An independent program: the same function, of the opposite sign."""
    torch_ctf = pytest.importorskip("torch_ctf")
    shape, spacing = (48, 64), 3.0
    ours = CTF(
        defocus_u_um=[2.4],
        defocus_v_um=[1.8],
        defocus_angle=[25.0],
        voltage_kv=200,
        spherical_aberration_mm=2.0,
        amplitude_contrast=0.1,
        phase_shift=[40.0],
    )
    theirs = torch_ctf.calculate_ctf_2d(
        defocus=2.1,
        astigmatism=0.3,
        astigmatism_angle=25.0,
        voltage=200.0,
        spherical_aberration=2.0,
        amplitude_contrast=0.1,
        phase_shift=40.0,
        pixel_size=spacing,
        image_shape=shape,
        rfft=True,
        fftshift=False,
    ).numpy()
    fx, fy = np.fft.rfftfreq(shape[1], spacing), np.fft.fftfreq(shape[0], spacing)[:, None]
    np.testing.assert_allclose(evaluate_ctf(ours, fx, fy)[0], -theirs, atol=2e-4)


@pytest.mark.parametrize(
    ("voltage", "expected"), [(100, 9.244e-4), (200, 7.288e-4), (300, 6.526e-4)]
)
def test_interaction_parameter(voltage, expected):
    assert interaction_parameter(voltage) == pytest.approx(expected, rel=1e-3)
