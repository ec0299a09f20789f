"""Stage ``environment``: what the run was made on, and what it allows: the floors of all other stages."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import llmcore
from llmcore.cli import probe
from llmcore_tools.bench.machine import commit
from llmcore_tools.gpu import check_timing as timing
from llmcore_tools.gpu.check_context import Context, Finding

VERSIONS = ("llmcore", "torch", "triton", "numpy", "transformers")
LARGE = 1 << 31  # bytes of a buffer: far larger than any cache
SIZE = 8192  # rows and columns of a matrix
TOY_LARGE, TOY_SIZE = 1 << 18, 64


def run(context: Context) -> None:
    """Notes versions and device, then measures bandwidth and matrix peaks."""
    context.fact("machine", machine(context))
    nbytes, size = (TOY_LARGE, TOY_SIZE) if context.rehearse else (LARGE, SIZE)
    probes: dict[str, tuple[str, str, Callable[[], float]]] = {
        "read_gb_s": ("memory, read", "GB/s", lambda: timing.read_gb_s(context.device, nbytes)),
        "copy_gb_s": ("memory, copy (read and written)", "GB/s", lambda: timing.copy_gb_s(context.device, nbytes)),
        "mm_tflops": ("bfloat16 matrices (torch.mm)", "Tera/s", lambda: timing.mm_tflops(context.device, size)),
        "int8_tops": ("int8 matrices (torch._int_mm)", "Tera/s", lambda: timing.int8_tops(context.device, size)),
        "fp8_tflops": ("float8 matrices (torch._scaled_mm)", "Tera/s", lambda: timing.fp8_tflops(context.device, size)),
    }
    for name, (what, unit, measure) in probes.items():
        try:
            value = measure()
        except (RuntimeError, NotImplementedError, AttributeError) as error:  # torch has none for this device
            first = str(error).strip().split("\n")[0]
            context.add(Finding(what, "not run", note=f"{type(error).__name__}: {first}"))
            continue
        context.fact(name, value)
        context.add(Finding(what, values={unit: value}))


def machine(context: Context) -> dict[str, Any]:
    """Versions and device, by the names under which the report shows them."""
    versions = {name: version for name, version in probe.packages(VERSIONS).items() if version}
    found: dict[str, Any] = {
        "python": probe.python()["version"],
        **versions,
        "commit": commit(Path(llmcore.__file__).parent),
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
    }
    if context.rehearse:
        return {**found, "device": "the CPU, in a GPU's place"}
    properties = torch.cuda.get_device_properties(context.device.device)
    return {
        **found,
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "driver": driver(),
    }


def driver() -> str:
    """The driver's version, clocks and power limit as nvidia-smi tells them; empty where it is not on the path."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = "driver_version,clocks.max.sm,clocks.max.memory,power.limit"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""
