"""Processes that train together."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from tomoloc.train.team import Team, gather

SCRIPT = """
import json, sys
from pathlib import Path

import torch
from torch import nn

from tomoloc.train.team import gather

class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def compute(self, x):
        return self.slope * x

    forward = None

team = gather(2, "cpu")
model = Line()
shared = team.share(model)
shared.compute(torch.tensor([1.0 + team.rank])).sum().backward()
team.meet()
values = [team.size, model.slope.grad.item(), team.tell(7 + team.rank)]
values += [team.agree(team.rank == 0), team.agree(True)]
Path(sys.argv[1], str(team.rank)).write_text(json.dumps(values))
"""


def test_one_process_is_a_team():
    model, team = nn.Linear(2, 1), Team()
    assert (team.rank, team.size) == (0, 1)
    assert team.share(model) is model
    team.meet()
    assert team.tell("word") == "word"
    assert team.agree(True)
    assert not team.agree(False)
    assert gather(1, "cpu") == team


def test_wrong_numbers_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="at least 1; got 0"):
        gather(0, "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--devices 2: this machine has 1"):
        gather(2, "cuda")
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ValueError, match=r"pip install 'tomoloc\[devices\]'"):
        gather(2, "cpu")


def test_two_processes_have_the_mean_gradient(tmp_path):
    pytest.importorskip("lightning_fabric")
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=120)
    for rank in (0, 1):
        found = json.loads((tmp_path / str(rank)).read_text())
        assert found == [2, 1.5, 7, False, True]
