"""What the torch backend offers. Imports no torch: kernels name their modules, which do."""

from __future__ import annotations

from llmcore.hookspecs import BackendInfo, KernelInfo, hookimpl

HALF = ("F16", "BF16")
DTYPES = ("float32", "float16", "bfloat16")
KV_LAYOUTS = {dtype: f"llmcore_torch.layout:{dtype.upper()}" for dtype in DTYPES}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def _kernel(
    op: str, module: str, *, formats: tuple[str, ...] = (), dense: bool = False, cached: bool = False
) -> KernelInfo:
    """``dense``: weights are unpacked to float32, in one layout for all ops: a tied table is unpacked once."""
    return KernelInfo(
        op,
        f"llmcore_torch.{module}:{op}",
        view="torch",
        devices=("cpu", "cuda"),
        dtypes=DTYPES,
        formats=formats,
        pack="llmcore_torch.linear:dense" if dense else "",
        layout=("dense-f32", 1) if dense else None,
        keep=False,  # up to eight times the size of the file
        group="kv" if cached else "",
        kv_dtypes=tuple(KV_LAYOUTS) if cached else ("float32",),
    )


KERNELS = (
    _kernel("embedding", "embedding", formats=("F32", *HALF)),
    _kernel("embedding", "embedding", formats=QUANTIZED, dense=True),
    _kernel("linear", "linear", formats=("F32",)),  # used where it lies in the file
    _kernel("linear", "linear", formats=(*HALF, *QUANTIZED), dense=True),
    _kernel("rms_norm", "rms_norm"),
    _kernel("rope", "rope"),
    _kernel("kv_write", "attention", cached=True),
    _kernel("attention", "attention", cached=True),
    *(_kernel(op, "elementwise") for op in ("add", "swiglu", "gather")),
    *(_kernel(op, "sampling") for op in ("argmax", "softmax", "top_k", "top_p", "min_p", "sample")),
    *(_kernel(op, "sampling") for op in ("exp_sum", "largest")),
)


@hookimpl
def llmcore_backends() -> list[BackendInfo]:
    """The one backend of this package."""
    return [
        BackendInfo(
            "torch",
            "reference and universal fall-back: every op, exact float32",
            KERNELS,
            kv_layouts=KV_LAYOUTS,
            requires=("torch",),
            prepare="llmcore_torch.threads:use",
        )
    ]
