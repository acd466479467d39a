"""The missing wedge and what a tilt series does to each frequency."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft

from tomoloc.physics.ctf import evaluate_ctf
from tomoloc.physics.dose import dose_weights
from tomoloc.physics.filters import radial_frequency
from tomoloc.physics.projection import project
from tomoloc.physics.reconstruction import back_project
from tomoloc.physics.wedge import missing_wedge, tilt_weights
from tomoloc.types import CTF, TiltSeries


def naive_wedge(shape, low, high):
    """One coefficient at a time: the tilt whose slice holds (kx, kz)."""
    nz, ny, nx = shape
    mask = np.zeros((nz, ny, nx // 2 + 1), dtype=bool)
    for iz, kz in enumerate(np.fft.fftfreq(nz)):
        for ix, kx in enumerate(np.fft.rfftfreq(nx)):
            tilt = 90.0 if kx == 0 else np.rad2deg(np.arctan(kz / kx))
            mask[iz, :, ix] = low <= tilt <= high or (kx == 0 and kz == 0)
    return mask


class TestMissingWedge:
    @pytest.mark.parametrize("shape", [(9, 4, 15), (15, 5, 7)])
    @pytest.mark.parametrize("tilt_range", [(-60, 60), (-47.3, 61.2), (-20, 70)])
    def test_each_coefficient(self, shape, tilt_range):
        np.testing.assert_array_equal(
            missing_wedge(shape, tilt_range), naive_wedge(shape, *tilt_range)
        )

    @pytest.mark.parametrize("shape", [(8, 6, 10), (9, 6, 10), (8, 5, 11)])
    def test_it_keeps_volumes_real(self, rng, shape):
        mask = missing_wedge(shape, (-31, 64))
        full = scipy.fft.rfftn(scipy.fft.irfftn(mask.astype(float), s=shape))
        np.testing.assert_allclose(full, mask, atol=1e-12)

    def test_all_of_it(self):
        assert missing_wedge((6, 7, 8), (-90, 90)).all()

    def test_share_of_the_half_circle(self):
        mask = missing_wedge((200, 3, 200), (-60, 45))
        disc = radial_frequency((200, 3, 200), 1.0)[:, :1] < 0.49
        share = mask[:, :1][disc].mean()
        assert share == pytest.approx(105 / 180, abs=0.01)

    @pytest.mark.parametrize("tilt_range", [(60, -60), (-100, 60), (0, 91)])
    def test_wrong_ranges_are_told(self, tilt_range):
        with pytest.raises(ValueError, match="two angles in order"):
            missing_wedge((4, 4, 4), tilt_range)


def point_response(angles, *, box, voxel_spacing, ctf=None, dose=None):
    """Transform of what projection, microscope and back-projection make of a point."""
    nz, ny, nx = box
    wide = 3 * max(nz, nx) | 1
    shape = (wide, ny | 1, wide)
    point = np.zeros(shape, dtype=np.float32)
    point[wide // 2, shape[1] // 2, wide // 2] = 1
    spectrum = scipy.fft.rfft2(project(point, angles, image_shape=(shape[1], 2 * wide + 1)))
    x = scipy.fft.rfftfreq(2 * wide + 1, voxel_spacing)
    y = scipy.fft.fftfreq(shape[1], voxel_spacing)[:, None]
    if ctf is not None:
        spectrum *= evaluate_ctf(ctf, x, y)
    if dose is not None:
        spectrum *= dose_weights(np.hypot(x, y), dose)
    images = scipy.fft.irfft2(spectrum, s=(shape[1], 2 * wide + 1))
    back = back_project(images, angles, shape=shape, roll_off=1.0)
    start = [(n - b) // 2 for n, b in zip(shape, box, strict=True)]
    crop = back[tuple(slice(s, s + b) for s, b in zip(start, box, strict=True))]
    return scipy.fft.rfftn(scipy.fft.ifftshift(crop)).real


class TestTiltWeights:
    BOX = (31, 27, 35)

    @pytest.mark.parametrize("case", ["full", "limited", "uneven", "microscope"])
    def test_they_are_what_happens_to_a_point(self, case):
        angles = {
            "full": np.arange(-90.0, 90, 3),
            "limited": np.arange(-60.0, 61, 3),
            "uneven": np.array([-50.0, -44, -40, -35, -27, -20, -16, -9, 0, 7, 12, 20, 30, 39]),
            "microscope": np.arange(-44.0, 61, 2),
        }[case]
        n, ctf, dose = len(angles), None, None
        if case == "microscope":
            ctf = CTF(
                defocus_u_um=np.full(n, 2.5),
                defocus_v_um=np.full(n, 1.7),
                defocus_angle=np.full(n, 35.0),
            )
            dose = 3.0 * (1 + np.argsort(np.argsort(np.abs(angles), kind="stable")))
        measured = point_response(angles, box=self.BOX, voxel_spacing=8.0, ctf=ctf, dose=dose)
        weights = tilt_weights(
            self.BOX,
            TiltSeries(tilt_angles=angles, ctf=ctf, dose_e_per_a2=dose),
            voxel_spacing=8.0,
        )
        assert weights.dtype == np.float32
        # from the first wave across the box up to where square corners begin
        radius = radial_frequency(self.BOX, 1.0)
        band = (radius > 1.5 / 35) & (radius < 0.45)
        a, b = weights[band], measured[band]
        # Slices of a few widely spaced images stand apart, with ripples from the box between them.
        lowest = 0.96 if case == "uneven" else 0.995
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > lowest
        assert a @ b / (a @ a) == pytest.approx(1, abs=0.02)

    def test_a_full_range_weighs_one_where_slices_overlap(self):
        series = TiltSeries(tilt_angles=np.arange(-90.0, 90, 1))
        weights = tilt_weights((24, 18, 30), series, voxel_spacing=5.0)
        known = (radial_frequency((24, 18, 30), 1.0) < 0.5) & (np.arange(16) > 0)
        assert np.abs(weights[known] - 1).max() < 0.05

    def test_they_vanish_in_the_missing_wedge(self):
        series = TiltSeries(tilt_angles=np.arange(-30.0, 61, 2))
        weights = tilt_weights((40, 18, 46), series, voxel_spacing=5.0)
        far = radial_frequency((40, 18, 46), 1.0)[:, :1] > 0.2
        outside = far & ~missing_wedge((40, 18, 46), (-40, 70))[:, :1]
        inside = far & missing_wedge((40, 18, 46), (-28, 58))[:, :1]
        assert outside.any()
        assert not weights[:, :1][outside].any()
        assert weights[:, :1][inside].mean() > 0.9

    def test_options_choose_what_counts(self):
        angles = np.array([-40.0, 0.0, 40.0])
        ctf = CTF(defocus_u_um=[3.0] * 3, defocus_v_um=[3.0] * 3, defocus_angle=[0.0] * 3)
        series = TiltSeries(tilt_angles=angles, ctf=ctf, dose_e_per_a2=[5.0, 10.0, 15.0])
        box = (16, 18, 20)

        def weights(**options):
            return tilt_weights(box, series, voxel_spacing=10.0, **options)

        plain = weights(ctf=False, dose=False)
        bare = TiltSeries(tilt_angles=angles)
        np.testing.assert_array_equal(plain, tilt_weights(box, bare, voxel_spacing=10.0))
        assert (plain >= 0).all()
        assert (weights(ctf=False) <= plain + 1e-7).all()
        assert (weights() < 0).any()
        assert (weights(phase_flipped=True) >= 0).all()
        cosine = weights(ctf=False, dose=False, cosine=True)
        assert cosine[0, 0, 8] == pytest.approx(plain[0, 0, 8], rel=0.01)
        assert cosine.sum() < plain.sum()

    def test_astigmatism_turns_with_the_tilt_axis(self):
        """Defocus angles are stated for images as taken, the tomogram has the axis along y."""
        box, spacing, axis = (1, 64, 64), 5.0, 84.0
        ctf = CTF(defocus_u_um=[4.0], defocus_v_um=[2.5], defocus_angle=[110.0])
        series = TiltSeries(tilt_angles=[0.0], ctf=ctf, tilt_axis_angle=axis)
        weights = tilt_weights(box, series, voxel_spacing=spacing)[0]
        plain = tilt_weights(box, series, voxel_spacing=spacing, ctf=False)[0]
        # Turned by `axis`, counter-clockwise, the y axis lies on the tilt axis of the image.
        u, v = scipy.fft.rfftfreq(64, spacing), scipy.fft.fftfreq(64, spacing)[:, None]
        c, s = np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))
        taken = evaluate_ctf(ctf, c * u - s * v, s * u + c * v)[0]
        known = (np.hypot(u, v) < 0.45 / spacing) & (plain > 0)
        np.testing.assert_allclose(weights[known], (plain * taken)[known], atol=0.03)

    def test_wrong_spacing_is_told(self):
        with pytest.raises(ValueError, match="voxel_spacing must be positive"):
            tilt_weights((8, 8, 8), TiltSeries(tilt_angles=[0.0]), voxel_spacing=0)
