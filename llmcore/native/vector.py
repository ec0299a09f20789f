"""Vectors of 16 lanes in code that Numba compiles, as LLVM's own vector types.

LLVM lowers them to whatever the processor has (one AVX512 register, two of AVX2, four of SSE or NEON), so kernels over
them run everywhere, and since the lanes and the order of every sum are in the source, they give the same bits whatever
the tile or the thread: LLVM is never allowed to reassociate.

``F32`` and ``U8`` are the Numba types; ``+ - * /`` work on two of the former, ``& | << >>`` on two of the latter.
``address`` arguments need no alignment.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, models, register_model, type_callable

from llmcore.native.memory import WORD, emit_half, emits, pointer

LANES = 16
FLOAT, INT, SHORT, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8)


class VectorType(types.Type):  # type: ignore[misc]
    """The Numba type of a vector of ``LANES`` elements of an LLVM type."""

    def __init__(self, name: str, element: Any) -> None:
        self.element = element
        self.ir = ir.VectorType(element, LANES)
        super().__init__(name=f"{name}x{LANES}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, kind.ir)


F32, I32, U8 = VectorType("f32", FLOAT), VectorType("i32", INT), VectorType("u8", BYTE)  # I32: only within functions
MASK = ir.VectorType(ir.IntType(1), LANES)


def _define(operation: Callable[..., Any], kind: VectorType, instruction: str) -> None:
    """Makes a Python operator work on two vectors of ``kind``."""

    @type_callable(operation)  # type: ignore[untyped-decorator]
    def typer(_context: Any) -> Any:
        return lambda a, b: kind if a is kind and b is kind else None

    @lower_builtin(operation, kind, kind)  # type: ignore[untyped-decorator]
    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return getattr(builder, instruction)(*values)


for _symbol, _instruction in {"add": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv"}.items():
    _define(getattr(operator, _symbol), F32, _instruction)
for _symbol, _instruction in {"and_": "and_", "or_": "or_", "lshift": "shl", "rshift": "lshr"}.items():
    _define(getattr(operator, _symbol), U8, _instruction)


# --- building blocks, for functions that emit instructions ---


def emit_constant(kind: VectorType, value: float) -> Any:
    """The same constant in every lane."""
    return ir.Constant(kind.ir, [value] * LANES)


def emit_repeat(builder: Any, value: Any) -> Any:
    """Every lane the same scalar."""
    kind = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
    return builder.shuffle_vector(
        first, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(INT, LANES), [0] * LANES)
    )


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``; processors without the instruction round twice."""
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(builder.module.declare_intrinsic(f"llvm.fmuladd.v{LANES}f32", (), kind), [a, b, c])


def emit_fold(builder: Any, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Joins the upper half of the lanes to the lower, until one is left: the order of every horizontal sum."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        halves = [ir.Constant(ir.VectorType(INT, lanes), list(range(low, low + lanes))) for low in (0, lanes)]
        low, high = (builder.shuffle_vector(vector, vector, half) for half in halves)
        vector = join(low, high)
    return builder.extract_element(vector, INT(0))


def _copy(builder: Any, target: Any, source: Any, nbytes: Any) -> None:
    byte = BYTE.as_pointer()
    cgutils.raw_memcpy(builder, builder.bitcast(target, byte), builder.bitcast(source, byte), nbytes, 1, align=1)


def emit_load(builder: Any, address: Any, element: Any) -> Any:
    """16 elements from an address of any alignment."""
    return builder.load(pointer(builder, address, ir.VectorType(element, LANES)), align=1)


def emit_load_first(builder: Any, address: Any, count: Any, element: Any, size: int) -> Any:
    """``count`` < 16 elements of ``size`` bytes, and zeros."""
    kind = ir.VectorType(element, LANES)
    place = cgutils.alloca_once(builder, kind)
    builder.store(ir.Constant(kind, [0] * LANES), place)
    _copy(builder, place, pointer(builder, address, BYTE), builder.mul(count, WORD(size)))
    return builder.load(place)


def emit_prefetch(builder: Any, address: Any, *, near: bool = True) -> None:
    """Asks for the cache line of an address, which need not be one of ours; not ``near``: no further than to L2."""
    byte, word = BYTE.as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer(builder, address, BYTE), word(0), word(3 if near else 2), word(1)])


def _from_bf16(builder: Any, shorts: Any) -> Any:
    """A bfloat16 is the upper half of a float32."""
    return builder.bitcast(builder.shl(builder.zext(shorts, I32.ir), emit_constant(I32, 16)), F32.ir)


def _from_half(builder: Any, shorts: Any) -> Any:
    return emit_half(builder, shorts, lambda element: ir.VectorType(element, LANES))


# --- loads and stores ---


@emits(F32, types.int64)
def load(builder: Any, address: Any) -> Any:
    """16 float32."""
    return emit_load(builder, address, FLOAT)


@emits(F32, types.int64, types.int64)
def load_first(builder: Any, address: Any, count: Any) -> Any:
    """``count`` < 16 float32 and zeros; nothing beyond them is read."""
    return emit_load_first(builder, address, count, FLOAT, 4)


