"""Integer tiles: sixteen rows of packed weights times a few tokens, over all of K.

Tokens are int8 in groups of 32 with one scale each, in one plane or two (:mod:`llmcore_numba.quantize`). Within a group
everything is exact integer arithmetic; across groups each result is summed in float32, group after group, whatever the
tile, so that tiles of any number of tokens give the same bits.

How a group is summed depends on the instruction level:

- AVX512 VNNI: ``vpdpbusd`` adds four products to each of sixteen int32.
- AVX2: ``vpmaddubsw`` multiplies unsigned by signed bytes and adds neighbours to int16. Codes of 4 bits leave room to
  add all eight quads of a group there (8 * 2 * 15 * 127 < 2**15). Codes of 8 bits do not: the sign of the weight is
  moved to the token (``vpsignb``), and pairs are added to int32 at once.
- elsewhere: plain LLVM vectors of int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore.native.machine import machine
from llmcore.native.memory import WORD, emit_half, emits, pointer
from llmcore.native.vector import BYTE, FLOAT, INT, LANES, SHORT, emit_fma, emit_load
from llmcore_numba.packing import COLUMNS, ROWS, Packing

BYTES, SHORTS, INTS = ir.VectorType(BYTE, 32), ir.VectorType(SHORT, 16), ir.VectorType(INT, 8)
WIDE_BYTES, WIDE_INTS, FLOATS = ir.VectorType(BYTE, 64), ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)
PLANE_BITS = 7  # an activation of two planes is 2**7 times the first, and the second
AHEAD = 2048  # bytes: how far before its use a block is asked for where memory is what takes the time
TOKEN_HEAD = 8  # bytes of a token's scale and sum for each group, behind its codes


def _const(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _intrinsic(builder: Any, name: str, result: Any, *values: Any) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _repeat(builder: Any, address: Any, offset: int, count: int) -> Any:
    """The quad at ``address + offset`` in each of ``count`` lanes of 32 bits."""
    quad = builder.load(pointer(builder, builder.add(address, WORD(offset)), INT), align=1)
    kind = ir.VectorType(INT, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), quad, INT(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), _const(kind, 0))


def _join(builder: Any, low: Any, high: Any) -> Any:
    return builder.shuffle_vector(low, high, ir.Constant(WIDE_INTS, list(range(LANES))))


Group = Callable[[Any, Any, list[Any]], list[Any]]
"""``f(builder, codes, tokens)``: int32 x 16 for every token, from the addresses of a group's codes."""


