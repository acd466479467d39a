"""Solids against published numbers."""

from __future__ import annotations

import pytest

from tomoloc.physics.materials import AMORPHOUS_CARBON, CRYSTALLINE_ICE, GOLD, VITREOUS_ICE
from tomoloc.physics.potential import ICE_POTENTIAL


def test_potentials_rank_and_are_those_of_isolated_atoms():
    # Gold's face-centred cube of 4.078 Å holds four atoms of 10.57 Å each at zero angle.
    assert pytest.approx(47.878 * 4 * 10.57 / 4.078**3, rel=0.01) == GOLD.potential
    assert VITREOUS_ICE.potential == ICE_POTENTIAL
    assert 0.98 < CRYSTALLINE_ICE.potential / VITREOUS_ICE.potential < 1
    assert VITREOUS_ICE.potential < AMORPHOUS_CARBON.potential < GOLD.potential


def test_elastic_scattering_of_carbon_falls_with_voltage_as_measured():
    # Peet et al. 2019, Ultramicroscopy, PMC6495108: 2.01 times as much at 100 kV.
    ratio = AMORPHOUS_CARBON.elastic_cross_section(100) / AMORPHOUS_CARBON.elastic_cross_section(
        300
    )
    assert ratio == pytest.approx(2.01, rel=0.01)


def test_aperture_stops_more_of_what_gold_scatters():
    parts = [
        element.elastic_cross_section(300, beyond=0.014) / element.elastic_cross_section(300)
        for element in (AMORPHOUS_CARBON, GOLD)
    ]
    assert 0 < parts[0] < 0.5 < parts[1] < 1


def test_losses_are_larger_at_lower_voltage_and_in_denser_matter():
    solids = (VITREOUS_ICE, CRYSTALLINE_ICE, AMORPHOUS_CARBON, GOLD)
    losses = [solid.loss(300) for solid in solids]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(1 / 3000)
    assert all(solid.loss(200) > 1.15 * loss for solid, loss in zip(solids, losses, strict=True))
