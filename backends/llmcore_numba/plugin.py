"""What the Numba backend offers. Nothing here imports Numba: targets are resolved when a kernel is bound."""

from __future__ import annotations

from llmcore.hookspecs import BackendInfo, KernelInfo, hookimpl
from llmcore_numba.packing import OUTLIER, PACKINGS

PLAIN = {
    "rms_norm": "rms_norm",
    "rope": "rope",
    "add": "elementwise",
    "swiglu": "elementwise",
    "gather": "elementwise",
    "add_rms_norm": "fused",
    "argmax": "sampling",
    "softmax": "sampling",
    "top_k": "sampling",
    "top_p": "sampling",
    "min_p": "sampling",
    "sample": "sampling",
}
"""Ops without a weight of any format → the file that has them."""

PER_FORMAT = {
    "embedding": "embedding",
    "linear": "linear",
    "linear_add": "linear",
    "gate_up_swiglu": "fused",
    "classifier_argmax": "fused",
}
"""Ops with one kernel for every weight format."""

CACHE = ("kv_write", "attention")
"""Ops that share the layout of the cache."""

LIMITS = {
    "linear": "row_fits",
    "linear_add": "row_fits",
    "gate_up_swiglu": "row_fits",
    "classifier_argmax": "classifier_fits",
    "attention": "head_fits",
}
"""What each op's node must fit, in scratch.py."""

FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def _native(op: str, target: str, formats: tuple[str, ...] = (), group: str = "") -> KernelInfo:
    supported = f"llmcore_numba.scratch:{LIMITS[op]}" if op in LIMITS else ""
    return KernelInfo(op, f"llmcore_numba.{target}", abi="native", formats=formats, supported=supported, group=group)


def _integer(op: str, name: str) -> KernelInfo:
    """``op`` on weights of format ``name`` that are packed, and activations that are quantized."""
    packing = PACKINGS[name]
    return KernelInfo(
        op,
        f"llmcore_numba.integer_linear:{op}.{packing.name}",
        abi="native",
        formats=(name,),
        supported="llmcore_numba.scratch:few_enough_tokens" if op == "classifier_argmax" else "",
        pack="llmcore_numba.packed:pack",
        layout=packing.layout,
        before=(f"llmcore_numba.quantize:quantize.{op}",),
        workspace="llmcore_numba.scratch:quantized_tokens",
        exact=False,
    )


def _kernels() -> tuple[KernelInfo, ...]:
    plain = [_native(op, f"{file}:{op}") for op, file in PLAIN.items()]
    weighted = [_native(op, f"{file}:{op}.{name}", (name,)) for op, file in PER_FORMAT.items() for name in FORMATS]
    integer = [_integer(op, name) for op in OUTLIER for name in PACKINGS]
    cache = [_native(op, f"attention:{op}", group="kv") for op in CACHE]
    return (*plain, *integer, *weighted, *cache)


@hookimpl
def llmcore_backends() -> list[BackendInfo]:
    """The one backend of this package."""
    summary = "CPU: native kernels compiled by Numba, on a pool of threads"
    return [BackendInfo("numba", summary, _kernels(), kv_layout="llmcore_numba.kv_layout:LAYOUT", requires=("numba",))]