def _codes(builder: Any, codes: Any, bits: int, kind: Any, step: int, part: int = 0) -> list[tuple[int, Any]]:
    """Step ``step`` through a group's codes: quads and their vectors. ``part``: which half of the rows."""
    vector = builder.load(pointer(builder, builder.add(codes, WORD(step * 64 + part * 32)), kind), align=1)
    if bits == 8:
        return [(step, vector)]
    words = ir.VectorType(SHORT, kind.count // 2)
    shifted = builder.bitcast(builder.lshr(builder.bitcast(vector, words), _const(words, 4)), kind)
    return [(step, builder.and_(vector, _const(kind, 15))), (step + 4, builder.and_(shifted, _const(kind, 15)))]


def _in_order(builder: Any, sums: list[Any]) -> list[Any]:
    """The same sums, computed by here: else LLVM loads the codes of all steps first, and they don't fit the registers.

    An empty piece of assembler that pretends to change each of them (``x`` is a vector register of x86), and memory.
    """
    kinds = [value.type for value in sums]
    constraints = [*["=x"] * len(sums), *map(str, range(len(sums))), "~{memory}"]
    result = kinds[0] if len(sums) == 1 else ir.LiteralStructType(kinds)
    done = builder.asm(ir.FunctionType(result, kinds), "", ",".join(constraints), sums, side_effect=True)
    return [done] if len(sums) == 1 else [builder.extract_value(done, i) for i in range(len(sums))]


def _avx2(bits: int) -> Group:
    ones = _const(SHORTS, 1)

    def pairs(builder: Any, a: Any, b: Any) -> Any:
        return _intrinsic(builder, "llvm.x86.avx2.pmadd.ub.sw", SHORTS, a, b)

    def widened(builder: Any, shorts: Any) -> Any:
        return _intrinsic(builder, "llvm.x86.avx2.pmadd.wd", INTS, shorts, ones)

    def size_of(builder: Any, vector: Any) -> Any:
        return vector if bits == 4 else _intrinsic(builder, "llvm.abs.v32i8", BYTES, vector, ir.IntType(1)(0))

    def product(builder: Any, vector: Any, size: Any, token: Any) -> Any:
        if bits == 4:
            return pairs(builder, size, token)
        return widened(
            builder, pairs(builder, size, _intrinsic(builder, "llvm.x86.avx2.psign.b", BYTES, token, vector))
        )

    def group(builder: Any, codes: Any, tokens: list[Any]) -> list[Any]:
        sums = [_const(SHORTS if bits == 4 else INTS, 0)] * (2 * len(tokens))  # of a token's lower rows, its upper rows
        for step in range(bits):
            halves = [_codes(builder, codes, bits, BYTES, step, part) for part in range(2)]
            for (quad, low), (_, high) in zip(*halves, strict=True):
                sizes = [size_of(builder, vector) for vector in (low, high)]
                for token, address in enumerate(tokens):
                    repeated = builder.bitcast(_repeat(builder, address, quad * 4, 8), BYTES)
                    for part, vector in enumerate((low, high)):
                        at = 2 * token + part
                        sums[at] = builder.add(sums[at], product(builder, vector, sizes[part], repeated))
            sums = _in_order(builder, sums)
        if bits == 4:
            sums = [widened(builder, value) for value in sums]
        return [_join(builder, *sums[at : at + 2]) for at in range(0, len(sums), 2)]

    return group


def _vnni(bits: int) -> Group:
    operand = WIDE_BYTES if llvmlite.binding.llvm_version_info[0] >= 22 else WIDE_INTS  # as LLVM has called them

    def group(builder: Any, codes: Any, tokens: list[Any]) -> list[Any]:
        quads = [pair for step in range(bits) for pair in _codes(builder, codes, bits, WIDE_BYTES, step)]
        sums = [_const(WIDE_INTS, 0) for _ in tokens]
        for quad, signed in quads:
            weights = builder.xor(signed, _const(WIDE_BYTES, 128)) if bits == 8 else signed  # + 128: unsigned
            for token, address in enumerate(tokens):
                repeated = _repeat(builder, address, quad * 4, LANES)
                sums[token] = _intrinsic(
                    builder,
                    "llvm.x86.avx512.vpdpbusd.512",
                    WIDE_INTS,
                    sums[token],
                    *(builder.bitcast(value, operand) for value in (weights, repeated)),
                )
        return sums

    return group


def _plain(bits: int) -> Group:
    def group(builder: Any, codes: Any, tokens: list[Any]) -> list[Any]:
        quads = [pair for step in range(bits) for pair in _codes(builder, codes, bits, WIDE_BYTES, step)]
        sums: list[Any] = [_const(WIDE_INTS, 0) for _ in tokens]
        for quad, vector in quads:
            for column in range(4):
                lanes = ir.Constant(WIDE_INTS, list(range(column, 64, 4)))
                narrow = builder.shuffle_vector(vector, vector, lanes)
                weights = (builder.sext if bits == 8 else builder.zext)(narrow, WIDE_INTS)
                for token, address in enumerate(tokens):
                    at = pointer(builder, builder.add(address, WORD(quad * 4 + column)), BYTE)
                    code = builder.sext(builder.load(at, align=1), INT)
                    first = builder.insert_element(ir.Constant(WIDE_INTS, ir.Undefined), code, INT(0))
                    repeated = builder.shuffle_vector(first, first, _const(WIDE_INTS, 0))
                    sums[token] = builder.add(sums[token], builder.mul(weights, repeated))
        return sums

    return group


def _group_sums(bits: int) -> Group:
    host = machine()
    if host.has("avx512f", "avx512bw", "avx512vnni"):
        return _vnni(bits)
    return _avx2(bits) if host.has("avx2") else _plain(bits)


def integer_tile(packing: Packing, tokens: int, planes: int) -> Callable[..., None]:
    """``tile(weights, groups, *tokens, out)``: float32 ``out[token, 16 rows]`` = token times sixteen packed rows.

    ``weights`` is the address of the first block, ``tokens`` are addresses of quantized tokens, ``groups`` is K / 32.
    """
    group_sums = _group_sums(packing.bits)
    shifted = packing.bits == 8 and machine().has("avx512f", "avx512bw", "avx512vnni")  # codes were made unsigned

    @emits(types.void, *[types.int64] * (tokens + 3))
    def tile(builder: Any, *values: Any) -> None:
        weights, groups, xs, out = values[0], values[1], values[2:-1], values[-1]
        length = builder.mul(groups, WORD(COLUMNS))
        sums = [cgutils.alloca_once(builder, FLOATS) for _ in xs]
        for place in sums:
            builder.store(_const(FLOATS, 0.0), place)
        with cgutils.for_range(builder, groups) as loop:
            block = builder.add(weights, builder.mul(loop.index, WORD(packing.nbytes)))
            codes, at = builder.add(block, WORD(packing.head)), builder.mul(loop.index, WORD(COLUMNS))
            if tokens == 1:  # more tokens find the block in the cache
                _prefetch(builder, block, packing.nbytes)
            found = group_sums(builder, codes, [builder.add(x, at) for x in xs])
            if planes == 2:
                fine = group_sums(builder, codes, [builder.add(builder.add(x, length), at) for x in xs])
                coarse = [builder.shl(ints, _const(WIDE_INTS, PLANE_BITS)) for ints in found]
                found = [builder.add(ints, rest) for ints, rest in zip(coarse, fine, strict=True)]
            scales = _halves(builder, block)
            minima = _halves(builder, builder.add(block, WORD(2 * ROWS))) if packing.minima else None
            if packing.bits == 4 and minima is None:
                minima = builder.fmul(scales, _const(FLOATS, -8.0))
            for place, ints, x in zip(sums, found, xs, strict=True):
                behind = builder.add(builder.mul(length, WORD(planes)), builder.mul(loop.index, WORD(TOKEN_HEAD)))
                head = builder.add(x, behind)
                scale, total = (_splat(builder, builder.add(head, WORD(4 * i))) for i in range(2))
                value = emit_fma(
                    builder, builder.fmul(builder.sitofp(ints, FLOATS), scale), scales, builder.load(place)
                )
                if minima is not None:
                    value = emit_fma(builder, minima, total, value)
                if shifted:
                    value = emit_fma(builder, builder.fmul(scales, _const(FLOATS, -128.0)), total, value)
                builder.store(value, place)
        for i, place in enumerate(sums):
            builder.store(builder.load(place), pointer(builder, builder.add(out, WORD(64 * i)), FLOATS), align=4)

    return tile


def _prefetch(builder: Any, block: Any, nbytes: int) -> None:
    """Asks for the lines of a block that is some way ahead: a thread alone, or a new page, is too slow otherwise."""
    byte, word = BYTE.as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    for line in range(0, nbytes, 64):
        at = pointer(builder, builder.add(block, WORD(AHEAD + line)), BYTE)
        builder.call(function, [at, word(0), word(3), word(1)])


def _halves(builder: Any, address: Any) -> Any:
    return emit_half(builder, emit_load(builder, address, SHORT), lambda element: ir.VectorType(element, LANES))


def _splat(builder: Any, address: Any) -> Any:
    value = builder.load(pointer(builder, address, FLOAT), align=4)
    first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, INT(0))
    return builder.shuffle_vector(first, ir.Constant(FLOATS, ir.Undefined), _const(WIDE_INTS, 0))
