"""The microscope against closed forms and counting statistics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit, minimize_scalar

from tomoloc.physics.ctf import evaluate_ctf, interaction_parameter
from tomoloc.physics.detector import find_detector
from tomoloc.physics.dose import damage
from tomoloc.physics.projection import project
from tomoloc.simulate.microscope import draw_acquisition, expose, tilt_order
from tomoloc.simulate.settings import Microscope, Range
from tomoloc.types import CTF, Volume

SPACING = 10.0


def make_microscope(angles=(0.0, 0.0, 1.0), **options):
    low, high, step = angles
    values = {"tilt_min": low, "tilt_max": high, "tilt_step": step, "detector": "ideal"}
    return Microscope(**{**values, **options})


def clean(angles=(0.0, 0.0, 1.0), **options):
    return make_microscope(angles, dose_e_per_a2=np.inf, **options)


def empty(shape=(8, 60, 100), spacing=SPACING):
    return Volume(data=np.zeros(shape, np.float32), voxel_spacing=spacing)


def ball(place, *, shape=(61, 64, 256), spacing=5.0, sigma=8.0):
    """A ball of 20 V at `place`, xyz in Å from the middle."""
    grid = empty(shape, spacing)
    z, y, x = np.indices(shape)
    away = grid.to_position(np.stack([z, y, x], -1)) - grid.center - np.asarray(place)
    return grid.with_data((20 * np.exp(-((away / sigma) ** 2).sum(-1) / 2)).astype(np.float32))


def grating(period=8, *, shape=(8, 48, 64), volts=1.0):
    wave = np.cos(2 * np.pi * np.arange(shape[2]) / period).astype(np.float32)
    data = volts * np.broadcast_to(wave, shape)
    return Volume(data=data.astype(np.float32), voxel_spacing=SPACING), wave


def single(defocus, **options):
    return CTF(defocus_u_um=[defocus], defocus_v_um=[defocus], defocus_angle=[0.0], **options)


# --- order and what chance decides ---------------------------------------------------------------


def test_orders_of_tilts():
    angles = np.arange(-9.0, 10, 3)
    assert angles[tilt_order(angles)].tolist() == [0, 3, -3, -6, 6, 9, -9]
    up_down = angles[tilt_order(angles, scheme="bidirectional")]
    assert up_down.tolist() == [0, 3, 6, 9, -3, -6, -9]
    assert angles[tilt_order(angles, scheme="continuous")].tolist() == angles.tolist()
    lopsided = np.arange(-4.0, 12, 2)
    for scheme in ("dose-symmetric", "bidirectional", "continuous"):
        assert sorted(tilt_order(lopsided, scheme=scheme)) == list(range(8))
    with pytest.raises(ValueError, match="dose-symmetric, bidirectional or continuous"):
        tilt_order(angles, scheme="random")


def test_dose_accumulates_in_the_order_of_the_scheme(rng):
    for scheme, expected in (
        ("dose-symmetric", [80, 60, 20, 40, 100]),
        ("bidirectional", [100, 80, 20, 40, 60]),
        ("continuous", [20, 40, 60, 80, 100]),
    ):
        microscope = make_microscope((-6.0, 6.0, 3.0), dose_e_per_a2=100.0, scheme=scheme)
        (series,) = expose(empty((8, 16, 20)), microscope=microscope, rng=rng)
        np.testing.assert_allclose(series.dose_e_per_a2, expected)
        np.testing.assert_array_equal(series.tilt_angles, [-6, -3, 0, 3, 6])
        assert series.pixel_spacing == SPACING
        assert series.images.dtype == np.float32


def test_errors_have_the_sizes_asked_for():
    microscope = make_microscope(
        (-60.0, 60.0, 0.25),
        defocus_spread_um=0.2,
        astigmatism_um=0.3,
        tilt_error=0.5,
        shift_error=6.0,
        motion=3.0,
        beam_tilt_mrad=2.0,
    )
    taken = draw_acquisition(microscope, rng=np.random.default_rng(3))
    middle = (taken.ctf.defocus_u_um + taken.ctf.defocus_v_um) / 2
    assert middle.mean() == pytest.approx(3.5, abs=0.04)
    assert middle.std() == pytest.approx(0.2, rel=0.1)
    np.testing.assert_allclose(taken.ctf.defocus_u_um - taken.ctf.defocus_v_um, 0.3)
    assert (taken.true_angles - taken.tilt_angles).std() == pytest.approx(0.5, rel=0.1)
    np.testing.assert_allclose(taken.shifts.std(axis=0), 6, rtol=0.1)
    # evenly along a way of this length, the root mean square displacement is 3
    np.testing.assert_allclose(np.linalg.norm(taken.drifts, axis=1), 3 * np.sqrt(12))
    assert np.linalg.norm(taken.beam_tilt) == pytest.approx(2e-3)


def test_one_setting_leaves_the_chance_of_others_alone():
    plain = draw_acquisition(make_microscope((-60, 60, 3), tilt_error=1.0), rng=_seeded())
    other = draw_acquisition(
        make_microscope((-60, 60, 3), tilt_error=1.0, shift_error=5.0, motion=2.0), rng=_seeded()
    )
    np.testing.assert_array_equal(plain.true_angles, other.true_angles)
    assert not plain.shifts.any()
    assert not plain.drifts.any()


def test_the_same_seed_gives_the_same_bytes():
    potential, _ = grating()
    microscope = make_microscope((-30.0, 30, 10), detector="K3", tilt_error=0.3)
    first, second = (
        expose(potential, microscope=microscope, rng=_seeded(), halves=True) for _ in "ab"
    )
    for one, two in zip(first, second, strict=True):
        assert one.images.tobytes() == two.images.tobytes()
    (alone,) = expose(potential, microscope=microscope, rng=_seeded())
    assert alone.images.tobytes() == first[0].images.tobytes()  # halves do not change the whole
    (other,) = expose(potential, microscope=microscope, rng=np.random.default_rng(6))
    assert (other.images != alone.images).any()


def _seeded():
    return np.random.default_rng(5)


# --- signal --------------------------------------------------------------------------------------


def test_a_grating_has_the_contrast_of_the_weak_phase_formula(rng):
    potential, wave = grating()
    (series,) = expose(potential, microscope=clean(defocus_um=3.0), rng=rng)
    transfer = evaluate_ctf(single(3.0), np.array([1 / 80]), np.array([0.0]))[0, 0]
    expected = 1 + 2 * interaction_parameter(300) * 80.0 * transfer * wave
    np.testing.assert_allclose(series.images[0], np.tile(expected, (48, 1)), atol=4e-4)
    assert series.dose_e_per_a2 is None


@pytest.mark.parametrize("phase_shift", [0.0, 90.0])
def test_a_uniform_potential_gives_no_phase_contrast(rng, phase_shift):
    potential = empty().with_data(np.full((8, 60, 100), -5.0, np.float32))
    (series,) = expose(potential, microscope=clean(phase_shift=phase_shift), rng=rng)
    expected = 1 + 2 * interaction_parameter(300) * 0.07 * 5 * 80
    np.testing.assert_allclose(series.images, expected, rtol=2e-3)


def amplitude(image, period=8):
    """Of the grating in an image, relative to the image's mean; and the noise power per pixel."""
    spectrum = np.fft.rfft2(image / image.mean())
    return 2 * np.abs(spectrum[0, image.shape[1] // period]) / image.size


def test_signal_at_low_frequency_grows_with_defocus(rng):
    """sin(chi) is chi where chi is small, and chi is proportional to defocus."""
    potential, _ = grating(32)
    defocus = np.array([0.5, 1.0, 2.0, 4.0])
    signal = [
        amplitude(
            expose(
                potential,
                microscope=clean(defocus_um=d, amplitude_contrast=0.0, spherical_aberration_mm=0.0),
                rng=rng,
            )[0].images[0],
            32,
        )
        for d in defocus
    ]
    assert np.polyfit(np.log(defocus), np.log(signal), 1)[0] == pytest.approx(1, abs=0.01)


def test_signal_to_noise_grows_with_dose_and_defocus():
    """Power of the signal over that of the noise: proportional to the electrons."""
    potential, _ = grating(8, shape=(8, 192, 256), volts=8.0)

    def ratio(dose, defocus):
        microscope = make_microscope(dose_e_per_a2=dose, defocus_um=defocus)
        found = []
        for seed in range(4):
            (series,) = expose(potential, microscope=microscope, rng=np.random.default_rng(seed))
            power = np.abs(np.fft.rfft2(series.images[0])) ** 2
            signal = power[0, 32]
            power[0, :] = np.nan
            found.append(signal / np.nanmean(power))
        return np.mean(found)

    # Little enough that damage at 80 Å takes nothing.
    doses = np.array([0.5, 1, 2, 4, 8])
    slope = np.polyfit(np.log(doses), np.log([ratio(d, 3.0) for d in doses]), 1)[0]
    assert slope == pytest.approx(1, abs=0.05)
    transfer = [evaluate_ctf(single(d), 1 / 80, 0.0)[0] ** 2 for d in (1.0, 2.0, 4.0)]
    measured = [ratio(4.0, d) for d in (1.0, 2.0, 4.0)]
    slope = np.polyfit(np.log(transfer), np.log(measured), 1)[0]
    assert slope == pytest.approx(1, abs=0.05)


def fitted_defocus(image, projected, *, center, half=14, spacing=5.0):
    """Defocus that makes of a projection, around a column, what is seen in an image."""
    columns = slice(round(center) - half, round(center) + half + 1)
    weight = np.zeros(image.shape[1])
    weight[columns] = 1
    fy, fx = np.fft.fftfreq(image.shape[0], spacing)[:, None], np.fft.rfftfreq(len(weight), spacing)
    spectrum = np.fft.rfft2(projected * weight)
    scale = 2 * interaction_parameter(300) * spacing

    def misfit(defocus):
        transfer = evaluate_ctf(single(defocus), fx, fy)[0]
        model = np.fft.irfft2(spectrum * transfer, s=image.shape) * scale
        return np.sum((image - model)[:, columns] ** 2)

    found = minimize_scalar(misfit, bounds=(0.5, 2.5), method="bounded", options={"xatol": 1e-6})
    return found.x


@pytest.mark.parametrize("place", [(450, 0, 0), (-450, 20, 0), (300, -30, 110), (-200, 0, -120)])
def test_each_point_has_the_defocus_of_its_height(rng, place):
    """Nearer to the source, underfocus is less: defocus - (z cos t - x sin t)."""
    potential, angle, defocus = ball(place), 50.0, 1.5
    (series,) = expose(
        potential, microscope=clean((angle, angle, 1.0), defocus_um=defocus), rng=rng
    )
    t = np.deg2rad(angle)
    column = (place[0] * np.cos(t) + place[2] * np.sin(t)) / 5.0 + 255 / 2
    projected = project(potential.data, [angle])[0]
    found = fitted_defocus(series.images[0] - 1, projected, center=column)
    height = place[2] * np.cos(t) - place[0] * np.sin(t)
    assert abs(height) > 60
    assert found == pytest.approx(defocus - 1e-4 * height, abs=1e-3)
    flat = clean((angle, angle, 1.0), defocus_um=defocus, defocus_gradient=False)
    (series,) = expose(potential, microscope=flat, rng=rng)
    assert fitted_defocus(series.images[0] - 1, projected, center=column) == pytest.approx(
        defocus, abs=1e-3
    )


def test_protein_is_dark(rng):
    potential = ball((0, 0, 0), shape=(32, 48, 50), sigma=12.0)
    (series,) = expose(potential, microscope=clean((-60.0, 60.0, 30.0)), rng=rng)
    assert series.images[2, 24, 25] < 0.98 < series.images[2].mean()


@pytest.mark.parametrize("voltage", [200.0, 300.0])
def test_damage_is_that_of_the_dose(rng, voltage):
    """What is left of a grating of 40 Å in each image, by its place in the order."""
    potential, _ = grating(4, shape=(8, 120, 128), volts=6.0)
    options = {"angles": (-20.0, 20.0, 5.0), "voltage_kv": voltage}
    microscope = make_microscope(dose_e_per_a2=150.0, **options)
    (series,) = expose(potential, microscope=microscope, rng=rng)
    (intact,) = expose(potential, microscope=clean(**options), rng=rng)
    taken = draw_acquisition(microscope, rng=rng)
    expected = damage(1 / 40, before=taken.dose_before, after=taken.dose_after, voltage_kv=voltage)
    cosines = np.cos(np.deg2rad(series.tilt_angles))
    level = [i for i, c in enumerate(cosines) if c > 0.99]  # the grating keeps its frequency
    kept = [amplitude(series.images[i], 4) / amplitude(intact.images[i], 4) for i in level]
    np.testing.assert_allclose(kept, expected[level], rtol=0.02)
    assert expected.min() < 0.6


def test_motion_blurs_along_its_way(rng):
    potential = ball((0, 0, 0), shape=(16, 96, 96), sigma=6.0)
    microscope = clean(motion=8.0, defocus_um=1.0)
    (moved,) = expose(potential, microscope=microscope, rng=_seeded())
    (still,) = expose(potential, microscope=clean(defocus_um=1.0), rng=_seeded())
    ratio = np.fft.fft2(moved.images[0] - 1) / np.fft.fft2(still.images[0] - 1)
    taken = draw_acquisition(microscope, rng=_seeded())
    gx, gy = np.fft.fftfreq(96, 5.0), np.fft.fftfreq(96, 5.0)[:, None]
    transfer = evaluate_ctf(single(1.0), gx, gy)[0]
    band = (np.abs(transfer) > 0.3) & (np.hypot(gx, gy) < 0.06)
    expected = np.sinc(gx * taken.drifts[0, 0] + gy * taken.drifts[0, 1])
    np.testing.assert_allclose(ratio[band].real, expected[band], atol=0.02)
    assert expected[band].min() < 0.6


def test_beam_tilt_turns_phases_by_coma_and_by_height(rng):
    place, spacing = (0, 0, 120), 2.5
    potential = ball(place, shape=(120, 64, 72), spacing=spacing, sigma=3.0)
    microscope = clean(beam_tilt_mrad=4.0, defocus_um=0.6)
    (askew,) = expose(potential, microscope=microscope, rng=_seeded())
    (straight,) = expose(potential, microscope=clean(defocus_um=0.6), rng=_seeded())
    tilt = draw_acquisition(microscope, rng=_seeded()).beam_tilt
    gx, gy = np.fft.fftfreq(72, spacing), np.fft.fftfreq(64, spacing)[:, None]
    ratio = np.fft.fft2(askew.images[0] - 1) / np.fft.fft2(straight.images[0] - 1)
    squared, along = gx**2 + gy**2, gx * tilt[0] + gy * tilt[1]
    transfer = evaluate_ctf(single(0.6 - 0.0120), gx, gy)[0]
    band = (np.abs(transfer) > 0.4) & (squared < 0.13**2) & (squared > 0)
    expected = -2 * np.pi * along * (2.7e7 * 0.0196875**2 * squared + 120)
    off = np.angle(ratio * np.exp(-1j * expected))
    assert np.abs(off[band]).max() < 0.03
    assert np.abs(expected[band]).max() > 0.5


def test_images_are_taken_at_the_true_geometry(rng):
    potential = ball((100, 0, 0), shape=(20, 48, 160))
    microscope = clean((-40.0, 40, 20), tilt_error=2.0, shift_error=30.0)
    (series,) = expose(potential, microscope=microscope, rng=_seeded())
    taken = draw_acquisition(microscope, rng=_seeded())
    np.testing.assert_array_equal(series.tilt_angles, [-40, -20, 0, 20, 40])
    dark = (1 - series.images).clip(0.002) - 0.002
    y, x = np.indices(dark.shape[1:])
    center_x = (dark * x).sum(axis=(1, 2)) / dark.sum(axis=(1, 2))
    center_y = (dark * y).sum(axis=(1, 2)) / dark.sum(axis=(1, 2))
    expected = (100 * np.cos(np.deg2rad(taken.true_angles)) + taken.shifts[:, 0]) / 5 + 159 / 2
    np.testing.assert_allclose(center_x, expected, atol=0.1)
    np.testing.assert_allclose(center_y, taken.shifts[:, 1] / 5 + 47 / 2, atol=0.1)


# --- electrons -----------------------------------------------------------------------------------


def test_counts_are_poisson_numbers_of_the_dose(rng):
    microscope = make_microscope((-60.0, 60.0, 60.0), dose_e_per_a2=9.0)
    (series,) = expose(empty(), microscope=microscope, rng=rng, thickness=1500.0)
    # 3 e/Å² on 100 Å², less what ice of 1500 Å (3000 Å at 60 degrees) takes away.
    expected = 300 * np.exp(-np.array([1, 0.5, 1]))
    np.testing.assert_allclose(series.images.mean(axis=(1, 2)), expected, rtol=0.01)
    np.testing.assert_allclose(series.images.var(axis=(1, 2)), expected, rtol=0.06)
    np.testing.assert_array_equal(series.images, np.rint(series.images))


def test_without_a_filter_lost_electrons_come_back_without_signal(rng):
    potential, _ = grating()
    options = {"rng": rng, "thickness": 3000.0}
    (filtered,) = expose(potential, microscope=clean(), **options)
    (unfiltered,) = expose(potential, microscope=clean(energy_filter=False), **options)
    assert filtered.images.mean() == pytest.approx(np.exp(-1), rel=1e-3)
    assert unfiltered.images.mean() == pytest.approx(1, rel=1e-3)
    assert unfiltered.images.std() == pytest.approx(filtered.images.std(), rel=1e-3)


def radial_power(noise, bins=12):
    """Mean noise power in rings of spatial frequency up to Nyquist, and their middles."""
    power = np.abs(np.fft.fft2(noise)).astype(float) ** 2 / noise[0].size
    fy, fx = np.fft.fftfreq(noise.shape[1])[:, None], np.fft.fftfreq(noise.shape[2])
    ring = (np.hypot(fy, fx) * 2 * bins).astype(int)
    power[:, 0, 0] = 0
    total = np.bincount(ring.ravel(), power.mean(axis=0).ravel())
    return (total / np.bincount(ring.ravel()))[:bins], (np.arange(bins) + 0.5) / (2 * bins)


def test_noise_is_white_behind_the_optics(rng):
    """The specimen's signal has the CTF's rings; the noise has none: it comes after the optics."""
    potential = Volume(
        data=rng.standard_normal((20, 96, 128)).astype(np.float32), voxel_spacing=SPACING
    )
    angles = (-40.0, 40.0, 4.0)
    microscope = make_microscope(angles, dose_e_per_a2=84.0, defocus_um=5.0)
    (one,) = expose(potential, microscope=microscope, rng=np.random.default_rng(1))
    (two,) = expose(potential, microscope=microscope, rng=np.random.default_rng(2))
    power, frequency = radial_power(one.images - two.images)
    np.testing.assert_allclose(power / power.mean(), 1, atol=0.05)
    assert power.mean() == pytest.approx(2 * one.images.mean(), rel=0.03)
    slope, error = _line(frequency, power / power.mean())
    assert abs(slope) < 4 * error + 0.02
    signal, _ = radial_power((one.images + two.images) / 2)
    assert signal.max() > 3 * signal.min()  # which has the rings


def _line(x, y):
    (slope, _), covariance = curve_fit(lambda x, a, b: a * x + b, x, y)
    return slope, np.sqrt(covariance[0, 0])


def test_the_detector_shapes_noise_and_signal(rng):
    """At 2 Å, the detector's own pixels: MTF on the signal, DQE on its ratio to the noise."""
    spacing, detector = 2.0, find_detector("K2")
    microscope = make_microscope((-45.0, 45.0, 5.0), dose_e_per_a2=2e4, detector="K2")
    (series,) = expose(empty((8, 96, 112), spacing), microscope=microscope, rng=rng)
    power, frequency = radial_power(series.images)
    mean = 2e4 / 19 * spacing**2 * detector.efficiency
    assert series.images.mean() == pytest.approx(mean, rel=1e-3)
    expected = detector.noise_transfer(frequency / spacing, pixel=2.0) ** 2 * mean
    np.testing.assert_allclose(power[1:], expected[1:], rtol=0.06)
    potential, period = (
        Volume(
            data=np.tile(np.cos(np.pi * np.arange(112) / 2).astype(np.float32), (4, 24, 1)),
            voxel_spacing=spacing,
        ),
        4,
    )
    signal = [
        amplitude(expose(potential, microscope=clean(detector=name), rng=rng)[0].images[0], period)
        for name in ("K2", "ideal")
    ]
    mtf = detector.evaluate_mtf(1 / (period * spacing), pixel=2.0)
    assert signal[0] / signal[1] == pytest.approx(mtf, rel=0.01)


def test_images_are_binned_from_the_detectors_pixels(rng):
    """The same detector is better where its pixels are finer."""
    potential, _ = grating(4)
    fine, coarse = (
        amplitude(
            expose(potential, microscope=clean(detector="Falcon4", detector_pixel=p), rng=rng)[
                0
            ].images[0],
            4,
        )
        for p in (2.0, 10.0)
    )
    falcon = find_detector("Falcon4")
    ratio = falcon.evaluate_mtf(1 / 40, pixel=10.0) / falcon.evaluate_mtf(1 / 40, pixel=2.0)
    assert coarse / fine == pytest.approx(ratio, rel=1e-3)


def test_halves_are_independent_and_add_up(rng):
    potential, _ = grating(shape=(8, 120, 128))
    microscope = make_microscope((-20.0, 20, 10), dose_e_per_a2=5.0, detector="K3")
    full, one, two = expose(potential, microscope=microscope, rng=rng, halves=True)
    np.testing.assert_allclose(one.images + two.images, full.images, atol=1e-3)
    assert one.images.mean() == pytest.approx(full.images.mean() / 2, rel=0.01)
    expectation = expose(potential, microscope=clean((-20.0, 20, 10), detector="K3"), rng=rng)
    scale = full.images.mean() / expectation[0].images.mean()
    noise = [h.images - scale / 2 * expectation[0].images for h in (one, two)]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.015
    _, quiet, still = expose(potential, microscope=clean(), rng=rng, halves=True)
    np.testing.assert_array_equal(quiet.images, still.images)


def test_losses_are_those_along_the_way(rng):
    """A coarse map with a carbon-like strip on one side, on a grid of its own middle."""
    potential = empty((30, 42, 90))
    coarse = np.full((8, 11, 23), 1 / 3000, np.float32)
    coarse[3:5, :, 12:] = 1 / 800
    attenuation = Volume(data=coarse, voxel_spacing=40.0, origin=np.full(3, 15.0))
    (series,) = expose(
        potential, microscope=clean((-50.0, 50, 50)), rng=rng, attenuation=attenuation
    )
    bare, covered = 320 / 3000, 240 / 3000 + 80 / 800
    assert series.images.shape == (3, 42, 90)
    np.testing.assert_allclose(series.images[1, :, 10:35], np.exp(-bare), rtol=0.01)
    np.testing.assert_allclose(series.images[1, :, 55:80], np.exp(-covered), rtol=0.01)
    # the edge lies between coarse voxels 11 and 12, at 475 Å, in image pixel 47.5
    profile = -np.log(series.images[1, 20])
    edge = np.interp((bare + covered) / 2, profile[44:52], np.arange(44, 52))
    assert edge == pytest.approx(47.5, abs=0.3)
    tilted = -np.log(series.images[[0, 2]])
    # The strip covers 11 of 23 voxels: 80 Å of 1/800 instead of 1/3000.
    extra = 11 / 23 * 80 * (1 / 800 - 1 / 3000)
    assert tilted.mean() == pytest.approx((bare + extra) / np.cos(np.deg2rad(50)), rel=0.05)


def test_thin_losses_equal_a_number(rng):
    potential, _ = grating()
    uniform = Volume(data=np.full((2, 12, 16), 1 / 3000), voxel_spacing=40.0, origin=np.full(3, 15))
    microscope = clean((-60.0, 60, 20))
    (mapped,) = expose(potential, microscope=microscope, rng=rng, attenuation=uniform)
    (plain,) = expose(potential, microscope=microscope, rng=rng, thickness=80.0)
    np.testing.assert_allclose(mapped.images, plain.images, rtol=3e-3)


def test_recipes_must_be_resolved(rng):
    with pytest.raises(ValueError, match="resolved recipe"):
        expose(empty(), microscope=clean(defocus_um=Range(1.0, 2.0)), rng=rng)
    with pytest.raises(ValueError, match="detector must be one of"):
        expose(empty(), microscope=clean(detector="film"), rng=rng)


def test_the_stage_goes_no_further_than_it_can():
    microscope = Microscope(tilt_min=-85, tilt_max=85, tilt_step=5, tilt_error=10)
    taken = draw_acquisition(microscope, rng=np.random.default_rng(3))
    assert np.abs(taken.true_angles).max() == 86
    assert np.ptp(taken.true_angles - taken.tilt_angles) > 10
