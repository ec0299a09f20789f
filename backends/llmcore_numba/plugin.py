"""What the Numba backend offers. Nothing here imports Numba: targets are resolved when a kernel is bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmcore.hookspecs import BackendInfo, KernelInfo, hookimpl
from llmcore_numba.float_packing import FLOAT_OPS, FLOAT_PACKINGS
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
    "top_k": "filters",
    "top_p": "filters",
    "min_p": "filters",
    "sample": "sampling",
    "exp_sum": "sampling",
    "largest": "largest",
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

KV_LAYOUTS = {
    "float32": "llmcore_numba.kv_layout:FLOAT32",
    "bfloat16": "llmcore_numba.kv_layout:BFLOAT16",
    "int8": "llmcore_numba.kv_layout:INT8",
}

LIMITS = {
    "linear": ("row_fits",),
    "linear_add": ("row_fits",),
    "gate_up_swiglu": ("row_fits",),
    "classifier_argmax": ("few_enough_tokens", "row_fits"),
    "attention": ("head_fits",),
    "largest": ("list_fits",),
}
"""What nodes must fit where weights are unpacked, in scratch.py."""

FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def _every(*conditions: str) -> str:
    return f"llmcore_numba.scratch:{'.'.join(('every', *conditions))}" if conditions else ""


def _native(op: str, target: str, formats: tuple[str, ...] = ()) -> KernelInfo:
    supported = _every(*LIMITS.get(op, ()))
    return KernelInfo(op, f"llmcore_numba.{target}", abi="native", formats=formats, supported=supported)


def _cached(op: str, kv_dtype: str) -> KernelInfo:
    """``op`` over pages of one element type."""
    kernel = _native(op, f"{op}:{op}.{kv_dtype}")
    workspace = "llmcore_numba.scratch:partial_records" if op == "attention" else ""
    return replace(kernel, workspace=workspace, group="kv", kv_dtypes=(kv_dtype,))


def _attention_by_pairs() -> KernelInfo:
    """``attention`` over bfloat16, with queries and weights that are rounded to it."""
    kernel = _cached("attention", "bfloat16")
    return replace(
        kernel, target=f"{kernel.target}_pairs", supported=_every("head_fits", "multiplies_pairs"), exact=False
    )


@dataclass(frozen=True)
class Packed:
    """Weights of a format that are packed, and how their kernels take tokens.

    Attributes:
        file: the kernels are in ``FILE_linear`` and ``FILE_qkv``.
        name: of the packing or arithmetic there.
        prepare: what prepares tokens of an op for them.
        workspace: what it needs, in scratch.py.
        needs: further conditions, in scratch.py.
        plain: tokens that are not normed are read as they are.
    """

    format: str
    file: str
    name: str
    pack: str
    layout: tuple[str, int]
    prepare: str
    workspace: str
    needs: tuple[str, ...] = ()
    exact: bool = False
    plain: bool = False

    def kernels(self, op: str) -> Iterator[KernelInfo]:
        """Those of ``op``: for one token, then for any number."""
        normed, fitting = op.startswith("rms_norm_"), list(self.needs)
        prepared = normed or not self.plain
        if normed:
            fitting.append("normed_tokens_fit")
        if op == "classifier_argmax":
            fitting.append("few_enough_tokens")
        kernel = KernelInfo(
            op,
            f"llmcore_numba.{self.file}_linear:{op}.{self.name}",
            abi="native",
            formats=(self.format,),
            supported=_every(*fitting),
            pack=f"llmcore_numba.{self.pack}",
            layout=self.layout,
            before=(f"llmcore_numba.{self.prepare.format(op=op)}",) if prepared else (),
            workspace=f"llmcore_numba.scratch:{self.workspace}" if prepared else "",
            exact=self.exact,
        )
        if op in QKV:
            yield from self._before_attention(kernel)
            return
        if prepared:
            alone = _every(*self.needs, "comes_alone")
            yield replace(kernel, target=f"{kernel.target}_alone", supported=alone, before=(), workspace="")
        yield kernel

    def _before_attention(self, kernel: KernelInfo) -> Iterator[KernelInfo]:
        """The same for every element type of the cache."""
        where, waiting = f"llmcore_numba.{self.file}_qkv", "llmcore_numba.scratch:waiting_keys"
        for kv_dtype in KV_LAYOUTS:
            own = replace(kernel, group="kv", kv_dtypes=(kv_dtype,))
            target = f"{where}:alone.{kernel.op}.{self.name}.{kv_dtype}"
            alone = _every(*self.needs, "comes_alone", "heads_of_32")
            yield replace(own, target=target, supported=alone, before=(), workspace=waiting)
            project = f"{where}:project.{kernel.op}.{self.name}"
            target = f"llmcore_numba.qkv:write.{kernel.op}.{kv_dtype}"
            yield replace(own, target=target, before=(*own.before, project), workspace=own.workspace or waiting)


def _integer(name: str) -> Packed:
    """Weights that are packed as integers; activations are quantized."""
    packing = PACKINGS[name]
    file, pack, prepare = "integer", "packed:pack", "tokens:quantized.{op}"
    return Packed(name, file, packing.name, pack, packing.layout, prepare, "quantized_tokens")


def _float(name: str, *, rounded: bool = False) -> Packed:
    """Weights that are packed as floats; ``rounded``: and activations that are rounded to bfloat16."""
    own = f"{name}_pairs" if rounded else name
    pack, layout, prepare = (
        "float_packed:pack_floats",
        FLOAT_PACKINGS[name].layout,
        f"float_tokens:prepares.{{op}}.{own}",
    )
    packed = Packed(name, "float", own, pack, layout, prepare, "float_tokens", exact=True, plain=True)
    if not rounded:
        return packed
    return replace(packed, workspace="rounded_tokens", needs=("multiplies_pairs",), exact=False, plain=False)


def _kernels() -> tuple[KernelInfo, ...]:
    plain = [_native(op, f"{file}:{op}") for op, file in PLAIN.items()]
    weighted = [
        _native(op, f"{file}:{op}.{name}", (name,))
        for op, file in PER_FORMAT.items()
        for name in FORMATS
        if not (op in FLOAT_OPS and name in FLOAT_PACKINGS)
    ]
    floats = (_float("BF16", rounded=True), *map(_float, FLOAT_PACKINGS))
    packed = [kernel for each in floats for op in FLOAT_OPS for kernel in each.kernels(op)]
    packed += [kernel for name in PACKINGS for op in OUTLIER for kernel in _integer(name).kernels(op)]
    cache = [_attention_by_pairs(), *(_cached(op, kv_dtype) for op in CACHE for kv_dtype in KV_LAYOUTS)]
    return (*plain, *packed, *weighted, *cache)


@hookimpl
def llmcore_backends() -> list[BackendInfo]:
    """The one backend of this package."""
    summary = "CPU: native kernels compiled by Numba, on a pool of threads"
    return [BackendInfo("numba", summary, _kernels(), kv_layouts=KV_LAYOUTS, requires=("numba",))]
