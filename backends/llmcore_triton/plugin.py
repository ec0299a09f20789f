"""What the Triton backend offers. Nothing here imports Triton or torch: targets are resolved when a kernel is bound."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from llmcore.hookspecs import BackendInfo, KernelInfo, hookimpl

DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
DTYPES = ("bfloat16", "float16", "float32")
KV_LAYOUTS: Mapping[str, str] = {
    name: f"llmcore_triton.layout:{name.upper()}" for name in ("float32", "float16", "bfloat16", "int8")
}


def _kernel(
    op: str,
    module: str,
    *,
    formats: tuple[str, ...] = (),
    supported: str = "",
    pack: str = "",
    layout: tuple[str, int] | None = None,
    kv_dtypes: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = DTYPES,
    name: str = "",
    exact: bool = True,
    keep: bool = True,
) -> KernelInfo:
    """``op`` in a file of this package; ``name``: of its function where that is not the op's."""
    return KernelInfo(
        op,
        f"llmcore_triton.{module}:{name or op}",
        view="torch",
        devices=DEVICES,
        dtypes=dtypes,
        formats=formats,
        supported=f"llmcore_triton.{supported}" if supported else "",
        pack=f"llmcore_triton.{pack}" if pack else "",
        layout=layout,
        exact=exact,
        keep=keep,
        group="kv" if kv_dtypes else "",
        kv_dtypes=kv_dtypes or ("float32",),
        captured=True,
    )


QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
FLOATS = ("F32", "F16", "BF16")
NARROW = {"bfloat16": "bf16", "float16": "f16"}


def _floats(op: str, module: str, **more: Any) -> tuple[KernelInfo, ...]:
    """``op`` on weights of floats: as they lie in the file where that is the activations' type, else converted."""
    return (
        *(_kernel(op, module, formats=(short.upper(),), dtypes=(dtype,), **more) for dtype, short in NARROW.items()),
        _kernel(op, module, formats=FLOATS, dtypes=("float32",), **more),  # read as they are: half the bytes
        *(
            _kernel(
                op,
                module,
                formats=FLOATS,
                dtypes=(dtype,),
                pack=f"packing:dense_{short}",
                layout=(f"dense-{short}", 1),
                keep=False,  # sooner converted than read from disk
                **more,
            )
            for dtype, short in NARROW.items()
        ),
    )


def _linear(op: str, module: str, **more: Any) -> tuple[KernelInfo, ...]:
    """``op`` on weights of any format; quantized ones are packed."""
    packed = _kernel(op, module, formats=QUANTIZED, pack="packing:pack", layout=("triton-groups", 1), **more)
    return *_floats(op, module, **more), packed


ROWS: tuple[KernelInfo, ...] = (
    *_floats("embedding", "embedding"),  # a tied table is converted once
    *(_kernel("embedding", "embedding", formats=(form,), name=form.lower()) for form in QUANTIZED),
    _kernel("rms_norm", "rms_norm"),
    _kernel("add_rms_norm", "fused"),
    _kernel("rope", "rope"),
    *(_kernel(op, "elementwise") for op in ("add", "swiglu", "gather")),
)
"""Ops that treat every row or element by itself."""

CACHE: tuple[KernelInfo, ...] = (
    _kernel("kv_write", "kv_write", kv_dtypes=tuple(KV_LAYOUTS)),
    _kernel(
        "attention",
        "attention",
        name="attention_decode",
        supported="attention:one_each",
        kv_dtypes=tuple(KV_LAYOUTS),
    ),
    _kernel("attention", "attention", supported="attention:head_fits", kv_dtypes=tuple(KV_LAYOUTS)),
)
"""Ops over the KV cache."""

LINEAR: tuple[KernelInfo, ...] = (
    *_linear("linear", "linear"),
    *_linear("linear_add", "linear"),
    *_linear("gate_up_swiglu", "linear_gate_up"),
    *_linear("classifier_argmax", "classifier"),
    *_linear("qkv_rope_kv_write", "qkv", supported="qkv:norms_heads", kv_dtypes=tuple(KV_LAYOUTS)),
)
"""Ops that multiply by weights."""

SAMPLING: tuple[KernelInfo, ...] = (
    *(_kernel(op, "sampling") for op in ("argmax", "softmax", "exp_sum", "sample")),
    *(_kernel(op, "filters") for op in ("top_k", "top_p", "min_p")),
    _kernel("largest", "largest"),
)
"""From logits to tokens."""


def _scaled(module: str, pack: str, layout: tuple[str, int]) -> tuple[KernelInfo, ...]:
    """Linear layers on weights and tokens of 8 bits, which round both: no exact ones."""
    formats = ("BF16", "F16", "F32", "Q8_0")
    return tuple(
        _kernel(op, module, formats=formats, pack=f"quantized_packing:{pack}", layout=layout, exact=False)
        for op in ("linear", "linear_add")
    )


W8A8 = _scaled("w8a8", "pack_int8", ("rows-int8", 1))
"""Kernels of the backend ``triton_w8a8``."""

FP8 = _scaled("fp8", "pack_fp8", ("rows-fp8", 1))
"""Kernels of the backend ``triton_fp8``."""


@hookimpl
def llmcore_backends() -> list[BackendInfo]:
    """What is exact in one backend; what rounds weights and tokens to 8 bits in two that are asked for by name.

    They have linear layers only: ``backend.order=[triton_w8a8,triton,torch]`` takes all else from the first.
    """
    requires, ready = ("torch", "triton"), "llmcore_triton.device:ready"
    return [
        BackendInfo(
            "triton",
            "GPU: kernels written in Triton, for CUDA and ROCm",
            (*ROWS, *CACHE, *LINEAR, *SAMPLING),
            kv_layouts=KV_LAYOUTS,
            requires=requires,
            ready=ready,
        ),
        BackendInfo(
            "triton_w8a8", "GPU: linear layers on int8 weights and tokens", W8A8, requires=requires, ready=ready
        ),
        BackendInfo(
            "triton_fp8",
            "GPU: linear layers on float8 weights and tokens",
            FP8,
            requires=requires,
            ready="llmcore_triton.fp8:ready",
        ),
    ]
