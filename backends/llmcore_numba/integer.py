"""Integer tiles: blocks of sixteen rows of packed weights times a few tokens, over all of K.

Tokens are int8 in groups of 32 with one scale each (:mod:`llmcore_numba.quantize`); groups that need it have a second
plane of codes, which is multiplied only where one of the tile's tokens has it. Within a group everything is exact
integer arithmetic (:mod:`llmcore_numba.integer_sums`); across groups each result is summed in float32, group after
group, so that tiles of any shape give the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore.native.machine import machine
from llmcore.native.memory import WORD, emit_half, emits, pointer
from llmcore.native.vector import FLOAT, INT, LANES, SHORT, emit_fma, emit_load, emit_prefetch
from llmcore_numba.integer_sums import FLOATS, Rows, Tokens, const, group_sums, repeat
from llmcore_numba.packing import HIGH, LESS, LESS_LOW, LOW, RECORD, ROWS, SCALE, SHIFT, TOTAL, Packing

AHEAD = 0 if machine().has("avx512f") else 2048
"""Bytes: how far before its use a block is asked for where memory is what takes the time.

Measured: Zen 3 reads a quarter faster with it. Zen 4, for which AVX512 has to stand here, a quarter faster without.
"""
OUT_BLOCKS = 2  # of sixteen results, for each token


def integer_tile(packing: Packing, tokens: int, blocks: int, panel: int) -> Callable[..., None]:
    """``tile(weights, to_next, groups, first, out)``: float32 ``out[token, 2 blocks, 16 rows]``.

    Multiplies ``tokens`` of a panel of ``panel`` quantized tokens with ``blocks`` blocks of rows. ``weights`` is the
    address of the first row block, ``to_next`` bytes before the next; ``groups`` is K / 32; ``first`` is the panel's
    address and 4 bytes for each token before the first.
    """
    body = _Tile(packing, tokens, blocks, panel)
    name = f"tile_{packing.name}_{tokens}x{blocks}"

    @emits(types.void, *[types.int64] * 5)
    def tile(builder: Any, *values: Any) -> None:
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [WORD] * 5), name)
            function.linkage = "internal"
            function.attributes.add("noinline")  # once in a kernel, and not mixed up with what is around its calls
            inside = ir.IRBuilder(function.append_basic_block("entry"))
            body.emit(inside, *function.args)
            inside.ret_void()
        builder.call(function, values)

    return tile


@dataclass(frozen=True)
class _Tile:
    """The body of a tile, see :func:`integer_tile`."""

    packing: Packing
    tokens: int
    blocks: int
    panel: int

    def emit(self, builder: Any, weights: Any, to_next: Any, groups: Any, first: Any, out: Any) -> None:
        """Writes the loop over groups."""
        places = [[cgutils.alloca_once(builder, FLOATS) for _ in range(self.blocks)] for _ in range(self.tokens)]
        for place in itertools.chain(*places):
            builder.store(const(FLOATS, 0), place)
        with cgutils.for_range(builder, groups) as loop:
            start = builder.add(weights, builder.mul(loop.index, WORD(self.packing.nbytes)))
            starts = [builder.add(start, builder.mul(to_next, WORD(block))) for block in range(self.blocks)]
            record = builder.add(first, builder.mul(loop.index, WORD(RECORD * self.panel)))
            if AHEAD and self.tokens == 1:  # more tokens find the block in the cache
                _prefetch(builder, start, self.packing.nbytes)
            self._add_scaled(builder, starts, record, self._sums(builder, starts, record), places)
        for token, row in enumerate(places):
            for block, place in enumerate(row):
                at = builder.add(out, WORD((token * OUT_BLOCKS + block) * 64))
                builder.store(builder.load(place), pointer(builder, at, FLOATS), align=4)

    def _head(self, builder: Any, record: Any, part: int, token: int, kind: Any) -> Any:
        """A number of a token's group, in every lane."""
        at = builder.add(record, WORD(part * self.panel + token * 4))
        return repeat(builder, builder.load(pointer(builder, at, kind), align=4), LANES)

    def _plane(
        self, builder: Any, starts: list[Any], record: Any, parts: tuple[int, int], onto: Rows | None = None
    ) -> Rows:
        """Adds a plane's products to ``onto``; ``parts`` says where the plane is, and what its codes' sums are."""
        plane, less = parts
        codes = [builder.add(at, WORD(self.packing.head)) for at in starts]
        corrections = [self._head(builder, record, less, token, INT) for token in range(self.tokens)]
        group = Tokens(builder.add(record, WORD(plane * self.panel)), self.tokens, 4 * self.panel, corrections)
        zero = 3 if self.packing.bits == 4 and not self.packing.minima else 0
        return group_sums(self.packing.bits)(builder, codes, group, zero, onto)

    def _sums(self, builder: Any, starts: list[Any], record: Any) -> Rows:
        """Those of both planes together."""
        high = self._plane(builder, starts, record, (HIGH, LESS))
        before = builder.block
        shifted = _any_of(builder, builder.add(record, WORD(SHIFT * self.panel)), self.tokens)
        with builder.if_then(shifted, likely=False):
            shifts = [self._head(builder, record, SHIFT, token, INT) for token in range(self.tokens)]
            both = [[builder.shl(total, shift) for total in row] for row, shift in zip(high, shifts, strict=True)]
            both = self._plane(builder, starts, record, (LOW, LESS_LOW), both)
            inside = builder.block
        return [
            [_either(builder, a, before, b, inside) for a, b in zip(*rows, strict=True)]
            for rows in zip(high, both, strict=True)
        ]

    def _add_scaled(self, builder: Any, starts: list[Any], record: Any, sums: Rows, places: Any) -> None:
        """Adds a group's sums to those in ``places``."""
        scales = [_halves(builder, at) for at in starts]
        minima = [_halves(builder, builder.add(at, WORD(2 * ROWS))) for at in starts] if self.packing.minima else None
        for token, row in enumerate(places):
            scale, total = (self._head(builder, record, part, token, FLOAT) for part in (SCALE, TOTAL))
            for block, place in enumerate(row):
                value = builder.fmul(builder.sitofp(sums[token][block], FLOATS), scale)
                value = emit_fma(builder, value, scales[block], builder.load(place))
                if minima:
                    value = emit_fma(builder, minima[block], total, value)
                builder.store(value, place)


def _either(builder: Any, value: Any, before: Any, other: Any, inside: Any) -> Any:
    phi = builder.phi(value.type)
    phi.add_incoming(value, before)
    phi.add_incoming(other, inside)
    return phi


def _any_of(builder: Any, address: Any, tokens: int) -> Any:
    """Whether one of the int32 at an address is not 0."""
    bits = ir.IntType(32 * tokens)
    return builder.icmp_unsigned("!=", builder.load(pointer(builder, address, bits), align=1), bits(0))


def _prefetch(builder: Any, block: Any, nbytes: int) -> None:
    """Asks for the lines of a block that is some way ahead: a thread alone, or a new page, is too slow otherwise."""
    for line in range(0, nbytes, 64):
        emit_prefetch(builder, builder.add(block, WORD(AHEAD + line)))


def _halves(builder: Any, address: Any) -> Any:
    return emit_half(builder, emit_load(builder, address, SHORT), lambda element: ir.VectorType(element, LANES))
