import errno
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tomoloc.train.checkpoints import Average, Log, as_model, read_checkpoint, write_checkpoint


def test_the_average_follows_the_weights():
    model = nn.BatchNorm1d(2)
    average = Average(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.num_batches_tracked += 4
    average.update(model, 1000)
    torch.testing.assert_close(average.state["weight"], torch.full((2,), 2.0))
    assert average.state["num_batches_tracked"] == 4
    copy = as_model(model, average.state)
    assert not copy.training
    assert copy.weight[0] == 2
    assert model.weight[0] == 3


def test_early_averages_forget_the_start():
    model = nn.Linear(1, 1)
    average = Average(model, decay=0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.state["weight"].fill_(0.0)
    average.update(model, 0)
    assert average.state["weight"].item() == pytest.approx(0.9)


def test_a_checkpoint_comes_back(tmp_path):
    assert read_checkpoint(tmp_path / "nothing", device="cpu") is None
    write_checkpoint(tmp_path / "new", {"step": 3, "model": {"a": torch.arange(4)}})
    content = read_checkpoint(tmp_path / "new", device="cpu")
    assert content["step"] == 3
    assert content["model"]["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_checkpoint_is_an_error(tmp_path, content):
    write_checkpoint(tmp_path, {"step": 3, "model": torch.zeros(1000)})
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match=r"checkpoint.pt .*delete it to start anew"):
        read_checkpoint(tmp_path, device="cpu")


def test_the_checkpoint_of_another_version_is_an_error(tmp_path):
    torch.save({"format": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="of this version"):
        read_checkpoint(tmp_path, device="cpu")


def test_a_log_drops_what_will_be_done_again(tmp_path):
    path = tmp_path / "log.csv"
    log = Log(path, ("step", "loss"), before=0)
    for step in range(4):
        log.add(step=step, loss=step / 2)
    log.add(step=4, loss=math.nan)
    assert path.read_text().splitlines() == ["step,loss", "0,0", "1,0.5", "2,1", "3,1.5", "4,"]
    with path.open("a") as file:
        file.write("5,0.1")  # cut off
    Log(path, ("step", "loss"), before=3).add(step=3, loss=9)
    assert path.read_text().splitlines() == ["step,loss", "0,0", "1,0.5", "2,1", "3,9"]


def test_a_full_disk_is_said_and_the_last_checkpoint_kept(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, {"step": 1})

    def fill(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match=r"checkpoint.pt: No space left on device; the last one is"):
        write_checkpoint(tmp_path, {"step": 2})
    assert read_checkpoint(tmp_path, device="cpu")["step"] == 1
