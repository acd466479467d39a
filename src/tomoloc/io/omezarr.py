"""OME-Zarr 0.4 and 0.5 images, as the CryoET Data Portal and others serve them."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.arrays import allocate
from tomoloc.io.stored import SLAB_BYTES, StoredVolume, angstrom_per, decoding

__all__ = ["read_omezarr"]

logger = logging.getLogger(__name__)


def read_omezarr(path: str | Path, *, level_spacing: float | None = None) -> StoredVolume:
    """Read one level of a multiscale image, or a plain Zarr array.

    The level's scale and translation transformations [1]_ give spacing and origin. Where no level
    states a translation, the levels are taken to share their outer corner, not the centre of
    their first voxel: this is what averaging blocks of voxels makes, and how the Data Portal
    makes its levels.

    Parameters
    ----------
    path : path
        Folder of the image (or of a plain array, whose voxel size then is unknown).
    level_spacing : float, optional
        Read the coarsest level that is not coarser than this, in angstrom; the finest by default.

    Returns
    -------
    StoredVolume, data shape (..., z, y, x)
        Unpacked block by block; large ones into a temporary file that is memory-mapped.

    Raises
    ------
    ValueError
        If the folder is no such image, or a chunk of it is damaged.
    OSError
        If it cannot be read.

    References
    ----------
    .. [1] Moore et al., Nature Methods 18 (2021), doi:10.1038/s41592-021-01326-w;
       https://ngff.openmicroscopy.org/0.5
    """
    import zarr
    from zarr.errors import ContainsGroupError, NodeNotFoundError

    path = Path(path)
    try:
        node = zarr.open(str(path), mode="r")
    except (FileNotFoundError, NodeNotFoundError, ContainsGroupError) as error:
        raise ValueError(f"{path} is a folder, but not a Zarr image") from error
    if not isinstance(node, zarr.Group):
        data = _unpack(node, path=path)
        return StoredVolume(data=data, kind=f"Zarr array ({data.dtype.name})")
    attributes: dict[str, Any] = dict(node.attrs)
    multiscales = (attributes.get("ome") or attributes).get("multiscales")
    if not multiscales:
        raise ValueError(
            f"{path}: expected an OME-Zarr image (multiscales in its attributes); it holds"
            f" {', '.join(sorted(node.keys())) or 'nothing'}"
        )
    image = _Pyramid(multiscales[0], path=path)
    level = image.choose(level_spacing)
    if image.paths[level] not in node:
        raise ValueError(f"{path}: level {image.paths[level]} is missing")
    data = image.in_axis_order(_unpack(node[image.paths[level]], path=path))
    x, y, z = (float(size) for size in image.scales[level])
    return StoredVolume(
        data=data,
        spacing=(x, y, z),
        recorded=image.recorded,
        origin=image.origin(level),
        kind=f"OME-Zarr {image.version}, level {level} of {len(image.paths)} ({data.dtype.name})",
        levels=tuple(float(scale[0]) for scale in image.scales),
    )


class _Pyramid:
    """The geometry of a multiscale image: `scales` and `translations` in angstrom, xyz a level."""

    def __init__(self, metadata: dict[str, Any], *, path: Path) -> None:
        axes = metadata.get("axes") or list("zyx")
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
        self.path = path
        self.names = [str(axis["name"]).lower() for axis in axes]
        if not set("xyz") <= set(self.names):
            raise ValueError(f"{path}: expected axes z, y, x; it has {', '.join(self.names)}")
        units = [_angstrom(axis, path=path) for axis in axes]
        self.version = str(metadata.get("version", "0.5"))
        self.paths = [str(dataset["path"]) for dataset in metadata["datasets"]]
        shared = metadata.get("coordinateTransformations", [])
        own = [dataset.get("coordinateTransformations", []) for dataset in metadata["datasets"]]
        spatial = [self.names.index(axis) for axis in "xyz"]
        folded = [_fold([*steps, *shared], len(axes), path=path) for steps in own]
        scale = np.array([scale for scale, _ in folded]) * units
        translation = np.array([translation for _, translation in folded]) * units
        self.scales, self.translations = scale[:, spatial], translation[:, spatial]
        self.aligned_by_centre = any(s.get("type") == "translation" for s in itertools.chain(*own))
        self.finest = int(self.scales[:, 0].argmin())
        self.recorded = not np.allclose(self.scales[self.finest], 1, atol=1e-6)

    def choose(self, level_spacing: float | None) -> int:
        if level_spacing is None:
            return self.finest
        sizes = self.scales[:, 0]
        enough = np.flatnonzero(sizes <= 1.01 * level_spacing)
        if len(enough) == 0:
            finest = sizes[self.finest]
            logger.warning("%s: its finest level has %g, not %g", self.path, finest, level_spacing)
            return self.finest
        return int(enough[sizes[enough].argmax()])

    def origin(self, level: int) -> NDArray[np.float64]:
        origin = self.translations[level]
        if not self.aligned_by_centre:
            origin = origin + (self.scales[level] - self.scales[self.finest]) / 2
        return np.asarray(origin, dtype=float)

    def in_axis_order(self, data: NDArray[Any]) -> NDArray[Any]:
        """Return the array as (..., z, y, x); time and channels lead, if they are more than one."""
        others = [axis for axis, name in enumerate(self.names) if name not in ("x", "y", "z")]
        data = data.transpose(*others, *(self.names.index(axis) for axis in "zyx"))
        return data.reshape([n for n in data.shape[:-3] if n > 1] + list(data.shape[-3:]))


def _angstrom(axis: dict[str, Any], *, path: Path) -> float:
    if axis.get("name", "").lower() not in ("x", "y", "z"):
        return 1.0
    unit = axis.get("unit")
    if unit is None:
        logger.info("%s: no unit on axis %s; taken as angstrom", path, axis["name"])
        return 1.0
    if np.isnan(angstrom_per(unit)):
        raise ValueError(f"{path}: unknown unit of length {unit!r} on axis {axis['name']}")
    return angstrom_per(unit)


def _fold(
    steps: list[dict[str, Any]], n_axes: int, *, path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Combine transformations, applied in their order, into one scale and one translation."""
    scale, translation = np.ones(n_axes), np.zeros(n_axes)
    for step in steps:
        kind = step.get("type")
        if kind == "identity":
            continue
        values = step.get(kind) if kind in ("scale", "translation") else None
        if values is None or len(values) != n_axes:
            raise ValueError(f"{path}: cannot read the coordinate transformation {step}")
        if kind == "scale":
            scale, translation = scale * values, translation * values
        else:
            translation = translation + values
    return scale, translation


def _unpack(array: Any, *, path: Path) -> NDArray[Any]:
    """Copy an array block by block, so that memory holds the result and little more."""
    missing = 0 if array.shards else array.nchunks - array.nchunks_initialized
    if missing:
        logger.warning(
            "%s: %d of %d chunks are missing and read as %s; was the download cut short?",
            path, missing, array.nchunks, array.fill_value,
        )  # fmt: skip
    block = list(array.shards or array.chunks)
    for axis in reversed(range(array.ndim)):
        wider = [*block[:axis], array.shape[axis], *block[axis + 1 :]]
        if np.prod(wider, dtype=np.int64) * array.dtype.itemsize > SLAB_BYTES:
            break
        block = wider
    result = allocate(array.shape, array.dtype.newbyteorder("="))
    starts = [range(0, n, step) for n, step in zip(array.shape, block, strict=True)]
    for corner in itertools.product(*starts):
        part = tuple(slice(a, a + n) for a, n in zip(corner, block, strict=True))
        with decoding(f"{path}: a chunk of {array.path or 'it'} is damaged"):
            result[part] = array[part]
    return result
