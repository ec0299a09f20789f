"""Register tiles: dot products of a few tokens with a few weight rows at once, sums kept in registers.

One product is the sum over 16 lanes of ``x[k] * w[k]``, each lane running through k = lane, lane + 16, … in order.
Every tile sums each product in just this order, so tiles of different shapes give the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils

from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import (
    F32,
    FLOAT,
    LANES,
    emit_constant,
    emit_fma,
    emit_fold,
    emit_load,
    emit_load_first,
)


def dot_tile(tokens: int, rows: int) -> Callable[..., None]:
    """``tile(*x, *w, length, out)``: float32 ``out[token * 16 + row]`` = ``x[token] · w[row]``.

    ``x`` are ``tokens`` addresses, ``w`` are ``rows``; all of ``length`` float32.
    """

    @emits(types.void, *[types.int64] * (tokens + rows + 2))
    def tile(builder: Any, *values: Any) -> None:
        xs, ws, (length, out) = values[:tokens], values[tokens : tokens + rows], values[-2:]
        sums = [[cgutils.alloca_once(builder, F32.ir) for _ in ws] for _ in xs]
        for place in itertools.chain(*sums):
            builder.store(emit_constant(F32, 0.0), place)

        def step(offset: Any, load: Callable[[Any], Any]) -> None:
            inputs = [load(builder.add(x, offset)) for x in xs]
            for row, w in enumerate(ws):
                weight = load(builder.add(w, offset))
                for token, x in enumerate(inputs):
                    place = sums[token][row]
                    builder.store(emit_fma(builder, x, weight, builder.load(place)), place)

        whole = builder.sdiv(length, WORD(LANES))
        with cgutils.for_range(builder, whole) as loop:
            step(builder.mul(loop.index, WORD(LANES * 4)), lambda at: emit_load(builder, at, FLOAT))
        rest = builder.srem(length, WORD(LANES))
        with builder.if_then(builder.icmp_signed(">", rest, WORD(0)), likely=False):
            step(builder.mul(whole, WORD(LANES * 4)), lambda at: emit_load_first(builder, at, rest, FLOAT, 4))
        for token, places in enumerate(sums):
            for row, place in enumerate(places):
                value = emit_fold(builder, builder.load(place), builder.fadd)
                at = builder.add(out, WORD((token * LANES + row) * 4))
                builder.store(value, pointer(builder, at, FLOAT), align=4)

    return tile


TOKENS = 3  # of the large tile: 3 tokens x 2 rows x 16 lanes are 12 AVX2 registers
tile_3x2 = dot_tile(TOKENS, 2)
