"""The element types of the KV cache: how kernels read and write the blocks of :mod:`llmcore_numba.kv_layout`.

Attention computes with float32, to which elements are expanded in registers. Where the processor multiplies pairs of
bfloat16 there is another way for a cache of bfloat16: queries, and what the scores have become, are rounded for it.
Keys are read in units of 8 elements, which have one scale where the type has scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from llmcore.cache.layout import INT8_GROUP, INT8_LARGEST
from llmcore.native.compiling import inlined, specialised
from llmcore.native.exponential import ROUNDER
from llmcore.native.memory import WORD, emit_half, emits, pointer
from llmcore.native.vector import BYTE, F32, FLOAT, I32, INT, LANES, SHORT, emit_constant, emit_load
from llmcore_numba.float_arithmetic import ARITHMETIC, BFLOAT, Arithmetic, as_float
from llmcore_numba.kv_layout import BLOCK

UNIT = INT8_GROUP
FLOATS, INTS = ir.VectorType(FLOAT, UNIT), ir.VectorType(INT, UNIT)
Encoded = tuple[Any, Any | None]


@dataclass(frozen=True)
class KVType:
    """One element type.

    A *span* is what shares a lane: neighbouring elements of a key, or the same element of neighbouring positions'
    values.

    Attributes:
        size: bytes of an element.
        arithmetic: how it is multiplied.
        encode: ``f(builder, floats)``: the elements that stand for 8 float32, and their scale (int16) if there is one.
        scaled: whether each unit has a scale.
    """

    name: str
    size: int
    arithmetic: Arithmetic
    encode: Callable[[Any, Any], Encoded]
    scaled: bool = False

    @property
    def span(self) -> int:
        """Elements that share a lane."""
        return self.arithmetic.elements

    @property
    def factor_bytes(self) -> int:
        """Bytes that an element of a query takes, or a position's weight."""
        return 4 // self.arithmetic.columns

    @property
    def unit_head(self) -> int:
        """Bytes of the scales of a unit of keys."""
        return 2 * BLOCK if self.scaled else 0

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit of keys."""
        return self.unit_head + UNIT * BLOCK * self.size

    def scales(self, builder: Any, unit: Any) -> Any:
        """The scales of the unit of keys at an address, None where there are none."""
        return _halves(builder, unit, LANES) if self.scaled else None

    def key_at(self, builder: Any, unit: Any, span: Any) -> Any:
        """Where a span of the unit of keys at an address is."""
        return add(builder, unit, self.unit_head, (span, self.arithmetic.vector_bytes))

    def value_at(self, builder: Any, block: Any, span: Any, column: Any, pitch: Any) -> Any:
        """Where the values of a span of positions are, from element ``column`` on."""
        lane = builder.add(builder.mul(span, pitch), column)
        return add(builder, block, (pitch, self.unit_head // UNIT), (lane, self.arithmetic.lane_bytes))

    def keys(self, builder: Any, unit: Any, span: Any, scales: Any) -> list[Any]:
        """A span of the unit of keys at an address, of all positions: an operand for each factor."""
        operands = self.arithmetic.operands(builder, self._load(builder, self.key_at(builder, unit, span)))
        return operands if scales is None else [builder.fmul(operand, scales) for operand in operands]

    def values(self, builder: Any, block: Any, span: Any, column: Any, pitch: Any, some: bool = False) -> list[Any]:
        """16 elements from ``column`` on of the values of a span of positions: an operand for each factor.

        ``some``: what lies beyond the first position is taken for zero, since it may be anything.
        """
        lanes = self._load(builder, self.value_at(builder, block, span, column, pitch))
        if some:
            lanes = builder.and_(lanes, _all(lanes.type, (1 << 8 * self.size) - 1))
        operands = self.arithmetic.operands(builder, lanes)
        if not self.scaled:
            return operands
        scales = _halves(builder, self._value_scale(builder, block, span, column, pitch), LANES // UNIT)
        repeated = builder.shuffle_vector(scales, scales, ir.Constant(I32.ir, [lane // UNIT for lane in range(LANES)]))
        return [builder.fmul(operand, repeated) for operand in operands]

    def put(self, builder: Any, address: Any, vector: Any) -> Any:
        """Stores 16 elements of a query, or weights, as factors; returns what was stored."""
        if self.arithmetic.columns == 1:
            _store(builder, vector, address)
            return vector
        rounded = builder.bitcast(builder.fptrunc(vector, ir.VectorType(BFLOAT, LANES)), ir.VectorType(SHORT, LANES))
        _store(builder, rounded, address)
        return as_float(builder, builder.shl(builder.zext(rounded, I32.ir), emit_constant(I32, 16)))

    def write_keys(self, builder: Any, x: Any, block: Any, unit: Any, position: Any) -> None:
        """Stores 8 float32 at ``x`` as a unit of the keys of a position, of the 16 in ``block``."""
        elements, scale = self.encode(builder, builder.load(pointer(builder, x, FLOATS), align=4))
        at = add(builder, block, (unit, self.unit_bytes))
        if scale is not None:
            _store(builder, scale, add(builder, at, (position, 2)))
        for i in range(UNIT):
            span = self.unit_head + i // self.span * self.arithmetic.vector_bytes + i % self.span * self.size
            element = builder.extract_element(elements, INT(i))
            _store(builder, element, add(builder, at, span, (position, self.arithmetic.lane_bytes)))

    def write_values(self, builder: Any, x: Any, block: Any, unit: Any, position: Any, pitch: Any) -> None:
        """Stores 8 float32 at ``x`` as a unit of the values of a position."""
        elements, scale = self.encode(builder, builder.load(pointer(builder, x, FLOATS), align=4))
        column = builder.mul(unit, WORD(UNIT))
        if scale is not None:
            _store(builder, scale, self._value_scale(builder, block, position, column, pitch))
        span = builder.udiv(position, WORD(self.span))
        at = self.value_at(builder, block, span, column, pitch)
        if self.span == 1:
            _store(builder, elements, at)
            return
        at = add(builder, at, (builder.urem(position, WORD(self.span)), self.size))
        for i in range(UNIT):
            _store(builder, builder.extract_element(elements, INT(i)), add(builder, at, i * self.arithmetic.lane_bytes))

    def _load(self, builder: Any, address: Any) -> Any:
        return emit_load(builder, address, self.arithmetic.lane)

    def _value_scale(self, builder: Any, block: Any, span: Any, column: Any, pitch: Any) -> Any:
        unit = builder.lshr(builder.add(builder.mul(span, pitch), column), WORD(UNIT.bit_length() - 1))
        return add(builder, block, (unit, 2))


def add(builder: Any, address: Any, *parts: Any) -> Any:
    """``address`` and numbers, or products ``(value, number)``."""
    for part in parts:
        offset = builder.mul(part[0], WORD(part[1])) if isinstance(part, tuple) else WORD(part)
        address = builder.add(address, offset)
    return address


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, pointer(builder, address, value.type), align=1)


def _halves(builder: Any, address: Any, count: int) -> Any:
    shorts = builder.load(pointer(builder, address, ir.VectorType(SHORT, count)), align=2)
    return emit_half(builder, shorts, lambda element: ir.VectorType(element, count))


def _all(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _keep(_builder: Any, floats: Any) -> Encoded:
    return floats, None


# --- bfloat16: the upper half of a float32, rounded to nearest even ---


def _to_bfloat16(builder: Any, floats: Any) -> Encoded:
    bits = builder.bitcast(floats, INTS)
    upper = builder.lshr(bits, _all(INTS, 16))
    half = builder.add(builder.and_(upper, _all(INTS, 1)), _all(INTS, 0x7FFF))
    rounded = builder.lshr(builder.add(bits, half), _all(INTS, 16))
    quiet = builder.or_(upper, _all(INTS, 0x40))
    missing = builder.fcmp_unordered("uno", floats, floats)
    return builder.trunc(builder.select(missing, quiet, rounded), ir.VectorType(SHORT, UNIT)), None


# --- int8, as llmcore.cache.layout defines it ---


def _i8(builder: Any, lanes: Any) -> list[Any]:
    return [builder.sitofp(builder.sext(lanes, I32.ir), F32.ir)]


def _to_int8(builder: Any, floats: Any) -> Encoded:
    """A NaN or an infinity makes the scale NaN."""
    sizes = builder.bitcast(builder.and_(builder.bitcast(floats, INTS), _all(INTS, 0x7FFFFFFF)), FLOATS)
    largest, flaw = FLOAT(0.0), FLOAT(0.0)
    for i in range(UNIT):
        size = builder.extract_element(sizes, INT(i))
        largest = builder.select(builder.fcmp_ordered(">", size, largest), size, largest)
        flaw = builder.fadd(flaw, builder.fmul(size, FLOAT(0.0)))
    scale = _to_half(builder, builder.fadd(builder.fdiv(largest, FLOAT(INT8_LARGEST)), flaw))
    factor = emit_half(builder, scale, lambda element: element)
    nothing = builder.fcmp_ordered("==", factor, FLOAT(0.0))
    inverse = builder.select(nothing, FLOAT(0.0), builder.fdiv(FLOAT(1.0), factor))
    repeated = ir.Constant(FLOATS, ir.Undefined)
    for i in range(UNIT):
        repeated = builder.insert_element(repeated, inverse, INT(i))
    shifted = builder.fadd(builder.fmul(floats, repeated), _all(FLOATS, ROUNDER))
    codes = builder.sub(builder.bitcast(shifted, INTS), builder.bitcast(_all(FLOATS, ROUNDER), INTS))
    for limit, sign in ((INT8_LARGEST, ">"), (-INT8_LARGEST, "<")):
        beyond = builder.icmp_signed(sign, codes, _all(INTS, limit))
        codes = builder.select(beyond, _all(INTS, limit), codes)
    return builder.trunc(codes, ir.VectorType(BYTE, UNIT)), scale


def _to_half(builder: Any, value: Any) -> Any:
    """The bits of the half nearest to a float32 that is not negative, ties to even, without the instruction for it."""
    bits = builder.bitcast(value, INT)
    odd = builder.and_(builder.lshr(bits, INT(13)), INT(1))
    half = builder.add(builder.add(bits, odd), INT(0xFFF))
    normal = builder.lshr(builder.sub(half, INT(112 << 23)), INT(13))  # the exponents' difference
    tiny = builder.sub(builder.bitcast(builder.fadd(value, FLOAT(0.5)), INT), INT(0x3F000000))  # the last bit of 0.5
    found = builder.select(builder.fcmp_ordered("<", value, FLOAT(2.0**-14)), tiny, normal)
    found = builder.select(builder.fcmp_ordered(">=", value, FLOAT(65520.0)), INT(0x7C00), found)
    return builder.trunc(builder.select(builder.fcmp_unordered("uno", value, value), INT(0x7E00), found), SHORT)


INT8 = Arithmetic(BYTE, 1, 1, 1, _i8, as_float)

KV_TYPES = {
    kind.name: kind
    for kind in (
        KVType("float32", 4, ARITHMETIC["F32"], _keep),
        KVType("bfloat16", 2, ARITHMETIC["BF16"], _to_bfloat16),
        KVType("bfloat16_pairs", 2, ARITHMETIC["BF16_pairs"], _to_bfloat16),
        KVType("int8", 1, INT8, _to_int8, scaled=True),
    )
}


_put = _write_keys = _write_values = None  # each type's own


def _keys_writer(x, block, unit, position):
    _write_keys(x, block, unit, position)


def _values_writer(x, block, unit, position, pitch):
    _write_values(x, block, unit, position, pitch)


def _putter(address, vector):
    return _put(address, vector)


def putter(kind: KVType) -> Callable[..., Any]:
    """:meth:`KVType.put` without its builder, as a part of kernels."""
    return inlined(specialised(_putter, f"put_{kind.name}", _put=emits(F32, types.int64, F32)(kind.put)))


def writers(kind: KVType) -> tuple[Callable[..., None], Callable[..., None]]:
    """:meth:`KVType.write_keys` and :meth:`KVType.write_values` without their builder, as parts of kernels."""
    keys = emits(types.void, *[types.int64] * 4)(kind.write_keys)
    values = emits(types.void, *[types.int64] * 5)(kind.write_values)
    return (
        inlined(specialised(_keys_writer, f"write_keys_{kind.name}", _write_keys=keys)),
        inlined(specialised(_values_writer, f"write_values_{kind.name}", _write_values=values)),
    )
