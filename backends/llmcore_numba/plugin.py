"""What the Numba backend offers. Nothing here imports Numba: targets are resolved when a kernel is bound."""

from __future__ import annotations

from llmcore.hookspecs import BackendInfo, KernelInfo, hookimpl

PLAIN = {
    "rms_norm": "rms_norm",
    "rope": "rope",
    "add": "elementwise",
    "swiglu": "elementwise",
    "gather": "elementwise",
}
"""Ops without a weight of any format → the file that has them."""

PER_FORMAT = {"embedding": "embedding", "linear": "linear", "linear_add": "linear"}
"""Ops with one kernel for every weight format."""

CACHE = ("kv_write", "attention")
"""Ops that share the layout of the cache."""

FORMATS = ("F32",)


def _native(op: str, target: str, formats: tuple[str, ...] = (), group: str = "") -> KernelInfo:
    return KernelInfo(op, f"llmcore_numba.{target}", abi="native", formats=formats, group=group)


def _kernels() -> tuple[KernelInfo, ...]:
    plain = [_native(op, f"{file}:{op}") for op, file in PLAIN.items()]
    weighted = [_native(op, f"{file}:{op}.{name}", (name,)) for op, file in PER_FORMAT.items() for name in FORMATS]
    cache = [_native(op, f"attention:{op}", group="kv") for op in CACHE]
    return (*plain, *weighted, *cache)


@hookimpl
def llmcore_backends() -> list[BackendInfo]:
    """The one backend of this package."""
    summary = "CPU: native kernels compiled by Numba, on a pool of threads"
    return [BackendInfo("numba", summary, _kernels(), kv_layout="llmcore_numba.kv_layout:LAYOUT", requires=("numba",))]
