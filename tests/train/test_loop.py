from dataclasses import replace

import numpy as np
import pytest
import torch
from cheap import kill_training, make_sample, read_rows, source

from tomoloc.nn.encoder import DenseEncoder
from tomoloc.simulate.recipe import Recipe
from tomoloc.simulate.scene import Simulator
from tomoloc.simulate.settings import Microscope, Species, Specimen
from tomoloc.train.loop import TrainSettings, learning_rate, make_encoder, read_settings, train
from tomoloc.train.patches import Patching

SETTINGS = TrainSettings(
    steps=6,
    ring=3,
    first=2,
    warm_up=2,
    steps_per_sample=1.5,
    patching=Patching(number=2, shape=(16, 24, 32)),
    validate_every=4,
    checkpoint_minutes=0,
)


def tiny(seed=1):
    return make_encoder(seed=seed, widths=(8, 12), down=(1, 1), up=(1,), channels=8)


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


# ------------------------------------------------------------------------------------- learning


def test_a_tiny_network_learns_two_built_in_classes(tmp_path):
    recipe = Recipe(
        name="two",
        specimen=Specimen(shape=(48, 72, 88), border="cut"),
        microscope=Microscope(tilt_step=8.0, dose_e_per_a2=150.0, defocus_um=3.0),
        species=(
            Species(structure="builtin:4", count=8),
            Species(structure="builtin:6", count=8),
        ),
    )
    simulator = Simulator(recipe)
    *samples, held_out = [
        simulator.render(simulator.draw(np.random.default_rng(i))) for i in range(4)
    ]
    reports = []
    train(
        make_encoder(seed=0, widths=(16, 24, 32), down=(1, 1, 1), up=(1, 1), channels=16),
        lambda start: (samples[i % 3] for i in range(start, 100)),
        settings=replace(
            SETTINGS,
            steps=90,
            first=3,
            warm_up=10,
            average=0.9,
            learning_rate=4e-3,
            patching=Patching(number=3, shape=(40, 48, 48)),
            validate_every=90,
            checkpoint_minutes=5,
        ),
        folder=tmp_path,
        validation=[held_out],
        publish=lambda _, report: reports.append(report),
    )
    losses = [float(row["contrastive"]) for row in read_rows(tmp_path / "steps.csv")]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    (report,) = reports
    assert report.step == 90
    assert report.validation.accuracy > 0.9  # 0.5 is chance
    assert report.validation.center_f1 > 0.7
    assert report.validation.pick_f1 > 0.6


# ------------------------------------------------------------------------------- going on, ending

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_loop import SETTINGS, tiny, train, source
from dataclasses import replace
train(tiny(), source, settings=replace(SETTINGS, steps=400), folder=Path(sys.argv[1]))
"""


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    folder = tmp_path / "killed"
    done = kill_training(SCRIPT, folder)
    settings = replace(SETTINGS, steps=done + 5, decay=0.0)
    resumed = train(tiny(seed=2), source, settings=settings, folder=folder)
    unbroken = train(tiny(), source, settings=settings, folder=tmp_path / "unbroken")
    assert torch.equal(weights(resumed), weights(unbroken))
    before, after = read_rows(folder / "steps.csv"), read_rows(tmp_path / "unbroken" / "steps.csv")
    for name in ("step", "loss", "accuracy", "learning_rate", "gradient"):
        assert [row[name] for row in before] == [row[name] for row in after]


def test_a_finished_training_is_prolonged(tmp_path):
    train(tiny(), source, settings=SETTINGS, folder=tmp_path)
    model = train(tiny(2), source, settings=SETTINGS, folder=tmp_path)
    assert len(read_rows(tmp_path / "steps.csv")) == 6
    longer = train(tiny(2), source, settings=replace(SETTINGS, steps=8), folder=tmp_path)
    assert [int(row["step"]) for row in read_rows(tmp_path / "steps.csv")] == list(range(8))
    assert not torch.equal(weights(model), weights(longer))


def test_validation_ends_a_training_that_no_longer_gains(tmp_path):
    reports = []
    for _ in range(2):  # the second does nothing
        train(
            tiny(),
            source,
            settings=replace(SETTINGS, steps=50, validate_every=1, patience=2, learning_rate=1e-9),
            folder=tmp_path,
            validation=[make_sample(1000)],
            publish=lambda model, report: reports.append((model.training, report)),
        )
    assert 2 <= len(reports) < 50
    assert [report.finished for _, report in reports] == [False] * (len(reports) - 1) + [True]
    assert not any(training for training, _ in reports)
    assert len(read_rows(tmp_path / "validation.csv")) == len(reports)


def test_samples_come_when_they_are_due_and_are_asked_for_once(tmp_path):
    asked = []

    def counted(start):
        for sample in source(start):
            asked.append(sample.tomogram.name)
            yield sample

    train(tiny(), counted, settings=SETTINGS, folder=tmp_path)
    assert asked == [f"cheap-{i}" for i in range(2 + int(5 / 1.5))]


def test_a_source_that_ends_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="samples without end"):
        train(tiny(), lambda start: iter([make_sample(0)]), settings=SETTINGS, folder=tmp_path)


def test_a_loss_that_is_no_number_is_an_error(tmp_path):
    model = tiny()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="no number at step 0"):
        train(model, source, settings=SETTINGS, folder=tmp_path)


def test_the_checkpoint_of_another_network_is_an_error(tmp_path):
    train(tiny(), source, settings=replace(SETTINGS, steps=1), folder=tmp_path)
    other = DenseEncoder(widths=(8, 16), down=(1, 1), up=(1,), channels=8)
    with pytest.raises(ValueError, match="checkpoint of another network"):
        train(other, source, settings=SETTINGS, folder=tmp_path)


# ---------------------------------------------------------------------------------- settings


def test_the_rate_rises_stays_and_falls():
    settings = TrainSettings(steps=1000, warm_up=100, learning_rate=2e-3, decay=0.25)
    rate = np.array([learning_rate(step, settings) for step in range(1000)])
    assert rate[0] == pytest.approx(2e-5)
    assert (np.diff(rate[:99]) > 0).all()
    np.testing.assert_allclose(rate[99:751], 2e-3)
    assert (np.diff(rate[751:]) < 0).all()
    assert rate[750 + 63] == pytest.approx(2e-3 * 0.5, rel=0.01)  # a quarter of the way
    assert 0 < rate[-1] < 1e-5
    longer = replace(settings, steps=2000)
    assert [learning_rate(s, longer) for s in range(750)] == rate[:750].tolist()


def test_settings_are_read_from_tables():
    table = {"steps": 7, "patching": {"shape": [16, 24, 32]}, "augmenting": {"tilt": [40, 50]}}
    settings = read_settings(table)
    assert settings.steps == 7
    assert settings.patching.shape == (16, 24, 32)
    assert settings.augmenting.tilt == (40, 50)
    with pytest.raises(ValueError, match="learning_speed is no setting"):
        read_settings({"learning_speed": 1})


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"decay": 2.0}, {"average": 1.0}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainSettings(**wrong)
