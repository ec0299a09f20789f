"""Facts about this machine and environment, for ``llmcore doctor``. What cannot be known is None; nothing fails."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPU_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),  # ARM
)


def python() -> dict[str, str]:
    """The interpreter."""
    return {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()}


def packages(names: Iterable[str]) -> dict[str, str | None]:
    """Distribution → installed version, without importing any."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> dict[str, Any]:
    """The processor's name and those of its vector features that kernels ask for."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        return {"name": platform.processor() or platform.machine(), "features": None}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    name = facts.get("model name") or platform.machine()
    return {"name": name, "features": [flag for flag in CPU_FLAGS if flag in flags]}


def threads() -> dict[str, Any]:
    """Processors: the machine's, those that this process may use, the cgroup's quota, and what ``threads=0`` takes."""
    from llmcore.engine.load import usable_threads

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"processors": os.cpu_count(), "affinity": affinity, "quota": _quota(), "usable": usable_threads()}


def _quota() -> float | None:
    """Processors that the cgroup (version 2) grants; None where it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def numba_threading() -> dict[str, Any]:
    """Numba's threads; llmcore's kernels run on a pool of their own and leave these alone."""
    try:
        import numba
    except ImportError as error:
        return {"version": None, "problem": str(error)}
    layers = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    found = [layer for layer, module in layers.items() if _imports(f"numba.np.ufunc.{module}")]
    return {
        "version": numba.__version__,
        "threads": numba.config.NUMBA_NUM_THREADS,
        "layers": found,
        "cpu": numba.config.CPU_NAME or None,
    }


def torch() -> dict[str, Any]:
    """What torch says of itself and of the devices; importing it takes a second or more."""
    try:
        import torch as module
    except (ImportError, OSError) as error:  # OSError: a library that it needs does not load
        return {"version": None, "problem": str(error), "gpus": []}
    gpus = []
    for index in range(module.cuda.device_count()) if module.cuda.is_available() else ():
        facts = module.cuda.get_device_properties(index)
        gpus.append(
            {"name": facts.name, "memory_bytes": facts.total_memory, "capability": f"{facts.major}.{facts.minor}"}
        )
    return {
        "version": module.__version__,
        "threads": module.get_num_threads(),
        "cuda": module.version.cuda,
        "hip": module.version.hip,
        "gpus": gpus,
    }


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):
        return False
    return True


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below ``folder``, links not followed; 0 where it is not there."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).lstat().st_size
            except OSError:  # removed meanwhile
                continue
    return total
