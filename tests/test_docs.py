"""The documentation is true: the tutorial runs, commands exist, links lead somewhere."""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from tomoloc.cli.main import app, main
from tomoloc.cli.pick import PickOptions
from tomoloc.physics.detector import find_detector
from tomoloc.simulate.recipe import recipe_from_mapping

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Block:
    language: str
    info: str
    line: int
    text: str


def blocks_of(page: Path) -> list[Block]:
    found = re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    return [Block(m[1], m[2].strip(), m.string[: m.start()].count("\n") + 1, m[3]) for m in found]


def commands_of(block: Block) -> list[tuple[str, list[str]]]:
    """Commands of a console block, each with the lines it prints."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        else:
            commands[-1][1].append(line)
    return commands


def assert_alike(printed: str, shown: list[str], where: str) -> None:
    """Same words, and nearly the same numbers, up to a line of three dots."""
    lines = printed.rstrip("\n").splitlines()
    if "..." in shown:
        shown = shown[: shown.index("...")]
        lines = lines[: len(shown)]
    assert len(lines) == len(shown), f"{where} printed:\n{printed}"
    for got, expected in zip(lines, shown, strict=True):
        words = [" ".join(NUMBER.sub("#", line).split()) for line in (got, expected)]
        assert words[0] == words[1], f"{where} printed:\n{printed}"
        for a, b in zip(NUMBER.findall(got), NUMBER.findall(expected), strict=True):
            # Counts may differ by two, scores by a fifth, from one processor to another.
            room = 0.2 * abs(float(b)) + 0.02 if "." in b else 2
            assert abs(float(a) - float(b)) <= room, f"{where}: {got}\nshown: {expected}"


def run(command: list[str] | str, where: str) -> str:
    if isinstance(command, str) and command.startswith("tomoloc "):
        printed = io.StringIO()
        with redirect_stdout(printed):
            code = main(shlex.split(command)[1:])
        assert code == 0, where
        return printed.getvalue()
    # One thread each: those of programs that share few cores spend their time waiting.
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        text=True,
        encoding="utf-8",
        capture_output=True,
        env=os.environ | threads | {"PATH": path, "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, f"{where}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", ["tutorial.md", "recipes.md", "embedding.md"])
def test_page_runs(name, tmp_path, monkeypatch):
    """Files that have a title are written, commands run in turn, then the rest of the Python."""
    monkeypatch.chdir(tmp_path)
    script, shown = [], {}
    for block in blocks_of(ROOT / "docs" / name):
        where = f"{name}, line {block.line}"
        match block.language:
            case "toml" | "python" | "csv" if block.info:
                title = re.fullmatch(r'title="([\w.]+)"', block.info)[1]
                (tmp_path / title).write_text(block.text, "utf-8")
            case "console":
                for command, lines in commands_of(block):
                    assert_alike(run(command, where), lines, f"{where}: {command}")
            case "python":
                script.append(block.text + "print('\\0', end='')\n")
            case "text":
                shown[len(script) - 1] = where, block.text.splitlines()
    (tmp_path / "page.py").write_text("".join(script), "utf-8")
    printed = run([sys.executable, "-W", "error", "page.py"], f"the Python of {name}")
    assert shown
    for number, (where, lines) in shown.items():
        assert_alike(printed.split("\0")[number], lines, where)
    described = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    for table in tmp_path.glob("*/*/*.star"):
        columns = re.findall(r"^_(tomoloc\w+) #", table.read_text("utf-8"), re.M)
        unknown = [name for name in columns if f"`{name.rstrip('YZ')}" not in described]
        assert unknown == [], f"recipes.md does not say what these columns of {table} are"


def fragments() -> list[object]:
    """Pieces of recipes, which have no title."""
    found = [(page, block) for page in PAGES for block in blocks_of(page)]
    return [
        pytest.param(block.text, id=f"{page.name}:{block.line}")
        for page, block in found
        if block.language == "toml" and not block.info
    ]


@pytest.mark.parametrize("text", fragments())
def test_fragments_of_recipes_are_right(text):
    pieces = tomllib.loads(text)
    specimen = {"shape": [48, 96, 96], **pieces.pop("specimen", {})}
    recipe = recipe_from_mapping({"name": "piece", "specimen": specimen, **pieces})
    # Their structures are not here.
    drawn = replace(recipe, species=()).resolve(1)
    find_detector(drawn.microscope.detector)


def documented_commands() -> list[object]:
    found = []
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "console":
                lines = [command for command, _ in commands_of(block)]
            elif block.language == "sh":
                lines = block.text.splitlines()
            else:
                continue
            found += [
                pytest.param(line, id=f"{page.name}:{block.line}:{line[:40]}")
                for line in lines
                if line.startswith("tomoloc ")
            ]
    return found


@pytest.mark.parametrize("line", documented_commands())
def test_commands_and_options_exist(line):
    words = shlex.split(line, comments=True)[1:]
    if "--config" in words:  # the file is not here: check that there is such an option
        place = words.index("--config")
        words = [*words[:place], *words[place + 2 :], "--template", "x.mrc"]
        assert "config" in (field.name for field in fields(PickOptions))
    if "--help" in words or "--version" in words:
        return
    app.parse_args(words, exit_on_error=False, print_error=False)


def anchors_of(page: Path) -> set[str]:
    """Names that headings have in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|<)([^)#\s]*)(?:#([^)]*))?\)", page.read_text("utf-8"))
    assert [target for target, _ in links if not (page.parent / target).exists()] == []
    anchored = [
        ((page.parent / target) if target else page, name) for target, name in links if name
    ]
    assert [name for target, name in anchored if name not in anchors_of(target)] == []


def test_api_page_is_up_to_date():
    module = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    current = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert module["make_api"]() == current, "run: python docs/make_api.py"


def test_reference_of_recipes_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    module = runpy.run_path(str(ROOT / "docs" / "make_recipes.py"))
    current = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert module["make_page"](current) == current, "run: python docs/make_recipes.py"


def test_recipes_page_names_every_file_of_a_sample():
    from tomoloc.io.samples import FILES

    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert [name for name in FILES if f"`{name}`" not in text] == []


def test_readme_names_all_formats():
    from tomoloc.io.tables import DIALECTS

    text = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in DIALECTS if f"`{name}`" not in text] == []


def test_changelog_and_citation_name_the_version():
    import tomoloc

    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## [{tomoloc.__version__}]" in changelog
    assert f"\nversion: {tomoloc.__version__}\n" in citation
    assert f'\nversion = "{tomoloc.__version__}"\n' in (ROOT / "pyproject.toml").read_text("utf-8")
