"""The potential against programs that know nothing of ours: gemmi's densities and ttsim3d."""

from __future__ import annotations

import warnings

import gemmi
import numpy as np
import pytest
from scipy import fft, ndimage

from tomoloc.physics.ctf import electron_wavelength
from tomoloc.physics.filters import band_pass
from tomoloc.physics.potential import ICE_POTENTIAL, POTENTIAL_PER_SCATTERING, make_potential
from tomoloc.types import Structure

SHAPE = (60, 64, 72)
LOW_PASS = 5.0
B_FACTOR = 20.0
DISPLACED = {6: 16.44, 7: 2.49, 8: 9.13, 16: 19.86}  # Å³, Fraser et al. 1978
TTSIM_BONDS = 1.043  # factor for chemical bonds that ttsim3d has and isolated atoms have not


@pytest.fixture(scope="module")
def globule():
    """Atoms of protein in an ellipsoid without symmetry, none closer than 1.4 Å."""
    rng = np.random.default_rng(3)
    position = np.empty((0, 3))
    for place in rng.uniform(-16, 16, (20000, 3)) * [1.2, 1.0, 0.8]:
        notch = np.all(place > 4)
        free = not len(position) or np.square(position - place).sum(axis=1).min() > 1.4**2
        if free and not notch and np.linalg.norm(place / [1.2, 1, 0.8]) < 16:
            position = np.r_[position, place[None]]
        if len(position) == 1200:
            break
    number = rng.choice([6, 7, 8, 16], len(position), p=[0.63, 0.17, 0.19, 0.01])
    return position, number


@pytest.fixture(scope="module")
def ours(globule):
    position, number = globule
    structure = Structure(
        # A hydrogen without weight keeps implied hydrogens away.
        position=np.r_[position, position[:1]],
        atomic_number=np.r_[number, 1],
        weight=np.r_[np.ones(len(number)), 0],
    )
    options = {"voxel_spacing": 1.0, "shape": SHAPE, "low_pass": LOW_PASS, "b_factor": B_FACTOR}
    return structure, make_potential(structure, **options)


@pytest.fixture(scope="module")
def ice(globule, ours):
    """What the atoms displace, summed in real space."""
    shift = ours[1].to_index(np.zeros(3))[::-1] - ours[0].center
    data = np.zeros(SHAPE)
    axes = [np.arange(n) for n in SHAPE]
    for place, number in zip(globule[0] + shift, globule[1], strict=True):
        # The blur exp(-B k² / 4) adds its variance, B / 8 π², to that of the Gaussian.
        width = DISPLACED[int(number)] ** (2 / 3) + B_FACTOR / (4 * np.pi)
        weight = ICE_POTENTIAL * DISPLACED[int(number)] / width**1.5
        z, y, x = (
            np.exp(-np.pi * (axis - p) ** 2 / width)
            for axis, p in zip(axes, place[::-1], strict=True)
        )
        data += weight * z[:, None, None] * y[:, None] * x
    return limit(data)


def limit(data, voxel_spacing=1.0):
    return band_pass(data, voxel_spacing=voxel_spacing, low_pass=LOW_PASS / 0.9)


def model_of(position, number):
    chain = gemmi.Chain("A")
    for i, (place, z) in enumerate(zip(position, number, strict=True)):
        atom = gemmi.Atom()
        atom.element = gemmi.Element(int(z))
        atom.name = atom.element.name
        atom.pos, atom.b_iso = gemmi.Position(*place), B_FACTOR
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(i + 1, " ")
        residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    return model


def compare(result, reference):
    """Correlation, and the factor by which the result is larger."""
    result, reference = np.ravel(result), np.ravel(reference)
    return np.corrcoef(result, reference)[0, 1], result @ reference / (reference @ reference)


