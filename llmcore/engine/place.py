"""Where a model runs and what its activations are: what the settings say, or what the machine and the model suggest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmcore.device import HOST, Device
from llmcore.device.base import may_have_gpu
from llmcore.errors import ConfigError, near
from llmcore.hookspecs import BackendInfo

DTYPES = ("float32", "float16", "bfloat16")


def device_of(wanted: str, backends: Iterable[BackendInfo]) -> Device:
    """The device called ``wanted``: ``cpu``, ``cuda``, ``cuda:1``; ``auto``: a GPU where a backend is made for one.

    Raises:
        ConfigError: there is none of this name, or torch sees no GPU.
    """
    check_device(wanted)
    if wanted == "cpu" or (wanted == "auto" and not _worthwhile(backends)):
        return HOST
    from llmcore.device.accelerator import Accelerator

    return Accelerator(_existing("cuda" if wanted == "auto" else wanted))


def check_device(wanted: str) -> None:
    """Raises :class:`ConfigError` for what no device is called."""
    if not isinstance(wanted, str) or not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?))?", wanted):
        known = ("auto", "cpu", "cuda", "cuda:0")
        raise ConfigError(f"engine.device is {wanted!r}", remedy=near(str(wanted), known))


def _worthwhile(backends: Iterable[BackendInfo]) -> bool:
    """Whether one of the wanted backends computes on GPUs alone, and there may be one; imports torch only then."""
    made_for_one = any(
        backend.kernels and all("cpu" not in kernel.devices for kernel in backend.kernels) for backend in backends
    )
    if not made_for_one or not may_have_gpu():
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


def dtype_of(wanted: str, device: Device, config: Mapping[str, Any], *, exact: bool = False) -> str:
    """The type of activations: ``auto`` is float32 on the CPU; elsewhere what the model was published in.

    A model of float32, or of quantized weights, has bfloat16 activations there, float16 on a GPU without bfloat16.
    ``exact`` is float32 everywhere.

    Raises:
        ConfigError: an unknown type, or one that ``exact`` does not go with.
    """
    if wanted not in ("auto", *DTYPES):
        raise ConfigError(f"engine.dtype is {wanted!r}", remedy=near(str(wanted), ("auto", *DTYPES)))
    if exact and wanted not in ("auto", "float32"):
        raise ConfigError(
            f"compute=exact keeps activations in float32, and engine.dtype is {wanted}", remedy="leave one of them out"
        )
    if wanted != "auto":
        return wanted
    if exact or device is HOST:
        return "float32"
    text = config.get("text_config")  # of a model that reads more than text
    settings = [config, text] if isinstance(text, Mapping) else [config]
    named = next((each[key] for each in settings for key in ("dtype", "torch_dtype") if each.get(key)), "")
    return "float16" if str(named).endswith("float16") and "bfloat16" not in str(named) else device.narrow
