"""Real structures end to end: simulate a tomogram, pick three proteins, score; with controls.

A tomogram of seven proteins and the mitochondrial ribosome is simulated and written. The
ribosome and two proteins are picked with `tomoloc pick template` at the threshold that it sets
itself and scored one-to-one within 50 Å. Controls: a ball of the ribosome's size as template, and
tomograms of pure noise.

    python benchmarks/real_input.py [--shared DIR] [--only NAME...]

needs a folder with `structures/` and `maps/` (real PDB files and density maps), by default
$TOMOLOC_SHARED.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tomoloc.cli.main import main as tomoloc
from tomoloc.evaluate import Result, evaluate_particles
from tomoloc.io.tables import read_particles
from tomoloc.io.tomograms import write_volume
from tomoloc.types import Volume

PROTEINS = {
    "6scj": "6scj.pdb.gz",
    "6bq1": "6bq1.pdb.gz",
    "7dd9": "7dd9.pdb.gz",
    "4v1w": "4v1w.cif.gz",
    "8zzi": "8zzi.cif.gz",
    "2q14": "2q14.cif.gz",
    "4tqu": "4tqu.pdb.gz",
}
PICKED = {"ribosome": 15.0, "4v1w": 18.0, "6scj": 15.0}
RIBOSOME = "5mrc_10A.mrc"


def recipe(shared: Path, *, shape: list[int], proteins: bool, name: str) -> str:
    species = ""
    if proteins:
        files = {k: shared / "structures/validation" / v for k, v in PROTEINS.items()}
        files["ribosome"] = shared / "maps" / RIBOSOME
        for label, path in files.items():
            count = 25 if label == "ribosome" else 15
            species += f'[[species]]\nlabel = "{label}"\nstructure = "{path}"\ncount = {count}\n'
    return (
        f'name = "{name}"\n[specimen]\nshape = {shape}\nvoxel_spacing = 10.0\n'
        f"[microscope]\ndefocus_um = 3.5\ndose_e_per_a2 = 120.0\n{species}"
    )


def run(*words: object) -> None:
    code = tomoloc([str(word) for word in words])
    if code:
        sys.exit(f"tomoloc {words[0]} failed with exit code {code}")


def pick(work: Path, sample: Path, template: Path, label: str, step: float) -> tuple[Path, float]:
    out = work / f"picks_{sample.name}_{label}"
    start = time.perf_counter()
    run(
        *("pick", "template", sample / "tomogram.mrc", "-o", out, "--template", template),
        *("--label", label, "--angular-step", step),
    )
    return out / "tomogram.star", time.perf_counter() - start


def score(table: Path, sample: Path, label: str) -> Result | None:
    truth = read_particles(sample / "particles.star")
    truth = truth[np.asarray(truth.label) == label]
    picks = read_particles(table)
    if not len(picks):
        return None
    return evaluate_particles(picks, truth, radius=50).labels[label]


def write_ball(path: Path, diameter: float) -> None:
    axis = (np.arange(48) - 23.5) * 10
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    ball = np.clip((diameter / 2 - radius) / 10 + 0.5, 0, 1).astype(np.float32)
    write_volume(Volume(data=ball, voxel_spacing=10.0), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=os.environ.get("TOMOLOC_SHARED"))
    parser.add_argument("--only", nargs="*", default=[*PICKED, "ball", "noise"])
    arguments = parser.parse_args()
    if arguments.shared is None or not Path(arguments.shared).is_dir():
        print("SKIP: no folder of real structures; give --shared or set TOMOLOC_SHARED")
        return
    shared = Path(arguments.shared).resolve()
    work = Path(tempfile.mkdtemp(prefix="tomoloc-real-"))
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    (work / "mix.toml").write_text(
        recipe(shared, shape=[96, 192, 200], proteins=True, name="mix"), "utf-8"
    )
    start = time.perf_counter()
    run("simulate", work / "mix.toml", "-o", work)
    sample = work / "mix_000"
    counts = read_particles(sample / "particles.star")
    print(f"simulated {len(counts)} particles in {time.perf_counter() - start:.1f} s: {sample}")
    files = {k: shared / "structures/validation" / v for k, v in PROTEINS.items()}
    files["ribosome"] = shared / "maps" / RIBOSOME
    passed = True
    print(
        f"{'template':10} {'step':>5} {'seconds':>8} {'truth':>6} {'picks':>6} "
        f"{'precision':>9} {'recall':>7} {'F1':>6} {'best F1':>8} {'AP':>6}"
    )
    for label, step in PICKED.items():
        if label not in arguments.only:
            continue
        table, seconds = pick(work, sample, files[label], label, step)
        result = score(table, sample, label)
        if result is None:
            print(f"{label:10} {step:5.0f} {seconds:8.0f} nothing found")
            passed = False
            continue
        chosen = result.chosen
        print(
            f"{label:10} {step:5.0f} {seconds:8.0f} {chosen.n_truth:6} {chosen.n_picks:6} "
            f"{chosen.precision:9.3f} {chosen.recall:7.3f} {chosen.f1:6.3f} "
            f"{result.best.f1:8.3f} {result.average_precision:6.3f}",
            flush=True,
        )
        if label == "ribosome":
            passed &= chosen.f1 >= 0.95
            verdict = "PASS" if chosen.f1 >= 0.95 else "FAIL"
            print(f"ribosome F1 >= 0.95 at its own threshold: {verdict}")
    if "ball" in arguments.only:
        write_ball(work / "ball.mrc", 260)
        out = work / "picks_ball"
        run(
            "pick",
            "template",
            sample / "tomogram.mrc",
            "-o",
            out,
            "--template",
            work / "ball.mrc",
            "--label",
            "ribosome",
            "--symmetry",
            "I",
            "--angular-step",
            40,
        )
        result = score(out / "tomogram.star", sample, "ribosome")
        f1 = 0.0 if result is None else result.chosen.f1
        n = 0 if result is None else result.chosen.n_picks
        print(f"control, ball as template: {n} picks, F1 for the ribosome {f1:.3f}")
    if "noise" in arguments.only:
        (work / "noise.toml").write_text(
            recipe(shared, shape=[64, 112, 120], proteins=False, name="noise"), "utf-8"
        )
        run("simulate", work / "noise.toml", "-n", 5, "-o", work)
        found = []
        for i in range(5):
            table, _ = pick(work, work / f"noise_{i:03d}", files["ribosome"], "ribosome", 20.0)
            found.append(len(read_particles(table)))
        fine = sum(found) <= 5
        passed &= fine
        print(
            f"control, noise tomograms, 1 false positive expected in each: picks {found}: "
            f"{'PASS' if fine else 'FAIL'}"
        )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
