"""Reconstruction gives density back as it was, with the CTF's phases right at every height."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tomoloc.physics.ctf import evaluate_ctf
from tomoloc.physics.filters import fourier_shell_correlation
from tomoloc.physics.imaging import _splat_depths, image_depths
from tomoloc.physics.projection import _splat, project
from tomoloc.physics.reconstruction import (
    _gather,
    angular_weights,
    back_project,
    back_project_depths,
    phase_flip,
    ramp_filter,
    sirt,
)
from tomoloc.physics.wedge import _add_slices, missing_wedge
from tomoloc.types import CTF

SHAPE = (48, 36, 56)


@pytest.mark.parametrize("loop", [_gather, _splat, _splat_depths, _add_slices])
def test_sums_keep_their_order(loop):
    # Where sums may be put in another order, code just compiled and the same code from numba's
    # cache have been seen to differ in the last digit: the first sample would not come again.
    assert loop.targetoptions["fastmath"] == {"contract"}


def ball_of_noise(rng, shape, radius):
    """Noise inside a soft ball: structure at all frequencies, nothing at the borders."""
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    return rng.standard_normal(shape) / (1 + np.exp(distance - radius))


@pytest.mark.parametrize(
    "angles", [np.arange(-90.0, 90, 3), np.arange(-90.0, 91, 3), np.arange(-88.0, 92, 3)]
)
def test_density_comes_back_from_a_full_range(angles):
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
    squared = (z[:, None, None] - 3.4) ** 2 + (y[:, None] + 2.2) ** 2 + (x - 5.1) ** 2
    ball = np.exp(-squared / (2 * 2.2**2))
    images = project(ball, angles, image_shape=(36, 80))
    back = back_project(images, angles, shape=SHAPE, roll_off=1.0)
    np.testing.assert_allclose(back, ball, atol=4e-3)
    assert back.sum() == pytest.approx(ball.sum(), rel=2e-3)


def test_round_trip_correlates_inside_the_wedge(rng):
    angles = np.arange(-60.0, 60.1, 2)
    volume = ball_of_noise(rng, SHAPE, 14)
    back = back_project(project(volume, angles, image_shape=(36, 80)), angles, shape=SHAPE)
    # A little inside the outermost slices, and from two waves across the ball: what is missing
    # leaks that far into what is known.
    frequency, correlation = fourier_shell_correlation(
        volume, back, voxel_spacing=1.0, mask=missing_wedge(SHAPE, (-57, 57))
    )
    known = (frequency >= 2 / 28) & (frequency <= 0.35)
    assert correlation[known].min() > 0.99
    outside = ~missing_wedge(SHAPE, (-64, 64))
    spectrum = np.abs(np.fft.rfftn(back)) ** 2
    assert spectrum[outside].sum() < 0.02 * spectrum.sum()


def test_amplitudes_come_back_inside_the_wedge(rng):
    angles = np.arange(-60.0, 60.1, 2)
    volume = ball_of_noise(rng, SHAPE, 14)
    back = back_project(
        project(volume, angles, image_shape=(36, 80)), angles, shape=SHAPE, roll_off=1.0
    )
    before, after = np.fft.rfftn(volume), np.fft.rfftn(back)
    known = missing_wedge(SHAPE, (-57, 57))
    known &= (
        np.add.outer(
            np.add.outer(np.fft.fftfreq(48) ** 2, np.fft.fftfreq(36) ** 2), np.fft.rfftfreq(56) ** 2
        )
        < 0.35**2
    )
    slope = np.vdot(before[known], after[known]).real / np.vdot(before[known], before[known]).real
    assert slope == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("tilt_range", [(-60, 30), (-20, 70)])
def test_power_lies_where_the_wedge_says(rng, tilt_range):
    angles = np.arange(tilt_range[0], tilt_range[1] + 0.1, 2.5)
    back = back_project(rng.standard_normal((len(angles), 36, 80)), angles, shape=SHAPE)
    power = np.abs(np.fft.rfftn(back)) ** 2
    share = power[missing_wedge(SHAPE, tilt_range)].sum() / power.sum()
    mirrored = (-tilt_range[1], -tilt_range[0])
    assert share > 0.9
    assert power[missing_wedge(SHAPE, mirrored)].sum() / power.sum() < 0.8


def test_edge_border_keeps_a_flat_background_flat():
    angles = np.arange(-60.0, 61, 3)
    images = np.ones((len(angles), 12, 40))
    edge = back_project(images, angles, shape=(16, 12, 40), border="edge")
    zero = back_project(images, angles, shape=(16, 12, 40), border="zero")
    assert np.ptp(edge) < 0.2 * np.ptp(zero)


def test_shifts_are_undone():
    rng = np.random.default_rng(3)
    angles = np.arange(-60.0, 61, 4)
    shifts = rng.uniform(-3, 3, (len(angles), 2))
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
    ball = np.exp(-(z[:, None, None] ** 2 + (y[:, None] - 4) ** 2 + (x + 6) ** 2) / 8)
    moved = project(ball, angles, image_shape=(48, 90), shifts=shifts)
    back = back_project(moved, angles, shape=SHAPE, shifts=shifts)
    still = back_project(project(ball, angles, image_shape=(48, 90)), angles, shape=SHAPE)
    np.testing.assert_allclose(back, still, atol=5e-3)


def likeness(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def make_ctf(n, defocus):
    return CTF(
        defocus_u_um=np.full(n, defocus),
        defocus_v_um=np.full(n, defocus - 0.02),
        defocus_angle=np.linspace(10, 50, n),
    )


def unchanged(image, heights, fx, fy):
    return np.ones((len(heights), 1, 1), np.float32)


class TestDepths:
    angles = np.arange(-60.0, 61, 10)

    @pytest.mark.parametrize("step", [np.inf, 9.0, 2.5])
    def test_planes_that_are_alike_change_nothing(self, rng, step):
        images = rng.standard_normal((13, 36, 56))
        whole = back_project(images, self.angles, shape=SHAPE)
        planes = back_project_depths(
            images, self.angles, shape=SHAPE, transfer=unchanged, step=step
        )
        np.testing.assert_allclose(planes, whole, atol=1e-5 * np.abs(whole).max())

    @pytest.mark.parametrize("step", [np.inf, 4.0])
    def test_it_is_the_adjoint_of_imaging_by_depth(self, rng, step):
        def transfer(image, heights, fx, fy):
            turn = 40 * (fx**2 + fy**2) * (1 + 0.1 * heights[:, None, None]) + 3 * fx
            return np.exp(1j * turn * np.sign(fy + 1e-9)) * np.exp(-((image - 5) ** 2) * fx)

        def real(image, heights, fx, fy):
            return transfer(image, heights, fx, fy).real

        volume = rng.standard_normal(SHAPE)
        images = rng.standard_normal((13, 36, 56))
        there = image_depths(volume, self.angles, transfer=real, step=step, margin=8)
        back = back_project_depths(
            images, self.angles, shape=SHAPE, transfer=real, step=step, weighting="none"
        )
        scale = np.linalg.norm(there) * np.linalg.norm(images)
        assert abs(np.vdot(there.astype(float), images) - np.vdot(volume, back)) < 1e-6 * scale

    def test_a_flip_at_each_height_is_right_where_one_at_the_axis_is_not(self):
        """Beads far off the axis come out as if each had been corrected on its own."""
        shape, spacing = (24, 40, 420), 1.0
        centers = [(-160, 3, 5), (10, -4, -6), (155, 2, 3)]
        angles = np.arange(-60.0, 61, 8)
        ctf = make_ctf(len(angles), 0.25)
        z, y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
        fx, fy = np.fft.rfftfreq(420, spacing), np.fft.fftfreq(40, spacing)[:, None]
        images, ideal = 0, 0
        for x0, y0, z0 in centers:
            bead = np.exp(
                -((z[:, None, None] - z0) ** 2 + (y[:, None] - y0) ** 2 + (x - x0) ** 2) / 2
            )
            turn = np.deg2rad(angles)
            height = 1e-4 * spacing * (z0 * np.cos(turn) - x0 * np.sin(turn))
            local = CTF(
                defocus_u_um=ctf.defocus_u_um - height,
                defocus_v_um=ctf.defocus_v_um - height,
                defocus_angle=ctf.defocus_angle,
            )
            transfer = evaluate_ctf(local, fx, fy)
            spectrum = np.fft.rfft2(project(bead, angles))
            images = images + np.fft.irfft2(spectrum * transfer, s=(40, 420))
            ideal = ideal + np.fft.irfft2(-spectrum * np.abs(transfer), s=(40, 420))
        flip = phase_flip(ctf, voxel_spacing=spacing)
        truth = back_project(ideal, angles, shape=shape)
        at_axis, by_height = (
            back_project_depths(images, angles, shape=shape, transfer=flip, step=step)
            for step in (np.inf, 15.0)
        )
        for x0, _, _ in centers:
            near = np.abs(x - x0) < 25
            assert likeness(truth[..., near], by_height[..., near]) > 0.999
            assert by_height[..., near].min() == pytest.approx(truth[..., near].min(), rel=0.01)
            if abs(x0) > 100:
                assert likeness(truth[..., near], at_axis[..., near]) < 0.993

    def test_wrong_step_is_told(self):
        with pytest.raises(ValueError, match="step must be positive"):
            back_project_depths(
                np.zeros((1, 5, 6)), [0], shape=(4, 5, 6), transfer=unchanged, step=0
            )


class TestSirt:
    def test_it_converges_to_the_density(self, rng):
        angles = np.arange(-90.0, 90, 4)
        volume = gaussian_filter(ball_of_noise(rng, SHAPE, 14), 2.0)
        images = project(volume, angles, image_shape=(36, 80))
        errors = [
            np.linalg.norm(sirt(images, angles, shape=SHAPE, iterations=n) - volume)
            for n in (1, 4, 16, 64)
        ]
        assert np.all(np.diff(errors) < 0)
        assert errors[-1] < 0.25 * np.linalg.norm(volume)

    def test_matter_beside_the_volume_does_not_disturb(self, rng):
        angles = np.arange(-60.0, 61, 4)
        wide = gaussian_filter(rng.standard_normal((16, 12, 240)), (2, 2, 2))
        images = project(wide, angles)[:, :, 96:144]
        volume = wide[:, :, 96:144]
        whole = sirt(project(wide, angles), angles, shape=wide.shape, iterations=30)[:, :, 96:144]
        found = sirt(images, angles, shape=volume.shape, iterations=30)
        for part in (slice(0, 8), slice(20, 28), slice(40, 48)):
            assert likeness(found[..., part], whole[..., part]) > 0.97
            assert likeness(found[..., part], volume[..., part]) > 0.8

    def test_flipped_phases_are_undone(self, rng):
        def flip(image, heights, fx, fy):
            phase = (fx**2 + fy**2) * (40 + 0.5 * heights[:, None, None])
            return np.where(phase > 0.6, np.float32(-1), np.float32(1))

        angles = np.arange(-60.0, 61, 6)
        volume = gaussian_filter(rng.standard_normal((16, 20, 60)), 1.5)
        images = image_depths(volume, angles, transfer=flip, step=3.0)
        options = {"shape": volume.shape, "iterations": 20}
        found = sirt(images, angles, transfer=flip, step=3.0, **options)
        ideal = sirt(project(volume, angles), angles, **options)
        assert likeness(found, ideal) > 0.98
        assert likeness(sirt(images, angles, **options), ideal) < 0.1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"iterations": 0}, "at least one iteration"),
            ({"transfer": unchanged, "shape": (4, 5, 8)}, r"sides \(5, 8\)"),
        ],
    )
    def test_wrong_use_is_told(self, options, message):
        options = {"shape": (4, 5, 6), "iterations": 2, **options}
        with pytest.raises(ValueError, match=message):
            sirt(np.zeros((2, 5, 6)), [0, 1], **options)


class TestAngularWeights:
    def test_even_steps(self):
        np.testing.assert_allclose(angular_weights(np.arange(-60, 61, 3)), np.deg2rad(3))

    @pytest.mark.parametrize("last", [87.0, 90.0])
    def test_a_full_range_adds_up_to_pi(self, last):
        assert angular_weights(np.arange(-90.0, last + 1, 3)).sum() == pytest.approx(np.pi)

    def test_any_order_and_uneven_steps(self):
        weights = angular_weights([0, 10, -20, 4])
        np.testing.assert_allclose(np.rad2deg(weights), [12, 6, 20, 5])

    def test_one_image_stands_for_the_half_circle(self):
        np.testing.assert_allclose(angular_weights([12.0]), [np.pi])

    def test_twins_share(self):
        np.testing.assert_allclose(np.rad2deg(angular_weights([-3, 0, 0, 3])), [3, 1.5, 1.5, 3])


class TestRampFilter:
    def test_it_is_the_frequency(self):
        ramp = ramp_filter(256, roll_off=1.0)
        np.testing.assert_allclose(ramp, np.fft.rfftfreq(256), atol=2e-3)
        assert 0 < ramp[0] < 1e-3

    def test_it_rolls_off(self):
        ramp = ramp_filter(256, roll_off=0.8)
        full = ramp_filter(256, roll_off=1.0)
        assert ramp[-1] == pytest.approx(0, abs=1e-9)
        assert np.array_equal(ramp[:102], full[:102])
        assert ramp[115] == pytest.approx(full[115] / 2, rel=0.05)

    def test_wrong_fraction_is_told(self):
        with pytest.raises(ValueError, match="fraction of Nyquist"):
            ramp_filter(64, roll_off=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": np.zeros((2, 5, 6))}, r"shape \(3, y, x\)"),
        ({"weighting": "exact"}, "'ramp' or 'none'"),
        ({"border": "mirror"}, "'zero' or 'edge'"),
    ],
)
def test_wrong_use_is_told(options, message):
    arguments = {"images": np.zeros((3, 5, 6)), **options}
    with pytest.raises(ValueError, match=message):
        back_project(arguments.pop("images"), [0, 1, 2], shape=(4, 5, 6), **arguments)
