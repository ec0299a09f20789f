"""Where a model runs and what its activations are: what the settings say, or what the machine and the model suggest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmcore.device import HOST, Device, Place
from llmcore.errors import ConfigError, near
from llmcore.hookspecs import BackendInfo

DTYPES = ("float32", "float16", "bfloat16")
NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA's and AMD's drivers, and of WSL's


def device_of(wanted: str, backends: Iterable[BackendInfo]) -> Device:
    """The device called ``wanted``: ``cpu``, ``cuda``, ``cuda:1``; ``auto``: a GPU where a backend is made for one.

    Raises:
        ConfigError: there is none of this name, or torch sees no GPU.
    """
    if wanted == "cpu" or (wanted == "auto" and not _worthwhile(backends)):
        return HOST
    if wanted != "auto" and not re.fullmatch(r"cuda(:\d+)?", wanted):
        raise ConfigError(f"engine.device is {wanted!r}", remedy=near(wanted, ("auto", "cpu", "cuda", "cuda:0")))
    from llmcore.device.accelerator import Accelerator

    return Accelerator(_existing("cuda" if wanted == "auto" else wanted))


def _worthwhile(backends: Iterable[BackendInfo]) -> bool:
    """Whether one of the wanted backends computes on GPUs alone, and there may be one; imports torch only then."""
    made_for_one = any(
        backend.kernels and all("cpu" not in kernel.devices for kernel in backend.kernels) for backend in backends
    )
    if not made_for_one or not any(Path(node).exists() for node in NODES):
        return False
    import torch

    return bool(torch.cuda.is_available())


def _existing(name: str) -> str:
    import torch

    count = torch.cuda.device_count()
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        there = f"torch sees {count} of them" if count else "torch sees no GPU: its build or the driver does not fit"
        raise ConfigError(f"engine.device is {name}, but {there}", remedy="engine.device=cpu, or another index")
    return name


def dtype_of(wanted: str, device: Device, config: Mapping[str, Any]) -> str:
    """The type of activations: ``auto`` is float32 on the CPU; elsewhere what the model was published in.

    A model of float32, or of quantized weights, has bfloat16 activations there.

    Raises:
        ConfigError: an unknown type.
    """
    if wanted == "auto":
        published = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
        return "float32" if device is HOST else "float16" if published == "float16" else "bfloat16"
    if wanted not in DTYPES:
        raise ConfigError(f"engine.dtype is {wanted!r}", remedy=near(str(wanted), ("auto", *DTYPES)))
    return wanted


def place_of(device: str, dtype: str, backends: Iterable[BackendInfo], config: Mapping[str, Any]) -> Place:
    """Both."""
    found = device_of(device, backends)
    return Place(found, dtype_of(dtype, found, config))