def test_gemmi_gives_the_same_potential(globule, ours, ice):
    structure, volume = ours
    shift = volume.to_index(np.zeros(3))[::-1] - structure.center
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.set_unit_cell(gemmi.UnitCell(*SHAPE[::-1], 90, 90, 90))
    calculator.d_min, calculator.rate = 1.0, 1.0
    calculator.put_model_density_on_grid(model_of(globule[0] + shift, globule[1]))
    fine = np.array(calculator.grid.array).transpose(2, 1, 0) * POTENTIAL_PER_SCATTERING
    finer = fine.shape[0] // SHAPE[0]
    assert fine.shape == tuple(finer * n for n in SHAPE)
    vacuum = limit(fine, 1 / finer)[::finer, ::finer, ::finer]
    correlation, scale = compare(volume.data, vacuum - ice)
    assert correlation > 0.9999
    assert scale == pytest.approx(1, abs=1e-3)
    assert compare(volume.data, vacuum)[0] < 0.998  # the test can tell that ice is missing


def simulate_elsewhere(path, side):
    """Potential in vacuum that ttsim3d gives, in volt, centred in a cube of `side` voxels."""
    models = pytest.importorskip("ttsim3d.models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulator = models.Simulator(
            pixel_spacing=1.0,
            volume_shape=(side, side, side),
            pdb_filepath=path,
            center_atoms=True,
            b_factor_scaling=4.0,  # against its factor of a quarter
            additional_b_factor=0.0,
            simulator_config=models.SimulatorConfig(
                voltage=300.0, apply_dose_weighting=False, apply_dqe=False, upsampling=2
            ),
        )
        phase = simulator.run().numpy()
    # Phases of one voxel each: bonds · wavelength · scattering factor / area.
    return phase * POTENTIAL_PER_SCATTERING / (TTSIM_BONDS * electron_wavelength(300.0))


def test_ttsim3d_gives_the_same_potential(globule, ours, ice, tmp_path):
    pytest.importorskip("ttsim3d")
    file = gemmi.Structure()
    file.add_model(model_of(*globule))
    file.write_pdb(str(tmp_path / "globule.pdb"))
    data = simulate_elsewhere(tmp_path / "globule.pdb", SHAPE[2])
    # Its middle is the mean position, half a voxel beyond ours.
    shift = ours[0].center - globule[0].mean(axis=0)
    moved = ndimage.fourier_shift(fft.fftn(limit(data)), -(0.5 + shift[::-1]))
    start = [(SHAPE[2] - n) // 2 for n in SHAPE]
    z, y, x = (slice(a, a + n) for a, n in zip(start, SHAPE, strict=True))
    vacuum = fft.ifftn(moved).real[z, y, x]
    correlation, scale = compare(ours[1].data, vacuum - ice)
    assert correlation > 0.999
    assert scale == pytest.approx(1, abs=0.03)


def test_ttsim3d_sees_the_same_shape_of_a_real_protein(shared, tmp_path):
    pytest.importorskip("ttsim3d")
    from tomoloc.io.structures import read_structure

    path = min((shared / "structures" / "validation").glob("*.gz"), key=lambda p: p.stat().st_size)
    structure = read_structure(path)
    file = gemmi.read_structure(str(path))
    file.remove_hydrogens()
    file.remove_waters()
    for model in file:
        for site in model.all():
            site.atom.b_iso = 0.0
    file.write_pdb(str(tmp_path / "protein.pdb"))
    side = int(structure.diameter) + 30
    data = simulate_elsewhere(tmp_path / "protein.pdb", side)
    ours = make_potential(structure, voxel_spacing=1.0, shape=(side,) * 3, low_pass=20.0)
    heavy = np.array([site.pos.tolist() for site in sites(file)])
    shift = structure.center - heavy.mean(axis=0)
    moved = fft.ifftn(ndimage.fourier_shift(fft.fftn(data), -(0.5 + shift[::-1]))).real
    smooth = band_pass(moved, voxel_spacing=1.0, low_pass=20.0 / 0.9)
    assert compare(ours.data, smooth)[0] > 0.98


def sites(file):
    return [site.atom for model in file for site in model.all()]
