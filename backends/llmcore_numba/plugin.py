"""What the Numba backend offers. Nothing here imports Numba: targets are resolved when a kernel is bound."""

from __future__ import annotations

from dataclasses import replace

from llmcore.hookspecs import BackendInfo, KernelInfo, hookimpl
from llmcore_numba.float_packing import FLOAT_OPS, FLOAT_PACKINGS
from llmcore_numba.packing import ALONE, OUTLIER, PACKINGS

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
"""Ops that share the layout of the cache, each in a file of its own."""

QKV = ("qkv_rope_kv_write", "rms_norm_qkv_rope_kv_write")
NORMED = tuple(op for op in OUTLIER if op.startswith("rms_norm_"))

KV_LAYOUTS = {
    "float32": "llmcore_numba.kv_layout:FLOAT32",
    "bfloat16": "llmcore_numba.kv_layout:BFLOAT16",
    "int8": "llmcore_numba.kv_layout:INT8",
}

LIMITS = {
    "linear": "row_fits",
    "linear_add": "row_fits",
    "gate_up_swiglu": "row_fits",
    "classifier_argmax": "classifier_fits",
    "attention": "head_fits",
}
"""What each op's node must fit, in scratch.py."""

FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def _supported(op: str) -> str:
    return f"llmcore_numba.scratch:{LIMITS[op]}" if op in LIMITS else ""


def _native(op: str, target: str, formats: tuple[str, ...] = ()) -> KernelInfo:
    return KernelInfo(op, f"llmcore_numba.{target}", abi="native", formats=formats, supported=_supported(op))


def _cached(op: str, kv_dtype: str) -> KernelInfo:
    """``op`` over pages of one element type."""
    return KernelInfo(
        op,
        f"llmcore_numba.{op}:{op}.{kv_dtype}",
        abi="native",
        supported=_supported(op),
        workspace="llmcore_numba.scratch:partial_records" if op == "attention" else "",
        group="kv",
        kv_dtypes=(kv_dtype,),
    )


def _attention_by_pairs() -> KernelInfo:
    """``attention`` over bfloat16, with queries and weights that are rounded to it."""
    kernel = _cached("attention", "bfloat16")
    supported = "llmcore_numba.scratch:attention_multiplies_pairs"
    return replace(kernel, target=f"{kernel.target}_pairs", supported=supported, exact=False)


def _integer(op: str, name: str) -> tuple[KernelInfo, KernelInfo]:
    """``op`` on packed weights of format ``name`` and activations that are quantized: for one token, for any."""
    packing = PACKINGS[name]
    supported = "few_enough_tokens" if op == "classifier_argmax" else "normed_tokens_fit" if op in NORMED else ""
    kernel = KernelInfo(
        op,
        f"llmcore_numba.integer_linear:{op}.{packing.name}",
        abi="native",
        formats=(name,),
        supported=supported and f"llmcore_numba.scratch:{supported}",
        pack="llmcore_numba.packed:pack",
        layout=packing.layout,
        before=(f"llmcore_numba.tokens:quantized.{op}",),
        workspace="llmcore_numba.scratch:quantized_tokens",
        exact=False,
    )
    alone = replace(kernel, target=kernel.target + ALONE, supported="llmcore_numba.scratch:comes_alone", before=())
    return replace(alone, workspace=""), kernel


def _projections(op: str, name: str, kv_dtype: str) -> tuple[KernelInfo, KernelInfo]:
    """The fused op before attention, on packed weights of format ``name``: for one token, for any."""
    packing = PACKINGS[name]
    kernel = KernelInfo(
        op,
        f"llmcore_numba.integer_qkv:{op}.{kv_dtype}",
        abi="native",
        formats=(name,),
        supported="llmcore_numba.scratch:normed_tokens_fit" if op in NORMED else "",
        pack="llmcore_numba.packed:pack",
        layout=packing.layout,
        before=(f"llmcore_numba.tokens:quantized.{op}", f"llmcore_numba.integer_qkv:project.{op}.{packing.name}"),
        workspace="llmcore_numba.scratch:projections",
        exact=False,
        group="kv",
        kv_dtypes=(kv_dtype,),
    )
    target = f"llmcore_numba.integer_qkv:alone.{op}.{packing.name}.{kv_dtype}"
    return replace(kernel, target=target, supported="llmcore_numba.scratch:head_comes_alone", before=()), kernel


def _float(op: str, name: str, *, rounded: bool = False) -> KernelInfo:
    """``op`` on packed weights of format ``name``; ``rounded``: and activations that are rounded to bfloat16."""
    kernel = KernelInfo(
        op,
        f"llmcore_numba.float_linear:{op}.{name}",
        abi="native",
        formats=(name,),
        supported="llmcore_numba.scratch:few_enough_tokens" if op == "classifier_argmax" else "",
        pack="llmcore_numba.float_packed:pack_floats",
        layout=FLOAT_PACKINGS[name].layout,
    )
    if not rounded:
        return kernel
    return replace(
        kernel,
        target=f"{kernel.target}_pairs",
        supported=f"llmcore_numba.scratch:{'classifier_' if op == 'classifier_argmax' else ''}multiplies_pairs",
        before=(f"llmcore_numba.rounding:rounded.{op}",),
        workspace="llmcore_numba.scratch:rounded_tokens",
        exact=False,
    )


def _kernels() -> tuple[KernelInfo, ...]:
    plain = [_native(op, f"{file}:{op}") for op, file in PLAIN.items()]
    weighted = [
        _native(op, f"{file}:{op}.{name}", (name,))
        for op, file in PER_FORMAT.items()
        for name in FORMATS
        if not (op in FLOAT_OPS and name in FLOAT_PACKINGS)
    ]
    floats = [_float(op, "BF16", rounded=True) for op in FLOAT_OPS]
    floats += [_float(op, name) for op in FLOAT_OPS for name in FLOAT_PACKINGS]
    integer = [each for op in OUTLIER if op not in QKV for name in PACKINGS for each in _integer(op, name)]
    projections = [
        each for op in QKV for name in PACKINGS for kv_dtype in KV_LAYOUTS for each in _projections(op, name, kv_dtype)
    ]
    cache = [_attention_by_pairs(), *(_cached(op, kv_dtype) for op in CACHE for kv_dtype in KV_LAYOUTS)]
    return (*plain, *projections, *integer, *floats, *weighted, *cache)


@hookimpl
def llmcore_backends() -> list[BackendInfo]:
    """The one backend of this package."""
    summary = "CPU: native kernels compiled by Numba, on a pool of threads"
    return [BackendInfo("numba", summary, _kernels(), kv_layouts=KV_LAYOUTS, requires=("numba",))]
