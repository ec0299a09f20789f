"""Sums of a group: 32 codes of some tokens times 32 codes of some times sixteen rows, in exact integer arithmetic.

How it is done depends on the instruction level:

- AVX512 VNNI: ``vpdpbusd`` adds four products to each of sixteen int32. It wants unsigned weights: codes of 8 bits are
  made so by adding 128, and what that adds is known from the token's sum.
- AVX2: ``vpmaddubsw`` multiplies unsigned by signed bytes and adds neighbours to int16. Codes of 4 bits leave room to
  add all eight quads of a group there (8 * 2 * 15 * 127 < 2**15). Codes of 8 bits do not: the sign of the weight is
  moved to the token (``vpsignb``), and pairs are added to int32 at once.
- elsewhere: plain LLVM vectors of int32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

from llmcore.native.machine import machine
from llmcore.native.memory import WORD, pointer
from llmcore.native.vector import BYTE, FLOAT, INT, LANES, SHORT
from llmcore_numba.packing import QUAD

BYTES, SHORTS, INTS = ir.VectorType(BYTE, 32), ir.VectorType(SHORT, 16), ir.VectorType(INT, 8)
WIDE_BYTES, WIDE_INTS, FLOATS = ir.VectorType(BYTE, 64), ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)


@dataclass(frozen=True)
class Tokens:
    """A group's codes, ``[8 quads][of them so many tokens][4]``.

    Attributes:
        address: of the first token's first quad.
        count: how many are multiplied.
        pitch: bytes from one quad to the next.
        less: for each token int32 x 16, minus the sum of its codes.
    """

    address: Any
    count: int
    pitch: int
    less: list[Any]

    def quad(self, builder: Any, quad: int, token: int, count: int) -> Any:
        """A quad of a token in each of ``count`` lanes of 32 bits."""
        at = builder.add(self.address, WORD(quad * self.pitch + token * 4))
        return repeat(builder, builder.load(pointer(builder, at, INT), align=1), count)


Rows = list[list[Any]]
"""A vector for each token and each sixteen rows."""


class Sums(Protocol):
    """Int32 x 16 for each token and each sixteen rows."""

    def __call__(self, builder: Any, starts: list[Any], tokens: Tokens, zero: int) -> Rows:
        """``starts`` are the addresses of the first codes of sixteen rows each; ``zero``: a weight is its code less
        ``2**zero``, or its code (0).
        """
        ...


def const(kind: Any, value: int) -> Any:
    """``value`` in each lane."""
    return ir.Constant(kind, [value] * kind.count)


def repeat(builder: Any, value: Any, count: int) -> Any:
    """``value`` in each of ``count`` lanes."""
    kind = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), const(ir.VectorType(INT, count), 0))


def group_sums(bits: int) -> Sums:
    """For codes of 4 or 8 bits, and the machine that is compiled for."""
    if _has_vnni():
        return _vnni(bits)
    return _avx2(bits) if machine().has("avx2") else _plain(bits)


def large_tile() -> tuple[int, int]:
    """Tokens, and times sixteen rows, of the tile for many tokens: as many sums as the registers hold."""
    return (8, 2) if _has_vnni() else (4, 1)


def _has_vnni() -> bool:
    return machine().has("avx512f", "avx512bw", "avx512vnni")


def _intrinsic(builder: Any, name: str, result: Any, *values: Any) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _codes(builder: Any, codes: Any, bits: int, kind: Any, step: int, part: int = 0) -> list[tuple[int, Any]]:
    """Step ``step`` through a group's codes: quads and their vectors. ``part``: which half of the rows."""
    vector = builder.load(pointer(builder, builder.add(codes, WORD(step * QUAD + part * 32)), kind), align=1)
    if bits == 8:
        return [(step, vector)]
    words = ir.VectorType(SHORT, kind.count // 2)
    shifted = builder.bitcast(builder.lshr(builder.bitcast(vector, words), const(words, 4)), kind)
    return [(step, builder.and_(vector, const(kind, 15))), (step + 4, builder.and_(shifted, const(kind, 15)))]


def _in_order(builder: Any, sums: list[Any], register: str) -> list[Any]:
    """The same sums, computed by here: else LLVM loads the codes of all steps first, and they don't fit the registers.

    An empty piece of assembler that pretends to change each of them, and memory. ``register`` is the letter of a class
    of vector registers: ``x`` for AVX's, ``v`` for AVX512's.
    """
    kinds = [value.type for value in sums]
    constraints = [*[f"={register}"] * len(sums), *map(str, range(len(sums))), "~{memory}"]
    result = kinds[0] if len(sums) == 1 else ir.LiteralStructType(kinds)
    done = builder.asm(ir.FunctionType(result, kinds), "", ",".join(constraints), sums, side_effect=True)
    return [done] if len(sums) == 1 else [builder.extract_value(done, i) for i in range(len(sums))]


def _less_zero(builder: Any, tokens: Tokens, zero: int) -> list[Any]:
    """What weights that are ``2**zero`` too large add to each token's sums, negative."""
    return [builder.shl(less, const(WIDE_INTS, zero)) for less in tokens.less]


def _vnni(bits: int) -> Sums:
    operand = WIDE_BYTES if llvmlite.binding.llvm_version_info[0] >= 22 else WIDE_INTS  # as LLVM has called them

    def multiply(builder: Any, total: Any, weights: Any, token: Any) -> Any:
        factors = (builder.bitcast(value, operand) for value in (weights, token))
        return _intrinsic(builder, "llvm.x86.avx512.vpdpbusd.512", WIDE_INTS, total, *factors)

    def sums(builder: Any, starts: list[Any], tokens: Tokens, zero: int) -> Rows:
        shift = 7 if bits == 8 else zero
        found = [[const(WIDE_INTS, 0) for _ in starts] for _ in range(tokens.count)]
        if shift:
            less = _less_zero(builder, tokens, shift)
            found = [[builder.add(total, off) for total in row] for row, off in zip(found, less, strict=True)]
        for step in range(bits):
            parts = [_codes(builder, codes, bits, WIDE_BYTES, step) for codes in starts]
            for vectors in zip(*parts, strict=True):
                quad = vectors[0][0]
                weights = [builder.xor(v, const(WIDE_BYTES, 128)) if bits == 8 else v for _, v in vectors]
                for token in range(tokens.count):
                    repeated = tokens.quad(builder, quad, token, LANES)
                    for part, weight in enumerate(weights):
                        found[token][part] = multiply(builder, found[token][part], weight, repeated)
            if tokens.count > 1:
                flat = _in_order(builder, [total for row in found for total in row], "v")
                found = [flat[i : i + len(starts)] for i in range(0, len(flat), len(starts))]
        return found

    return sums


def _avx2(bits: int) -> Sums:
    ones = const(SHORTS, 1)

    def pairs(builder: Any, a: Any, b: Any) -> Any:
        return _intrinsic(builder, "llvm.x86.avx2.pmadd.ub.sw", SHORTS, a, b)

    def widened(builder: Any, shorts: Any) -> Any:
        return _intrinsic(builder, "llvm.x86.avx2.pmadd.wd", INTS, shorts, ones)

    def size_of(builder: Any, vector: Any) -> Any:
        return vector if bits == 4 else _intrinsic(builder, "llvm.abs.v32i8", BYTES, vector, ir.IntType(1)(0))

    def product(builder: Any, vector: Any, size: Any, token: Any) -> Any:
        if bits == 4:
            return pairs(builder, size, token)
        signed = _intrinsic(builder, "llvm.x86.avx2.psign.b", BYTES, token, vector)
        return widened(builder, pairs(builder, size, signed))

    def row_sums(builder: Any, codes: Any, tokens: Tokens) -> list[Any]:
        totals = [const(SHORTS if bits == 4 else INTS, 0)] * (2 * tokens.count)  # of a token's lower rows, its upper
        for step in range(bits):
            halves = [_codes(builder, codes, bits, BYTES, step, part) for part in range(2)]
            for (quad, low), (_, high) in zip(*halves, strict=True):
                sizes = [size_of(builder, vector) for vector in (low, high)]
                for token in range(tokens.count):
                    repeated = builder.bitcast(tokens.quad(builder, quad, token, 8), BYTES)
                    for part, vector in enumerate((low, high)):
                        at = 2 * token + part
                        totals[at] = builder.add(totals[at], product(builder, vector, sizes[part], repeated))
            totals = _in_order(builder, totals, "x")
        if bits == 4:
            totals = [widened(builder, value) for value in totals]
        joined = ir.Constant(WIDE_INTS, list(range(LANES)))
        return [builder.shuffle_vector(*totals[at : at + 2], joined) for at in range(0, len(totals), 2)]

    return _plus_zero(row_sums)


def _plain(bits: int) -> Sums:
    def row_sums(builder: Any, codes: Any, tokens: Tokens) -> list[Any]:
        quads = [pair for step in range(bits) for pair in _codes(builder, codes, bits, WIDE_BYTES, step)]
        totals: list[Any] = [const(WIDE_INTS, 0)] * tokens.count
        for quad, vector in quads:
            for column in range(4):
                lanes = ir.Constant(WIDE_INTS, list(range(column, 64, 4)))
                narrow = builder.shuffle_vector(vector, vector, lanes)
                weights = (builder.sext if bits == 8 else builder.zext)(narrow, WIDE_INTS)
                for token in range(tokens.count):
                    at = builder.add(tokens.address, WORD(quad * tokens.pitch + token * 4 + column))
                    code = builder.sext(builder.load(pointer(builder, at, BYTE), align=1), INT)
                    product = builder.mul(weights, repeat(builder, code, LANES))
                    totals[token] = builder.add(totals[token], product)
        return totals

    return _plus_zero(row_sums)


def _plus_zero(row_sums: Any) -> Sums:
    """Sixteen rows after the other; the zero of unsigned codes is taken off afterwards."""

    def sums(builder: Any, starts: list[Any], tokens: Tokens, zero: int) -> Rows:
        columns = [row_sums(builder, codes, tokens) for codes in starts]
        found = [list(row) for row in zip(*columns, strict=True)]
        if zero:
            less = _less_zero(builder, tokens, zero)
            found = [[builder.add(total, off) for total in row] for row, off in zip(found, less, strict=True)]
        return found

    return sums
