"""Filaments: planted ones of known length and direction come back as curves."""

import numpy as np
import pytest

from tomoloc.features.filaments import trace_filaments
from tomoloc.types import Volume

SHAPE = (40, 56, 72)
ORIGIN = np.array([300.0, -70.0, 45.0])
SPACING = 10.0


def paint(lines, *, radius=3.0, inner=0.0):
    """Tubes around lines of index points zyx."""
    grid = np.stack(np.indices(SHAPE), axis=-1).astype(float)
    mask = np.zeros(SHAPE, dtype=bool)
    for line in lines:
        away = np.full(SHAPE, np.inf)
        for point in np.asarray(line, dtype=float):
            away = np.minimum(away, ((grid - point) ** 2).sum(axis=-1))
        mask |= (away <= radius**2) & (away >= inner**2)
    return Volume(data=mask, voxel_spacing=SPACING, origin=ORIGIN)


def straight(a, b, n=60):
    return np.linspace(a, b, n)


def arc(center, radius, angles, n=80):
    t = np.deg2rad(np.linspace(*angles, n))
    z, y, x = center
    return np.stack([np.full(n, z), y + radius * np.sin(t), x + radius * np.cos(t)], axis=1)


def length_of(line):
    return np.linalg.norm(np.diff(line, axis=0), axis=1).sum() * SPACING


def away_from(points, line):
    """Distance of positions from a line of index points, in angstrom."""
    volume = Volume(data=np.zeros(SHAPE), voxel_spacing=SPACING, origin=ORIGIN)
    places = volume.to_position(line)
    return np.linalg.norm(points[:, None] - places, axis=-1).min(axis=1)


def test_microtubules_are_followed_along_their_axis(rng):
    """Thin walls, of which half is not seen, around nothing."""
    line = straight((19, 14, 4), (21, 40, 68), 200)
    tube = paint([line], radius=11.5, inner=9.5)
    seen = tube.with_data(tube.data & (rng.random(SHAPE) < 0.5))
    (curve,) = trace_filaments(seen, diameter=240, step=40)
    assert away_from(curve.position, line).max() < 25
    assert curve.length == pytest.approx(length_of(line), abs=150)


def test_a_straight_filament():
    line = straight((10, 12, 12), (28, 40, 60))
    (curve,) = trace_filaments(paint([line]), diameter=60, step=40)
    # A tube of radius 3 goes on for 3 voxels beyond both ends of the line.
    assert curve.length == pytest.approx(length_of(line) + 60, abs=35)
    np.testing.assert_allclose(np.diff(curve.arc_length), 40)
    steps = np.linalg.norm(np.diff(curve.position, axis=0), axis=1)
    np.testing.assert_allclose(steps, 40, atol=1)
    inner = curve.position[1:-1]
    assert away_from(inner, straight((10, 12, 12), (28, 40, 60), 1000)).max() < 10
    direction = (line[-1] - line[0])[::-1] / np.linalg.norm(line[-1] - line[0])
    assert (curve.tangent @ direction > np.cos(np.deg2rad(6))).all()
    np.testing.assert_allclose(np.linalg.norm(curve.tangent, axis=1), 1)


def test_a_curved_filament():
    line = arc((20, 16, 34), 24, (10, 150))
    (curve,) = trace_filaments(paint([line]), diameter=60, step=25)
    assert curve.length == pytest.approx(length_of(line) + 60, rel=0.06)
    inside = slice(2, -2)
    assert away_from(curve.position[inside], arc((20, 16, 34), 24, (10, 150), 2000)).max() < 10
    volume = paint([line])
    # at each point, the tangent is across the radius of the circle
    spoke = curve.position - volume.to_position((20, 16, 34))
    spoke /= np.linalg.norm(spoke, axis=1, keepdims=True)
    assert np.abs((spoke * curve.tangent).sum(axis=1))[inside].max() < 0.15


def test_crossing_filaments_are_two():
    lines = [straight((20, 10, 10), (20, 44, 62)), straight((20, 46, 12), (20, 10, 58))]
    curves = trace_filaments(paint(lines), diameter=60, step=40)
    assert len(curves) == 2
    for line, curve in zip(lines, curves, strict=True):
        assert curve.length == pytest.approx(length_of(line) + 60, abs=60)
        assert away_from(curve.position[1:-1], line).max() < 20


def test_gaps_are_bridged_and_hollow_tubes_are_one():
    line = straight((20, 10, 8), (20, 40, 64))
    broken = paint([line])
    broken.data[:, :, 34:38] = False
    (curve,) = trace_filaments(broken, diameter=60, step=40)
    assert curve.length == pytest.approx(length_of(line) + 60, abs=50)
    tube = paint([straight((20, 28, 6), (20, 28, 66))], radius=6.0, inner=3.5)
    (curve,) = trace_filaments(tube, diameter=120, step=40)
    assert curve.length == pytest.approx(600 + 120, abs=80)
    assert away_from(curve.position, straight((20, 28, 0), (20, 28, 72), 500)).max() < 12


def test_short_pieces_are_none_and_nothing_is_nothing():
    spot = paint([straight((20, 20, 20), (20, 20, 26))])
    assert trace_filaments(spot, diameter=60, step=40) == []
    nothing = Volume(data=np.zeros(SHAPE, bool), voxel_spacing=SPACING)
    assert trace_filaments(nothing, diameter=60, step=40) == []
    with pytest.raises(ValueError, match="must be positive"):
        trace_filaments(nothing, diameter=60, step=0)
