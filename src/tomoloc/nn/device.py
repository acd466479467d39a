"""Where networks and transforms run."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

__all__ = ["computes_in_bfloat16", "keep_memory", "resolve_device"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h


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


def computes_in_bfloat16(device: str) -> bool:
    """Whether bfloat16 is arithmetic of the machine, not emulated (which is slower)."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for what it allocates next.

    By default, glibc returns large blocks to the kernel at once, and each step of a training on a
    processor spends time on having its pages zeroed again. Does nothing with other C libraries.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28)):
            mallopt(option, value)
