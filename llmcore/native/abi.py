"""What the author of a native kernel in Numba writes with.

    @native_kernel
    def scale(operands, thread, threads):           # op scale(x: act[M, D]; factor) -> y: act[M, D]
        rows, width = dim(operands, 2), dim(operands, 3)
        x, y = tensor(operands, 0), tensor(operands, 1)
        factor = f64_attr(operands, 4)
        row = claim(operands)
        while row < rows:                           # each row goes to whichever thread takes it first
            ...
            row = claim(operands)

Operands are numbered without the header: tensors first, then dims, then attributes (:mod:`llmcore.native` has the
table). All work is done inside claimed chunks: a thread may come late to a row, or not at all, and must then find
nothing to do. A kernel never divides its work by ``threads``.

Importing this imports Numba.
"""

from __future__ import annotations

from llmcore.native import HEADER, SCRATCH_BYTES
from llmcore.native.compiling import NativeFunction, inlined, native_kernel, specialised
from llmcore.native.memory import (
    array,
    f32_from_bits,
    f64_from_bits,
    fetch_add,
    load_f16,
    load_f32,
    load_f64,
    load_i8,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_f32,
    store_f64,
    store_i32,
    store_i64,
)


@inlined  # type: ignore[untyped-decorator]
def claim(operands: int) -> int:
    """The next chunk of this row's work: 0, 1, 2 …; the caller stops at the number of chunks that there are."""
    return int(fetch_add(load_i64(operands), 1))


@inlined  # type: ignore[untyped-decorator]
def scratch(operands: int, thread: int) -> int:
    """Address of this thread's ``SCRATCH_BYTES`` of scratch memory, undefined at the start of a chunk."""
    return load_i64(operands + 8) + thread * SCRATCH_BYTES


@inlined  # type: ignore[untyped-decorator]
def tensor(operands: int, index: int) -> int:
    """Address of a tensor, 0 where it is absent."""
    return load_i64(operands + (HEADER + index) * 8)


@inlined  # type: ignore[untyped-decorator]
def dim(operands: int, index: int) -> int:
    """The value in this step of a dim."""
    return load_i64(load_i64(operands + (HEADER + index) * 8))


@inlined  # type: ignore[untyped-decorator]
def i64_attr(operands: int, index: int) -> int:
    """An integer or boolean attribute."""
    return load_i64(operands + (HEADER + index) * 8)


@inlined  # type: ignore[untyped-decorator]
def f64_attr(operands: int, index: int) -> float:
    """A floating-point attribute."""
    return float(f64_from_bits(load_i64(operands + (HEADER + index) * 8)))


__all__ = [
    "SCRATCH_BYTES",
    "NativeFunction",
    "array",
    "claim",
    "dim",
    "f32_from_bits",
    "f64_attr",
    "f64_from_bits",
    "fetch_add",
    "i64_attr",
    "inlined",
    "load_f16",
    "load_f32",
    "load_f64",
    "load_i8",
    "load_i32",
    "load_i64",
    "load_u8",
    "load_u16",
    "load_u32",
    "native_kernel",
    "scratch",
    "specialised",
    "store_f32",
    "store_f64",
    "store_i32",
    "store_i64",
    "tensor",
]
