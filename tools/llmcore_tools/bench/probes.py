"""Native kernels that do nothing but what they measure: read memory, multiply and add, pass a cache line, nothing.

They run on the worker pool like a model's kernels, so what they reach is what a kernel could reach at most.
Importing this imports Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore.native.abi import (
    claim,
    i64_attr,
    inlined,
    native_kernel,
    scratch,
    specialised,
    store_i64,
    tensor,
)
from llmcore.native.machine import machine
from llmcore.native.memory import emits, load_acquire, store_release
from llmcore.native.vector import load, store, zeros

CHUNK = 256 << 10  # bytes that a thread reads at a time
STEPS = 4096  # of every chain in a chunk of arithmetic
CHAINS = 12  # that do not wait for each other: more than any latency needs, fewer than there are registers
PATIENCE = 1 << 24  # looks at a cache line before a thread that waits for the other one gives up
WORD, BYTE = ir.IntType(32), ir.IntType(8)


@native_kernel
def nothing(operands: int, thread: int, threads: int) -> None:
    """What a row costs that has no work."""


@inlined  # type: ignore[untyped-decorator]
def _swept(start: int) -> Any:
    """The sums of a chunk's float32, every byte of it read once."""
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    for at in range(start, start + CHUNK, 256):
        a, b = a + load(at), b + load(at + 64)
        c, d = c + load(at + 128), d + load(at + 192)
    return (a + b) + (c + d)


@native_kernel
def read(operands: int, thread: int, threads: int) -> None:  # noqa: ARG001
    """Reads ``chunks`` (operand 1) of memory from an address (operand 0) on."""
    start, chunks = tensor(operands, 0), i64_attr(operands, 1)
    chunk = claim(operands)
    while chunk < chunks:
        store(scratch(operands, thread), _swept(start + chunk * CHUNK))
        chunk = claim(operands)


@native_kernel
def round_trips(operands: int, thread: int, threads: int) -> None:  # noqa: ARG001
    """Two threads hand a cache line (operand 0) to and fro (operand 1) times; how often they did stands behind it."""
    flag, trips = tensor(operands, 0), i64_attr(operands, 1)
    side = claim(operands)
    if side > 1:
        return
    done = 0
    while done < trips:
        if side == 0:
            store_release(flag, 1)
        looks = 0
        while load_acquire(flag) != side and looks < PATIENCE:
            looks += 1
        if looks == PATIENCE:
            break
        if side == 1:
            store_release(flag, 0)
        done += 1
    if side == 0:
        store_i64(flag + 128, done)


def _chains(kind: Any, step: Callable[[Any, Any], Any]) -> Any:
    """``f(steps) -> int64``: :data:`CHAINS` vectors of LLVM type ``kind``, each changed ``steps`` times by ``step``."""

    def burn(builder: Any, steps: Any) -> Any:
        places = [cgutils.alloca_once_value(builder, ir.Constant(kind, [i + 1] * kind.count)) for i in range(CHAINS)]
        with cgutils.for_range(builder, steps):
            for place in places:
                builder.store(step(builder, builder.load(place)), place)
        result: Any = None
        for place in places:  # all of them are wanted, else LLVM leaves some out
            lane = builder.extract_element(builder.load(place), WORD(0))
            word = builder.zext(builder.bitcast(lane, WORD), ir.IntType(64))
            result = word if result is None else builder.add(result, word)
        return result

    return emits(types.int64, types.int64)(burn)


def _fma(lanes: int) -> tuple[Any, Callable[[Any, Any], Any]]:
    kind = ir.VectorType(ir.FloatType(), lanes)

    def step(builder: Any, value: Any) -> Any:
        name = builder.module.declare_intrinsic(f"llvm.fmuladd.v{lanes}f32", (), ir.FunctionType(kind, [kind] * 3))
        return builder.call(name, [value, ir.Constant(kind, [0.75] * lanes), ir.Constant(kind, [0.5] * lanes)])

    return kind, step


def _pmadd() -> tuple[Any, Callable[[Any, Any], Any]]:
    """AVX2: 32 products of bytes, added by pairs to int16, by pairs to int32, and to the sums."""
    kind, shorts, octets = ir.VectorType(WORD, 8), ir.VectorType(ir.IntType(16), 16), ir.VectorType(BYTE, 32)

    def step(builder: Any, value: Any) -> Any:
        declare = builder.module.declare_intrinsic
        pairs = declare("llvm.x86.avx2.pmadd.ub.sw", (), ir.FunctionType(shorts, [octets, octets]))
        quads = declare("llvm.x86.avx2.pmadd.wd", (), ir.FunctionType(kind, [shorts, shorts]))
        changing = builder.bitcast(value, octets)  # a product of constants would be computed once, before the loop
        products = builder.call(pairs, [ir.Constant(octets, [3] * 32), changing])
        return builder.add(value, builder.call(quads, [products, ir.Constant(shorts, [1] * 16)]))

    return kind, step


def _dot(lanes: int) -> tuple[Any, Callable[[Any, Any], Any]]:
    """VNNI: the same in one instruction. LLVM has called its operands bytes since version 22, words before."""
    kind, octets = ir.VectorType(WORD, lanes), ir.VectorType(BYTE, 4 * lanes)
    operand = octets if llvmlite.binding.llvm_version_info[0] >= 22 else kind

    def step(builder: Any, value: Any) -> Any:
        signature = ir.FunctionType(kind, [kind, operand, operand])
        dot = builder.module.declare_intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", (), signature)
        constants = (ir.Constant(octets, [byte] * 4 * lanes) for byte in (3, 5))
        return builder.call(dot, [value, *(builder.bitcast(constant, operand) for constant in constants)])

    return kind, step


def _arithmetic(operands: int, thread: int, threads: int) -> None:  # noqa: ARG001
    chunks = i64_attr(operands, 0)
    total = 0
    chunk = claim(operands)
    while chunk < chunks:
        total += burn(STEPS)  # type: ignore[name-defined]  # noqa: F821  # given by `specialised`
        chunk = claim(operands)
    store_i64(scratch(operands, thread), total)


@cache
def arithmetic() -> dict[str, list[tuple[Callable[[], int], int]]]:
    """Kind → kernels of that kind, with the operations of one chunk; the fastest of them counts as the peak.

    A multiplication and an addition are two operations. ``f32`` is there for every processor, ``int8`` for those whose
    instructions for it are known here: one that it lacks would end the process.
    """
    has = machine().has
    kinds: dict[str, list[tuple[str, Any, int]]] = {
        "f32": [(f"f32x{lanes}", _fma(lanes), 2 * lanes) for lanes in (4, 8, 16)],
        "int8": [],
    }
    if has("avx2"):
        kinds["int8"].append(("avx2", _pmadd(), 64))
    if has("avxvnni"):
        kinds["int8"].append(("avx_vnni", _dot(8), 64))
    if has("avx512vnni"):
        kinds["int8"].append(("avx512_vnni", _dot(16), 128))
    return {
        kind: [
            (
                native_kernel(specialised(_arithmetic, f"arithmetic_{name}", burn=_chains(*how))),
                CHAINS * STEPS * operations,
            )
            for name, how, operations in variants
        ]
        for kind, variants in kinds.items()
        if variants
    }
