"""Integer tiles: a row of blocks, thirty-two rows of packed weights, times a few tokens, over all of K.

Tokens are int8 in groups of 32 with one scale each (:mod:`llmcore_numba.quantize`). Within a group everything is exact
integer arithmetic (:mod:`llmcore_numba.integer_sums`); across groups each result is summed in float32, group after
group, so that tiles of any shape give the same bits. What a token's outliers give is another sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore.native.memory import WORD, emit_half, emits, pointer
from llmcore.native.vector import FLOAT, INT, LANES, SHORT, emit_fma, emit_load, emit_prefetch
from llmcore_numba.integer_sums import FLOATS, WIDE_INTS, Rows, Tokens, const, group_sums, repeat
from llmcore_numba.packing import (
    CODES,
    COLUMNS,
    ENTRY,
    FOR_TOKEN,
    LESS,
    LISTED,
    QUAD,
    RECORD,
    ROWS,
    SCALE,
    TOTAL,
    VECTORS,
    Packing,
)

LINE = 64  # bytes, of the cache and of a vector


def integer_tile(packing: Packing, tokens: int, vectors: int, panel: int, *, asks: bool = True) -> Callable[..., None]:
    """``tile(weights, groups, first, ask, lines, out)``: adds to float32 ``out[token, 32 rows]``.

    Multiplies ``tokens`` of a panel of ``panel`` quantized tokens with a row of blocks, ``vectors`` times sixteen rows
    of it at once. ``weights`` is the address of the first block; ``groups`` is K / 32; ``first`` is the panel's
    address and 4 bytes for each token before the first. If it ``asks``, ``lines`` of memory from ``ask`` on are asked
    for on the way; for one token, all that lies from ``ask`` on as the weights do.
    """
    body = _Tile(packing, tokens, vectors, panel, asks)
    return _function(f"tile_{packing.name}_{tokens}x{vectors}_of_{panel}{'_asking' * asks}", 6, body.emit)


def outlier_tile(packing: Packing) -> Callable[..., None]:
    """``tile(weights, outliers, head, place, count, out)``: adds to ``out[count, 32 rows]``.

    What the outliers of ``count`` tokens, from ``place`` in their panel on, give, and of those up to a multiple of
    ``LISTED``; ``outliers`` is the address of the panel's list, see :mod:`llmcore_numba.packing`, ``head`` what comes
    before the first; the rest is as in :func:`integer_tile`. One token's outliers are often in the columns of the next
    one's: such a column is read from the weights once.
    """

    def body(builder: Any, *values: Any) -> None:
        weights, outliers, head, place, count, out = values

        def begin(token: Any) -> Any:
            listed = builder.udiv(builder.add(token, WORD(LISTED - 1)), WORD(LISTED))
            at = builder.add(outliers, builder.shl(listed, WORD(2)))
            return builder.zext(builder.load(pointer(builder, at, INT), align=4), WORD)

        first = begin(place)
        entries = builder.add(builder.add(outliers, head), builder.mul(first, WORD(ENTRY)))
        sums = builder.sub(out, builder.mul(place, WORD(4 * ROWS)))
        known = cgutils.alloca_once_value(builder, WORD(-1))  # the column that is in ``columns``
        columns = [cgutils.alloca_once(builder, FLOATS) for _ in range(VECTORS)]
        with cgutils.for_range(builder, builder.sub(begin(builder.add(place, count)), first)) as loop:
            entry = builder.add(entries, builder.mul(loop.index, WORD(ENTRY)))
            which = builder.zext(builder.load(pointer(builder, entry, INT), align=4), WORD)
            x = builder.load(pointer(builder, builder.add(entry, WORD(4)), FLOAT), align=4)
            token, column = builder.and_(which, WORD((1 << FOR_TOKEN) - 1)), builder.lshr(which, WORD(FOR_TOKEN))
            with builder.if_then(builder.icmp_unsigned("!=", column, builder.load(known))):
                start = builder.add(weights, builder.mul(builder.udiv(column, WORD(COLUMNS)), WORD(packing.nbytes)))
                for vector, place_of in enumerate(columns):
                    found = _column(builder, packing, start, vector, builder.and_(column, WORD(COLUMNS - 1)))
                    builder.store(found, place_of)
                builder.store(column, known)
            to = builder.add(sums, builder.mul(token, WORD(4 * ROWS)))
            for vector, place_of in enumerate(columns):
                at = pointer(builder, builder.add(to, WORD(64 * vector)), FLOATS)
                value = emit_fma(builder, builder.load(place_of), repeat(builder, x, LANES), builder.load(at, align=4))
                builder.store(value, at, align=4)

    return _function(f"outliers_{packing.name}", 6, body)


def _column(builder: Any, packing: Packing, start: Any, vector: int, column: Any) -> Any:
    """A column of the block at ``start``: float32 of 16 of its rows."""
    quad = builder.lshr(column if packing.bits == 8 else builder.and_(column, WORD(15)), WORD(2))
    codes = builder.add(builder.add(start, WORD(packing.head + 64 * vector)), builder.mul(quad, WORD(QUAD)))
    words = builder.load(pointer(builder, codes, WIDE_INTS), align=1)  # each row's quad
    bit = builder.shl(builder.and_(column, WORD(3)), WORD(3))  # where the code begins in it
    if packing.bits == 4:
        bit = builder.add(bit, builder.lshr(builder.and_(column, WORD(16)), WORD(2)))
    up = builder.trunc(builder.sub(WORD(32 - packing.bits), bit), INT)
    down = builder.ashr if packing.bits == 8 else builder.lshr
    values = down(builder.shl(words, repeat(builder, up, LANES)), const(WIDE_INTS, 32 - packing.bits))
    if _zero(packing):
        values = builder.sub(values, const(WIDE_INTS, 1 << _zero(packing)))
    found, scales = builder.sitofp(values, FLOATS), _factors(builder, start, vector)
    if not packing.minima:
        return builder.fmul(found, scales)
    return emit_fma(builder, found, scales, _factors(builder, builder.add(start, WORD(2 * ROWS)), vector))


def _function(name: str, parameters: int, body: Callable[..., None]) -> Callable[..., None]:
    """``body(builder, *addresses)`` as a function of its own: once in a kernel, not mixed up with what calls it."""

    @emits(types.void, *[types.int64] * parameters)
    def call(builder: Any, *values: Any) -> None:
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [WORD] * parameters), name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            inside = ir.IRBuilder(function.append_basic_block("entry"))
            body(inside, *function.args)
            inside.ret_void()
        builder.call(function, values)

    return call


@dataclass(frozen=True)
class _Tile:
    """The body of a tile, see :func:`integer_tile`."""

    packing: Packing
    tokens: int
    vectors: int
    panel: int
    asks: bool

    def emit(self, builder: Any, *values: Any) -> None:
        """Writes a loop over groups for each ``vectors`` of a block."""
        for first in range(0, VECTORS, self.vectors):
            self._loop(builder, range(first, first + self.vectors), values)

    def _loop(self, builder: Any, vectors: range, values: tuple[Any, ...]) -> None:
        weights, groups, first, ask, lines, out = values
        asked = self._asker(builder, groups, ask, lines) if self.asks and vectors.start == 0 else None
        places = [[cgutils.alloca_once(builder, FLOATS) for _ in vectors] for _ in range(self.tokens)]
        for place in itertools.chain(*places):
            builder.store(const(FLOATS, 0), place)
        with cgutils.for_range(builder, groups) as loop:
            start = builder.add(weights, builder.mul(loop.index, WORD(self.packing.nbytes)))
            record = builder.add(first, builder.mul(loop.index, WORD(RECORD * self.panel)))
            if asked:
                asked(loop.index)
            self._add_scaled(builder, vectors, start, record, self._sums(builder, vectors, start, record), places)
        for token, row in enumerate(places):
            for vector, place in zip(vectors, row, strict=True):
                at = pointer(builder, builder.add(out, WORD((token * VECTORS + vector) * 64)), FLOATS)
                builder.store(builder.fadd(builder.load(place), builder.load(at, align=4)), at, align=4)

    def _asker(self, builder: Any, groups: Any, ask: Any, lines: Any) -> Callable[[Any], None]:
        """What asks for memory with each group, whose number it takes."""
        following, left = (cgutils.alloca_once_value(builder, value) for value in (ask, lines))
        share = builder.udiv(builder.add(lines, builder.sub(groups, WORD(1))), groups)

        def with_one(group: Any) -> None:
            start = builder.add(ask, builder.mul(group, WORD(self.packing.nbytes)))
            for line in range(0, self.packing.nbytes, LINE):
                emit_prefetch(builder, builder.add(start, WORD(line)))

        def with_many(_group: Any) -> None:
            here, most = builder.load(following), builder.load(left)
            count = builder.select(builder.icmp_unsigned("<", share, most), share, most)
            with cgutils.for_range(builder, count) as loop:  # not into the first cache: what is multiplied needs that
                emit_prefetch(builder, builder.add(here, builder.mul(loop.index, WORD(LINE))), near=False)
            builder.store(builder.add(here, builder.mul(count, WORD(LINE))), following)
            builder.store(builder.sub(most, count), left)

        return with_one if self.tokens == 1 else with_many

    def _head(self, builder: Any, record: Any, part: int, token: int, kind: Any) -> Any:
        """A number of a token's group, in every lane."""
        at = builder.add(record, WORD(part * self.panel + token * 4))
        return repeat(builder, builder.load(pointer(builder, at, kind), align=4), LANES)

    def _sums(self, builder: Any, vectors: range, start: Any, record: Any) -> Rows:
        codes = [builder.add(start, WORD(self.packing.head + 64 * vector)) for vector in vectors]
        corrections = [self._head(builder, record, LESS, token, INT) for token in range(self.tokens)]
        group = Tokens(builder.add(record, WORD(CODES * self.panel)), self.tokens, 4 * self.panel, corrections)
        return group_sums(self.packing.bits)(builder, codes, group, _zero(self.packing))

    def _add_scaled(self, builder: Any, vectors: range, start: Any, record: Any, sums: Rows, places: Any) -> None:
        """Adds a group's sums to those in ``places``."""
        scales = [_factors(builder, start, vector) for vector in vectors]
        at, minima = builder.add(start, WORD(2 * ROWS)), None
        if self.packing.minima:
            minima = [_factors(builder, at, vector) for vector in vectors]
        for token, row in enumerate(places):
            scale, total = (self._head(builder, record, part, token, FLOAT) for part in (SCALE, TOTAL))
            for i, place in enumerate(row):
                value = builder.fmul(builder.sitofp(sums[token][i], FLOATS), scale)
                value = emit_fma(builder, value, scales[i], builder.load(place))
                if minima:
                    value = emit_fma(builder, minima[i], total, value)
                builder.store(value, place)


def _zero(packing: Packing) -> int:
    """A weight's code is ``2**zero`` more than stands for it; 0: it is not."""
    return 3 if packing.bits == 4 and not packing.minima else 0


def _factors(builder: Any, address: Any, vector: int) -> Any:
    """Float32 of sixteen of the scales or minima at ``address``."""
    halves = emit_load(builder, builder.add(address, WORD(2 * LANES * vector)), SHORT)
    return emit_half(builder, halves, lambda element: ir.VectorType(element, LANES))
