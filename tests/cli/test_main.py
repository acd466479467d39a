"""The command line as a whole: help, errors in one line, signals, pipes."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from tomoloc.cli import main as main_module
from tomoloc.cli.main import VERBS, app, describe_error, main

RECIPE = """
name = "tiny"
species = [{ structure = "builtin:8", count = 3 }]
[specimen]
shape = [24, 36, 40]
[microscope]
tilt_step = 10
"""
COMMAND = [sys.executable, "-c", "import sys; from tomoloc.cli.main import main; sys.exit(main())"]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("before", [[], ["demo", "--help"], ["pick", "--help"]], ids=str)
def test_help_lists_the_verbs_in_the_order_of_work(before, capsys):
    main(before)
    capsys.readouterr()
    assert main(["--help"]) == 0
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    shown = [line.split(None, 1) for line in lines if line.split(" ")[0] in VERBS]
    assert shown == [[verb, summary] for verb, summary in VERBS.items()]


def test_a_verb_has_all_its_help(capsys):
    assert main(["simulate", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert VERBS["simulate"] in said
    assert "the folders are printed" in said
    assert "╭" in said  # boxes are for help, not for errors


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["pick", "template", "a.mrc"], "--output is missing (see tomoloc pick template --help)"),
        (
            ["pick", "template", "a.mrc", "-o"],
            "-o needs a value (see tomoloc pick template --help)",
        ),
        (["pick", "template", "-o", "q"], "--template is missing"),
        (
            ["pick", "template", "a.mrc", "-o", "q", "--template", "x", "--angular-step", "abc"],
            "--angular-step needs a number; got 'abc'",
        ),
        (
            ["pick", "template", "a.mrc", "-o", "q", "--template", "x", "--tilt-range", "-60"],
            "--tilt-range needs 2 values",
        ),
        (
            ["pick", "template", "a.mrc", "-o", "q", "--template", "x", "--contrast", "grey"],
            'Invalid value "grey" for --contrast. Choose from: "auto", "dark", "light"',
        ),
        (["pick", "tempalte"], 'Unknown command "tempalte". Did you mean "template"?'),
        (["simulat"], 'Unknown command "simulat". Did you mean "simulate"?'),
        (["simulate", "--lits"], "Unknown option: --lits. Did you mean --list?"),
        (["simulate", "demo", "-n", "x", "-o", "q"], "-n needs a whole number; got 'x'"),
        (["convert", "a.star"], "OUT is missing (see tomoloc convert --help)"),
        (["convert", "a.star", "b"], "--to is missing"),
        (["evaluate", "a", "b"], "--radius is missing"),
        (["info"], "FILE is missing (see tomoloc info --help)"),
        (["info", "a", "b"], "unexpected words: b (see tomoloc info --help)"),
    ],
)
def test_wrong_use_is_one_plain_line(words, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"tomoloc: {complaint}")
    assert said.err.count("\n") == 1
    assert "--help)" in said.err
    assert list(tmp_path.iterdir()) == []


def test_each_line_goes_to_the_stderr_of_its_time(monkeypatch):
    main(["--version"])
    for _ in range(2):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        logging.getLogger("tomoloc.test").info("one\ntwo")
        assert stream.getvalue() == "one\ntwo\n"
        stream.close()
    assert len(logging.getLogger("tomoloc").handlers) == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(28, "No space left on device", "out/a.star"),
            "out/a.star: No space left on device",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (FileNotFoundError("no such file: a.star"), "no such file: a.star"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
        (MemoryError("Unable to allocate 3 TiB"), "not enough memory: Unable to allocate 3 TiB"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_errors_in_words(error, text, monkeypatch, capsys):
    assert describe_error(error) == text

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(main_module, "app", fail)
    assert main([]) == 2
    assert capsys.readouterr().err == f"tomoloc: {text}\n"
    monkeypatch.setenv("TOMOLOC_DEBUG", "1")
    with pytest.raises(type(error)):
        main([])


def test_an_interrupt_has_the_code_of_the_signal(monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "app", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "tomoloc: interrupted; what is finished is kept\n"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupt_leaves_whole_samples_only(recipe, tmp_path):
    out = tmp_path / "out"
    with subprocess.Popen(
        [*COMMAND, "simulate", str(recipe), "-n", "500", "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        first = process.stdout.readline()  # one sample is there, another one in work
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        rest, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint == "tomoloc: interrupted; what is finished is kept\n"
    printed = (first + rest).split()
    assert {str(path) for path in out.iterdir()} >= set(printed)
    assert all((path / "recipe.toml").is_file() for path in out.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_leaves_is_no_error(recipe, tmp_path):
    with subprocess.Popen(
        [*COMMAND, "simulate", str(recipe), "-n", "500", "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 141
    assert complaint == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*COMMAND, "simulate", "--list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "tomoloc: No space left on device\n"


def test_waiting_threads_sleep(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_list_of_verbs_is_that_of_the_app():
    assert [name for name in app if not name.startswith("-")] == list(VERBS)
