"""Write docs/gallery.md and its pictures: one sample of each shipped recipe.

python docs/make_gallery.py [RECIPE...] [--seed S]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

from tomoloc.report.scenes import THICKNESS, draw_scene
from tomoloc.simulate.recipe import shipped_recipes
from tomoloc.simulate.scene import Simulator, numbered_recipes

DOCS = Path(__file__).parent
PAGE = DOCS / "gallery.md"
INTRODUCTION = """\
# Gallery of recipes

One sample of each recipe that comes with tomoloc: the model seen from above at a slant, the image
without tilt, a slice through the tomogram (protein dark, mean of {thickness}), and the atlas
there. Made by `python docs/make_gallery.py`; every picture can be made again with
`tomoloc simulate NAME --seed {seed} -o DIR`.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="all by default")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    recipes = shipped_recipes()
    (DOCS / "images").mkdir(exist_ok=True)
    for name in arguments.recipes or recipes:
        start = perf_counter()
        simulator = Simulator(recipes[name])
        plan = numbered_recipes(recipes[name], number=1, seed=arguments.seed)[0]
        sample = simulator.render(simulator.draw_resolved(plan))
        seconds = perf_counter() - start
        figure = draw_scene(sample)
        path = DOCS / "images" / f"recipe-{name}.jpg"
        figure.savefig(path, dpi=100, pil_kwargs={"quality": 85})
        print(f"{path} {path.stat().st_size // 1024} KB; {seconds:.1f} s to simulate")
    text = INTRODUCTION.format(thickness=f"{THICKNESS:g} Å", seed=arguments.seed)
    for name, recipe in recipes.items():
        text += f"## {name}\n\n{recipe.description}.\n\n![{name}](images/recipe-{name}.jpg)\n\n"
    PAGE.write_text(text.rstrip() + "\n", "utf-8")


if __name__ == "__main__":
    main()
