"""The verb `embed`."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter

if TYPE_CHECKING:
    from tomoloc.features.candidates import Candidates
    from tomoloc.features.learned import LearnedFeatures
    from tomoloc.types import Tomogram, Volume

__all__ = ["embed"]

logger = logging.getLogger(__name__)


def embed(
    *tomograms: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    model: str = "general",
    voxel_spacing: float | None = None,
    contrast: Literal["auto", "dark", "light"] = "auto",
    mask: Path | None = None,
    threshold: float = 0.05,
    min_distance: float = 40.0,
    candidates_only: Annotated[bool, Parameter(negative="")] = False,
    views: Literal[1, 2, 4] = 4,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Compute what a network makes of each place of a tomogram, and where particles may be.

    Each tomogram becomes a folder, NAME.zarr, for tomoloc cluster and for finding more of a kind;
    its path is printed. What is there already, made in the same way, is kept.

    Parameters
    ----------
    tomograms
        MRC (.mrc .rec .map .st .ali .mrc.gz), OME-Zarr, NumPy or TIFF files.
    output
        Folder for the embeddings.
    model
        Name of a model that comes with tomoloc, or a model folder. Its network must find centres,
        which that of TomoTwin does not.
    voxel_spacing
        Voxel size in Å, where a file does not state it or states it wrong.
    contrast
        Of protein in the tomogram; detected by default.
    mask
        Label volume of the tomogram's size; candidates lie where it is not zero.
    threshold
        Candidates are where the probability of a particle's centre is higher.
    min_distance
        Smallest distance between candidates in Å.
    candidates_only
        Leave out the dense array, which is some hundred times as large.
    views
        Average vectors and probabilities over so many views, turned by half a turn about the axes:
        the more the better, each at the cost of the first.
    device
        Where to compute.
    overwrite
        Replace embeddings that were made with other parameters.
    """
    from tomoloc.atomic import check_writable, remove_drafts
    from tomoloc.cli.runs import name_outputs, run_each
    from tomoloc.progress import show_progress

    if not tomograms:
        raise ValueError("embed needs at least one tomogram")
    _check_options(voxel_spacing=voxel_spacing, threshold=threshold, min_distance=min_distance)
    names = name_outputs(tomograms, ending=".zarr")
    check_writable(output)
    if mask is not None and not mask.exists():
        raise FileNotFoundError(f"--mask {mask}: no such file")
    remove_drafts(output)
    features = _load_features(model, views=views, device=device)
    run = _Run(
        output=output,
        features=features,
        voxel_spacing=voxel_spacing,
        contrast=contrast,
        mask=mask,
        threshold=threshold,
        min_distance=min_distance,
        candidates_only=candidates_only,
        overwrite=overwrite,
    )
    with show_progress(sys.stderr.isatty()):
        return run_each(tomograms, lambda number: run.embed(tomograms[number], names[number]))


def _check_options(*, voxel_spacing: float | None, threshold: float, min_distance: float) -> None:
    if not 0 <= threshold < 1:
        raise ValueError(f"--threshold is a probability, from 0 to below 1; got {threshold:g}")
    lengths = {"--voxel-spacing": voxel_spacing, "--min-distance": min_distance}
    for option, value in lengths.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{option} must be positive; got {value:g}")


