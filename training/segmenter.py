"""Train the model `cytoplasm`, which tomoloc ships.

    python training/segmenter.py --ribosome FILE -o MODEL

FILE is a structure or a density map of a ribosome. Tomograms are simulated by the recipe
training/segmenter/cytoplasm.toml into MODEL.data, the network is trained on them as `tomoloc train
segmentation` does, and the best one on three held-out tomograms is written in 16 bits with its
card. The same command, given again, goes on where a stopped or killed one was.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tomoloc.cli.main import main as tomoloc
from tomoloc.nn.stored import load_model, save_model

FOLDER = Path(__file__).with_name("segmenter")
LABELS = ("membrane", "microtubule", "actin", "ribosome")
CHANNELS = (16, 24, 32)
HELD_OUT, HELD_OUT_SEED = 3, 555


def run(*words: object) -> None:
    """Give a command; leave with its exit code if it fails."""
    if code := tomoloc([str(word) for word in words]):
        sys.exit(code)


def main() -> None:
    """Simulate, train and release."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--ribosome", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    data = given.output.with_name(f"{given.output.name}.data")
    data.mkdir(parents=True, exist_ok=True)
    recipe = data / "cytoplasm.toml"
    text = (FOLDER / "cytoplasm.toml").read_text("utf-8")
    recipe.write_text(text.replace('"RIBOSOME"', f'"{given.ribosome.resolve()}"'), "utf-8")
    run("simulate", recipe, "-n", given.samples, "--seed", 1, "-o", data / "train")
    run("simulate", recipe, "-n", HELD_OUT, "--seed", HELD_OUT_SEED, "-o", data / "held_out")
    draft = data / given.output.name
    run(
        *("train", "segmentation", "--data", data / "train", "--validation", data / "held_out"),
        *("--labels", *LABELS, "--channels", *CHANNELS, "--steps", given.steps, "--patience", 0),
        *("-o", draft),
    )
    model = load_model(draft)
    table = {**model.config["training"], "data": ["training/segmenter/cytoplasm.toml"]}
    model = replace(
        model,
        config={**model.config, "training": table},
        card=(FOLDER / "card.md").read_text("utf-8"),
    )
    save_model(given.output, model, half=True)
    sys.stdout.write(f"{given.output}\n")


if __name__ == "__main__":
    main()
