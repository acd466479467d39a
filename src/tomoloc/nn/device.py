"""Where networks and transforms run."""

from __future__ import annotations

__all__ = ["resolve_device"]


def resolve_device(name: str) -> str:
    """Turn "auto" into "cuda" where there is such a device, else "cpu".

    Raises
    ------
    ValueError
        If the name is unknown, or CUDA is asked for and not there.
    """
    import torch

    if name not in {"auto", "cpu", "cuda"}:
        raise ValueError(f"device must be auto, cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available here; use --device cpu or auto")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