def _load_features(model: str, *, views: Literal[1, 2, 4], device: str) -> LearnedFeatures:
    from tomoloc.features.learned import LearnedFeatures
    from tomoloc.nn.device import resolve_device
    from tomoloc.nn.published import open_model

    resolve_device(device)
    features = LearnedFeatures(model=open_model(model), device=device).with_vectors()
    if not features.finds_centers:
        raise ValueError(
            f"model {model} tells no centres of particles, so that there are no candidates; take"
            " one with a DenseEncoder"
        )
    return replace(features, views=views)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is done with each tomogram."""

    output: Path
    features: LearnedFeatures
    voxel_spacing: float | None
    contrast: Literal["auto", "dark", "light"]
    mask: Path | None
    threshold: float
    min_distance: float
    candidates_only: bool
    overwrite: bool

    @property
    def parameters(self) -> dict[str, Any]:
        """What makes the result, as TOML can hold it."""
        values = {
            "model": self.features.model.identity,
            "voxel_spacing": self.voxel_spacing,
            "contrast": self.contrast,
            "mask": None if self.mask is None else str(self.mask.resolve()),
            "threshold": self.threshold,
            "min_distance": self.min_distance,
            "candidates_only": self.candidates_only,
            "views": self.features.views,
        }
        return {name: value for name, value in values.items() if value is not None}

    def embed(self, path: Path, name: str) -> Path:
        """Embed one tomogram unless that has been done; return the path of the result."""
        from tomoloc.cli.runs import is_done, peak_memory_gib

        target, record_path = self.output / f"{name}.zarr", self.output / f"{name}.zarr.run.toml"
        source = {"tomogram": str(path.resolve())}
        if not self.overwrite and is_done(
            target,
            method="embed",
            parameters=self.parameters,
            inputs=source,
            record_path=record_path,
        ):
            return target
        if target.exists() and target.resolve() == path.resolve():
            raise ValueError(f"{path} would be replaced by its embedding; give another -o")
        start = time.perf_counter()
        tomogram, contrast, mask = self._read(path, name)
        inputs = {
            **source,
            "size": list(tomogram.shape[::-1]),
            "voxel_spacing": tomogram.voxel_spacing,
            "contrast": contrast,
        }
        embedding, candidates = self._compute(tomogram, mask)
        del tomogram
        results = {
            "n_candidates": len(candidates),
            "grid_spacing": embedding.voxel_spacing,
            "device": self._device(),
            "seconds": round(time.perf_counter() - start, 2),
        }
        if (peak := peak_memory_gib()) is not None:
            results["peak_memory_gib"] = round(peak, 3)
        self._write(target, record_path, embedding, candidates, inputs=inputs, results=results)
        count, seconds = results["n_candidates"], results["seconds"]
        logger.info("%s: %d candidates in %.1f s", name, count, seconds)
        return target

    def _read(self, path: Path, name: str) -> tuple[Tomogram, str, Volume | None]:
        """Read a tomogram and turn it so that protein is bright; read its mask."""
        from tomoloc.io.checks import check_tomogram
        from tomoloc.io.tomograms import read_tomogram, read_volume
        from tomoloc.physics.contrast import brighten
        from tomoloc.pickers.pick import choose_contrast

        tomogram = read_tomogram(path, voxel_spacing=self.voxel_spacing)
        check_tomogram(replace(tomogram, name=str(path)))
        # Tables, and what they are compared with, count from the centre of the first voxel.
        tomogram = replace(tomogram, name=name, origin=np.zeros(3))
        mask = None
        if self.mask is not None:
            mask = read_volume(self.mask, voxel_spacing=tomogram.voxel_spacing)
            if mask.data.shape != tomogram.shape:
                sizes = [" x ".join(map(str, v.shape[::-1])) for v in (mask, tomogram)]
                raise ValueError(
                    f"the mask has {sizes[0]} voxels, the tomogram {sizes[1]} (x y z); they must"
                    " agree"
                )
            # Mask files seldom state an origin: a mask of the tomogram's size lies on its grid.
            mask = replace(mask, origin=tomogram.origin)
        contrast = choose_contrast(tomogram, self.contrast)
        bright = tomogram.with_data(brighten(tomogram.data, contrast=contrast))
        return bright, contrast, mask

    def _compute(self, tomogram: Tomogram, mask: Volume | None) -> tuple[Volume, Candidates]:
        from tomoloc.features.candidates import find_candidates

        embedding = self.features.embed(tomogram)
        found = find_candidates(
            embedding, centers=True, threshold=self.threshold, min_distance=self.min_distance
        )
        if mask is None:
            return embedding, found
        index = np.rint(mask.to_index(found.particles.position)).astype(int)
        z, y, x = np.clip(index, 0, np.array(mask.shape) - 1).T
        kept = found[np.asarray(mask.data[z, y, x] != 0)]
        if not len(kept):
            logger.warning("%s: none of %d candidates lies in the mask", tomogram.name, len(found))
        return embedding, kept

    def _write(
        self,
        target: Path,
        record_path: Path,
        embedding: Volume,
        candidates: Candidates,
        *,
        inputs: Mapping[str, Any],
        results: Mapping[str, Any],
    ) -> None:
        import tomli_w

        from tomoloc import __version__
        from tomoloc.atomic import writing
        from tomoloc.io.embeddings import EmbeddingSource, write_embedding
        from tomoloc.pickers.competition import Calibration

        record = {
            "tomoloc": {"version": __version__, "command": "embed", "format": 1},
            "method": {"name": "embed"},
            "parameters": self.parameters,
            "inputs": inputs,
            "results": results,
        }
        x, y, z = inputs["size"]
        source = EmbeddingSource(
            tomogram=Path(inputs["tomogram"]),
            name=embedding.name,
            size=(x, y, z),
            voxel_spacing=inputs["voxel_spacing"],
            contrast=inputs["contrast"],
            model=self.features.model.identity,
            views=self.features.views,
            spread=Calibration.of(self.features.model.config).spread,
        )
        with writing(record_path) as draft:
            draft.write_text(tomli_w.dumps(record), "utf-8")
            write_embedding(
                target,
                source,
                embedding=embedding,
                finds_centers=True,
                particles=candidates.particles,
                vectors=candidates.vectors,
                dense=not self.candidates_only,
            )

    def _device(self) -> str:
        from tomoloc.nn.device import resolve_device

        return resolve_device(self.features.device)
