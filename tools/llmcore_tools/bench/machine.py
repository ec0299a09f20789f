"""What a figure was measured on: without it no two figures can be compared."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmcore
from llmcore.cli import probe
from llmcore.native.machine import machine as compiled_for

if TYPE_CHECKING:
    from llmcore.llm import LLM

VERSIONS = ("llmcore", "numpy", "numba", "llvmlite", "torch")
WELCOME = (  # what kernels use beside an instruction level, where it is there
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "avx_vnni", "f16c"),
    *("asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def facts(llm: LLM | None, threads: int | None, state: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything about machine, software and model that a figure depends on, as plain data.

    Args:
        threads: of the engine; None where it is another process's.
        state: what :func:`llmcore_tools.bench.roofline.machine_state` measured, None where nobody asked.
    """
    cpu, cores = probe.cpu(), probe.threads()
    return {
        "processor": cpu["name"],
        "cores": {"machine": cores["processors"], "usable": cores["usable"]},
        "level": compiled_for().level,
        "level_forced": compiled_for().forced,
        "features": [feature for feature in WELCOME if feature in (cpu["features"] or ())],
        "threads": threads,
        "memory_bytes": memory_bytes(),
        "platform": probe.python()["platform"],
        "versions": {"python": probe.python()["version"], **probe.packages(VERSIONS)},
        "commit": commit(Path(llmcore.__file__).parent),
        "model": None if llm is None else model(llm),
        "state": None if state is None else dict(state),
    }


def memory_bytes() -> int | None:
    """The machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def commit(package: Path) -> str | None:
    """The commit that ``package`` is checked out at, with ``+`` where files differ; None outside of a checkout."""
    if not _git(package, "ls-files", "__init__.py"):  # a repository around it that is not its own
        return None
    head = _git(package, "rev-parse", "--short=12", "HEAD")
    changed = _git(package.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def model(llm: LLM) -> dict[str, Any]:
    """The model's file, its weights by format, and the backends that run it."""
    formats: dict[str, dict[str, int]] = {}
    for tensor in llm.checkpoint.tensors.values():
        of = formats.setdefault(tensor.format.name, {"tensors": 0, "bytes": 0})
        of["tensors"] += 1
        of["bytes"] += tensor.nbytes
    backends = list(dict.fromkeys(row.backend for row in llm.explain().rows))
    return {"file": llm.path.name, "format": llm.checkpoint.format, "weights": formats, "backends": backends}


def weight_bytes(llm: LLM) -> int:
    """Bytes of the model's weights as its kernels read them."""
    return llm.memory.weights_mapped_bytes + llm.memory.weights_repacked_bytes


def lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Facts for people, one a line."""
    cores = found["cores"]
    memory = f", {found['memory_bytes'] / 2**30:.0f} GiB memory" if found["memory_bytes"] else ""
    forced = ", as LLMCORE_CPU asks" if found["level_forced"] else ""
    features = f"; it has {', '.join(found['features'])}" if found["features"] else ""
    yield "processor", f"{found['processor']}, {cores['machine']} cores{memory}"
    yield "compiled for", f"{found['level']}{forced}{features}"
    if found["threads"] is not None:
        yield "threads", f"{found['threads']} ({cores['usable']} usable)"
    yield "software", ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    yield "platform", found["platform"]
    if found["commit"]:
        yield "commit", found["commit"]
    if found["model"]:
        yield "model", found["model"]["file"]
        mix = found["model"]["weights"].items()
        yield "weights", ", ".join(f"{of['tensors']} {name} ({of['bytes'] / 1e6:.1f} MB)" for name, of in mix)
        yield "backends", ", ".join(found["model"]["backends"])
    if found["state"]:
        yield "state", state_line(found["state"])


def state_line(state: Mapping[str, Any]) -> str:
    """The machine's state on one line."""
    reads = ", ".join(
        f"{read['gb_per_s']:.1f} GB/s over {read['bytes'] / 2**20:.0f} MiB on {read['threads']} "
        f"thread{'s' * (read['threads'] > 1)}"
        for read in state["read"]
    )
    trip = state["round_trip_ns"]
    parts = [f"reads {reads}"]
    if trip is not None:
        parts.append(f"a cache line there and back {trip:.0f} ns")
    if state["load"] is not None:
        parts.append(f"load {state['load']:.1f}")
    return "; ".join(parts)
