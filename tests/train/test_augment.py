import numpy as np
import pytest
import torch

from tomoloc.train.augment import Augmentation, Augmenting, augment, draw_augmentations

SHAPE = (24, 32, 40)
NOTHING = Augmentation(
    gain=1, offset=0, white_noise=0, coloured_noise=0, tilt=90, coarseness=1, tone=(0,) * 5, seed=1
)


@pytest.fixture
def patch(rng):
    return torch.from_numpy(rng.normal(size=(1, *SHAPE)).astype(np.float32))


def spectrum(patch):
    z, y, x = (np.abs(np.fft.fftfreq(n, 0.5)) for n in SHAPE)
    return np.abs(np.fft.fftn(patch.numpy()[0])), np.meshgrid(z, y, x, indexing="ij")


def test_nothing_changes_nothing(patch):
    torch.testing.assert_close(augment(patch, [NOTHING]), patch, atol=1e-5, rtol=0)


def test_gain_and_offset(patch):
    changed = augment(patch, [NOTHING._replace(gain=1.5, offset=0.25)])
    torch.testing.assert_close(changed, 1.5 * patch + 0.25, atol=1e-5, rtol=0)


def test_the_wedge_gets_wider(patch):
    power, (z, _, x) = spectrum(augment(patch, [NOTHING._replace(tilt=40)]))
    angle = np.degrees(np.arctan2(z, x))
    before, _ = spectrum(patch)
    lost = angle > 43
    assert power[lost].max() < 1e-3 * power.max()
    kept = angle < 37
    scale = power[kept].mean() / before[kept].mean()
    np.testing.assert_allclose(power[kept], scale * before[kept], atol=1e-3 * power.max())


def test_coarse_voxels_have_no_fine_detail(patch):
    power, axes = spectrum(augment(patch, [NOTHING._replace(coarseness=1.25)]))
    beyond = np.max(axes, axis=0) > 0.85
    assert power[beyond].max() < 1e-3 * power.max()
    assert np.median(power[np.max(axes, axis=0) < 0.7]) > 0.3 * np.median(spectrum(patch)[0])


def test_noise_is_as_strong_as_asked(patch):
    for kind in ("white_noise", "coloured_noise"):
        changed = augment(patch, [NOTHING._replace(**{kind: 0.75})])
        # the contrast stays: 1 / sqrt(1 + 0.75^2) of it is the old patch
        assert changed.std() == pytest.approx(patch.std().item(), rel=1e-3)
        correlation = np.corrcoef(changed.numpy().ravel(), patch.numpy().ravel())[0, 1]
        assert correlation == pytest.approx(0.8, abs=0.03)


def test_coloured_noise_stays_out_of_the_wedge(patch):
    tilted = augment(patch, [NOTHING._replace(tilt=45)])
    noisy, (z, _, x) = spectrum(augment(tilted, [NOTHING._replace(coloured_noise=1.0)]))
    lost = np.degrees(np.arctan2(z, x)) > 48
    assert noisy[lost].max() < 2e-3 * noisy.max()


def test_tone_changes_octaves(patch):
    tone = (0.0, 0.0, np.log(2), 0.0, 0.0)  # twice the contrast at a quarter of Nyquist
    after, axes = spectrum(augment(patch, [NOTHING._replace(tone=tone)]))
    before, _ = spectrum(patch)
    frequency = np.sqrt(np.sum(np.square(axes), axis=0))
    gain = after / before
    quarter = np.median(gain[np.abs(frequency - 0.25) < 0.02])
    fine = np.median(gain[(frequency > 0.55) & (frequency < 1)])
    assert quarter / fine == pytest.approx(2, rel=0.1)


def test_the_same_draw_gives_the_same_patches(patch):
    drawn = [
        draw_augmentations(1, augmenting=Augmenting(), rng=np.random.default_rng(5))
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert torch.equal(augment(patch, drawn[0]), augment(patch, drawn[1]))


def test_draws_keep_to_their_bounds(rng):
    augmenting = Augmenting(tilt=(41, 55), coarseness=(1.1, 1.2), white_noise=0.3, tilted=0.5)
    drawn = draw_augmentations(300, augmenting=augmenting, rng=rng)
    tilts = np.array([one.tilt for one in drawn])
    assert ((tilts == 90) | ((tilts >= 41) & (tilts <= 55))).all()
    assert 0.35 < (tilts < 90).mean() < 0.65
    assert max(one.white_noise for one in drawn) <= 0.3
    assert {one.coarseness == 1 or 1.1 <= one.coarseness <= 1.2 for one in drawn} == {True}
    assert len({one.seed for one in drawn}) == 300


def test_threads_are_as_before(patch):
    before = torch.get_num_threads()
    augment(patch, [NOTHING])
    assert torch.get_num_threads() == before
