"""Ordered results of other processes, and endless samples."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from tomoloc.simulate.recipe import recipe_from_mapping
from tomoloc.simulate.stream import map_in_order, stream

logger = logging.getLogger("tomoloc.tests")


class OwnError(Exception):
    """Cannot be unpickled: it takes two arguments and hands on one."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def square(number):
    """Results of different size, with every kind of array."""
    if number == 5:
        raise ValueError("five is wrong")
    if number == 7:
        raise OwnError(1, 2)
    if number == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 11:
        return lambda: None
    if number == 13:
        sys.exit(3)
    logger.info("made %d", number)
    values = np.arange(number, dtype=np.float64) ** 2
    return {"n": number, "values": values, "cut": np.zeros((4, 5, 6))[:, 1:3], "pid": os.getpid()}


def sleep(number):
    time.sleep(number)
    return os.getpid()


def children():
    return multiprocessing.active_children()


def test_order_and_values_do_not_depend_on_the_workers():
    for workers in (0, 1, 3):
        results = list(map_in_order(square, [4, 0, 3, 100_000], workers=workers))
        assert [result["n"] for result in results] == [4, 0, 3, 100_000]
        for result in results:
            np.testing.assert_array_equal(result["values"], np.arange(result["n"]) ** 2.0)
            result["values"][:] = 0  # may be written to, as if made here
        assert len({result["pid"] for result in results} - {os.getpid()}) == workers
    assert children() == []


def test_endless_items_are_ended_by_closing():
    with closing(map_in_order(square, range(0, sys.maxsize, 2), workers=2)) as results:
        assert [result["n"] for result in itertools.islice(results, 5)] == [0, 2, 4, 6, 8]
        assert len(children()) == 2
    assert children() == []


def test_nothing_to_do_starts_nothing():
    assert list(map_in_order(square, [], workers=3)) == []


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (5, ValueError, "five is wrong"),
        (7, RuntimeError, "OwnError: 1 and 2"),
        (9, ChildProcessError, r"was killed \(SIGKILL\); where memory ran out"),
        (11, (AttributeError, RuntimeError), "pickle"),
        (13, SystemExit, "3"),
    ],
)
def test_errors_come_out_as_themselves_in_their_turn(number, kind, message):
    results = map_in_order(square, [2, number, 4], workers=2)
    assert next(results)["n"] == 2
    with pytest.raises(kind, match=message) as caught:
        next(results)
    if number == 5:
        assert str(caught.value) == "five is wrong"
        assert "In another process:\nTraceback" in caught.value.__notes__[0]
    assert children() == []


def test_closing_does_not_wait_for_what_is_in_the_making():
    results = map_in_order(sleep, [0, 60, 60], workers=2)
    started = time.perf_counter()
    next(results)
    results.close()
    assert time.perf_counter() - started < 20
    assert children() == []


def test_what_workers_log_is_logged_here(caplog):
    with caplog.at_level(logging.INFO, logger="tomoloc"):
        list(map_in_order(square, [1, 2, 3], workers=2))
    assert [record.getMessage() for record in caplog.records] == ["made 1", "made 2", "made 3"]


def test_samples_depend_on_seed_and_number_alone():
    # Not above: workers import this file, too.
    from tomoloc.simulate.scene import Simulator, numbered_recipes

    recipe = recipe_from_mapping(
        {
            "name": "tiny",
            "specimen": {"shape": [16, 24, 32]},
            "microscope": {"tilt_step": 20, "defocus_um": [2, 4]},
            "species": [{"structure": "builtin:2", "count": [1, 3]}],
        }
    )
    plan = numbered_recipes(recipe, number=4, seed=9)[3]
    wanted = Simulator(recipe).render(Simulator(recipe).draw_resolved(plan))
    for workers, start in ((0, 3), (2, 2)):
        with closing(stream(recipe, seed=9, workers=workers, start=start)) as samples:
            found = next(itertools.islice(samples, 3 - start, None))
        assert found.tomogram.name == "tiny_003"
        assert found.scene.recipe == plan
        np.testing.assert_array_equal(found.tomogram.data, wanted.tomogram.data)
        np.testing.assert_array_equal(found.particles.position, wanted.particles.position)
        found.tomogram.data[:] = 0


def test_wrong_use():
    with pytest.raises(ValueError, match="start must not be negative"):
        stream(None, seed=1, start=-1)
    with pytest.raises(ValueError, match="workers must not be negative"):
        map_in_order(square, [1], workers=-1)


SCRIPT = """
import sys, time
from tomoloc.simulate.recipe import recipe_from_mapping
from tomoloc.simulate.stream import map_in_order, stream
def slow(number):
    import os, time
    time.sleep(number and 60)
    return os.getpid()
if {guard}:
    results = map_in_order(slow, range(9), workers=2)
    print(next(results), flush=True)
    {last}
"""


def run_script(tmp_path, *, last, guard="__name__ == '__main__'"):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(last=last, guard=guard))
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def group_is_gone(group, seconds=10):
    """Tell whether no process of the group is left, as soon as that is so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, how):
    script = run_script(tmp_path, last="time.sleep(60)")
    assert int(script.stdout.readline()) != script.pid
    if how == signal.SIGINT:  # as a terminal does: to all of them
        os.killpg(script.pid, how)
    else:
        script.send_signal(how)
    _, complaint = script.communicate(timeout=20)
    assert script.returncode == -how
    assert group_is_gone(script.pid)
    assert complaint.count("Traceback") == (how == signal.SIGINT)  # the parent's own


def test_a_script_that_ends_early_ends_at_once(tmp_path):
    script = run_script(tmp_path, last="pass")
    _, complaint = script.communicate(timeout=20)
    assert (script.returncode, complaint) == (0, "")
    assert group_is_gone(script.pid)


def test_a_script_without_a_guard_is_told(tmp_path):
    script = run_script(tmp_path, last="pass", guard="True")
    _, complaint = script.communicate(timeout=20)
    assert script.returncode == 1
    assert 'must do so below if __name__ == "__main__"' in complaint
