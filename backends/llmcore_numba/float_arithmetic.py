"""How sixteen lanes of float elements are multiplied: what they become in registers, and with what.

An element is of a packed matrix, or of the KV cache. What multiplies it, an element of a token, is a *factor* of 4
bytes: a float32, or a pair of bfloat16 for two elements that lie side by side in a lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from llmcore.native.memory import emit_half
from llmcore.native.vector import FLOAT, INT, LANES, SHORT, emit_fma

FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
FACTOR = 4  # bytes


class _BFloat(ir.types._BaseFloatType):
    """LLVM's bfloat, which llvmlite has no type for."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()
BFLOAT = _BFloat()
BFLOATS = ir.VectorType(BFLOAT, 2 * LANES)


class Arithmetic(NamedTuple):
    """One way to multiply.

    Attributes:
        lane: LLVM's type of what is loaded into a lane.
        lane_bytes: of it.
        elements: side by side in a lane.
        columns: elements that a factor multiplies.
        operands: ``f(builder, lanes)``: what sixteen loaded lanes become, one operand for each factor.
        factor: ``f(builder, repeated)``: the operand that a factor, an int32 repeated in sixteen lanes, becomes.
        add: ``f(builder, factor, operand, sums)``: sums and products.
    """

    lane: Any
    lane_bytes: int
    elements: int
    columns: int
    operands: Callable[[Any, Any], list[Any]]
    factor: Callable[[Any, Any], Any]
    add: Callable[[Any, Any, Any, Any], Any] = emit_fma

    @property
    def vector_bytes(self) -> int:
        """Bytes of sixteen lanes."""
        return LANES * self.lane_bytes

    @property
    def factors(self) -> int:
        """How many multiply a lane."""
        return self.elements // self.columns


def as_float(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, FLOATS)


def _f32(_builder: Any, lanes: Any) -> list[Any]:
    return [lanes]


def _f16(builder: Any, lanes: Any) -> list[Any]:
    return [emit_half(builder, lanes, lambda element: ir.VectorType(element, LANES))]


def _bf16(builder: Any, lanes: Any) -> list[Any]:
    """A bfloat16 is the upper half of a float32."""
    first = builder.shl(lanes, ir.Constant(INTS, [16] * LANES))
    second = builder.and_(lanes, ir.Constant(INTS, [-(1 << 16)] * LANES))
    return [as_float(builder, first), as_float(builder, second)]


def _pair(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, BFLOATS)


def _pairs(builder: Any, lanes: Any) -> list[Any]:
    return [_pair(builder, lanes)]


def _add_pairs(builder: Any, factor: Any, operand: Any, sums: Any) -> Any:
    kind = ir.FunctionType(FLOATS, [FLOATS, BFLOATS, BFLOATS])
    dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(dot, [sums, operand, factor])


ARITHMETIC = {
    "F32": Arithmetic(FLOAT, 4, 1, 1, _f32, as_float),
    "F16": Arithmetic(SHORT, 2, 1, 1, _f16, as_float),
    "BF16": Arithmetic(INT, 4, 2, 1, _bf16, as_float),
    "BF16_pairs": Arithmetic(INT, 4, 2, 2, _pairs, _pair, _add_pairs),
}
"""``BF16_pairs`` multiplies tokens that have been rounded to bfloat16, and needs AVX512 BF16."""