@emits(F32, types.int64)
def load_twice(builder: Any, address: Any) -> Any:
    """8 float32, each of them in two neighbouring lanes."""
    half = ir.VectorType(FLOAT, LANES // 2)
    vector = builder.load(pointer(builder, address, half), align=1)
    lanes = ir.Constant(ir.VectorType(INT, LANES), [lane // 2 for lane in range(LANES)])
    return builder.shuffle_vector(vector, ir.Constant(half, ir.Undefined), lanes)


@emits(types.void, types.int64, F32)
def store(builder: Any, address: Any, vector: Any) -> None:
    """Writes 16 float32."""
    builder.store(vector, pointer(builder, address, F32.ir), align=1)


@emits(types.void, types.int64, F32, types.int64)
def store_first(builder: Any, address: Any, vector: Any, count: Any) -> None:
    """Writes the first ``count`` <= 16 float32, and nothing beyond them."""
    place = cgutils.alloca_once(builder, F32.ir)
    builder.store(vector, place)
    _copy(builder, pointer(builder, address, BYTE), place, builder.mul(count, WORD(4)))


@emits(U8, types.int64)
def load_u8(builder: Any, address: Any) -> Any:
    """16 bytes."""
    return emit_load(builder, address, BYTE)


@emits(F32, types.int64)
def load_f16(builder: Any, address: Any) -> Any:
    """16 IEEE halves."""
    return _from_half(builder, emit_load(builder, address, SHORT))


@emits(F32, types.int64, types.int64)
def load_f16_first(builder: Any, address: Any, count: Any) -> Any:
    """``count`` < 16 IEEE halves and zeros."""
    return _from_half(builder, emit_load_first(builder, address, count, SHORT, 2))


@emits(F32, types.int64)
def load_bf16(builder: Any, address: Any) -> Any:
    """16 bfloat16."""
    return _from_bf16(builder, emit_load(builder, address, SHORT))


@emits(F32, types.int64, types.int64)
def load_bf16_first(builder: Any, address: Any, count: Any) -> Any:
    """``count`` < 16 bfloat16 and zeros."""
    return _from_bf16(builder, emit_load_first(builder, address, count, SHORT, 2))


@emits(U8, types.uint16)
def bits(builder: Any, word: Any) -> Any:
    """Bit ``i`` of a word in lane ``i``, as 0 or 1."""
    return builder.zext(builder.bitcast(word, MASK), U8.ir)


# --- arithmetic ---


@emits(F32, types.float32)
def splat(builder: Any, value: Any) -> Any:
    """The same float32 in every lane."""
    return emit_repeat(builder, value)


@emits(U8, types.uint8)
def splat_u8(builder: Any, value: Any) -> Any:
    """The same byte in every lane."""
    return emit_repeat(builder, value)


@emits(F32)
def zeros(_builder: Any) -> Any:
    """Zero in every lane."""
    return emit_constant(F32, 0.0)


@emits(F32, F32, F32, F32)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where the processor can."""
    return emit_fma(builder, a, b, c)


@emits(F32, F32, F32)
def larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of each two lanes."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@emits(F32, F32)
def crossed(builder: Any, vector: Any) -> Any:
    """Of each two neighbouring lanes ``(a, b)``: ``(-b, a)``."""
    lanes = ir.Constant(ir.VectorType(INT, LANES), [lane ^ 1 for lane in range(LANES)])
    signs = ir.Constant(F32.ir, [-1.0, 1.0] * (LANES // 2))
    return builder.fmul(builder.shuffle_vector(vector, vector, lanes), signs)


@emits(F32, F32, F32)
def at_least(builder: Any, vector: Any, bound: Any) -> Any:
    """Lanes that are not below their ``bound``, 0 in place of the others."""
    return builder.select(builder.fcmp_ordered(">=", vector, bound), vector, emit_constant(F32, 0.0))


@emits(types.float32, F32)
def total(builder: Any, vector: Any) -> Any:
    """The sum of all lanes, in a fixed order."""
    return emit_fold(builder, vector, builder.fadd)


@emits(types.float32, F32)
def largest(builder: Any, vector: Any) -> Any:
    """The largest lane."""
    return emit_fold(builder, vector, lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@emits(types.boolean, F32, F32)
def any_above(builder: Any, a: Any, b: Any) -> Any:
    """Whether any lane of ``a`` is larger than that of ``b``."""
    above = builder.bitcast(builder.fcmp_ordered(">", a, b), ir.IntType(LANES))
    return builder.icmp_unsigned("!=", above, ir.IntType(LANES)(0))


@emits(types.boolean, F32, F32)
def any_above_or_nan(builder: Any, a: Any, b: Any) -> Any:
    """Whether any lane of ``a`` is larger than that of ``b``, or either is NaN: as fast as :func:`any_above`."""
    above = builder.bitcast(builder.fcmp_unordered(">", a, b), ir.IntType(LANES))
    return builder.icmp_unsigned("!=", above, ir.IntType(LANES)(0))


@emits(F32, F32, types.int64, F32)
def first_or(builder: Any, vector: Any, count: Any, other: Any) -> Any:
    """The first ``count`` lanes of ``vector`` (all of them where it is 16 or more), ``other`` in the rest."""
    lane = ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES)))
    return builder.select(builder.icmp_signed("<", lane, emit_repeat(builder, count)), vector, other)


@emits(F32, U8)
def from_u8(builder: Any, vector: Any) -> Any:
    """Bytes 0 … 255 as float32."""
    return builder.sitofp(builder.zext(vector, I32.ir), F32.ir)


@emits(F32, U8)
def from_i8(builder: Any, vector: Any) -> Any:
    """Bytes as signed numbers, -128 … 127, as float32."""
    return builder.sitofp(builder.sext(vector, I32.ir), F32.ir)
