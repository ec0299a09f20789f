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
)


def dot_tile(tokens: int, rows: int) -> Callable[..., None]:
    """``tile(*x, *w, length, out)``: float32 ``out[token * 16 + row]`` = ``x[token] · w[row]``.

    ``x`` are ``tokens`` addresses, ``w`` are ``rows``; all of ``length`` float32, whole vectors.
    """

    @emits(types.void, *[types.int64] * (tokens + rows + 2))
    def tile(builder: Any, *values: Any) -> None:
        xs, ws, (length, out) = values[:tokens], values[tokens : tokens + rows], values[-2:]
        sums = [[cgutils.alloca_once(builder, F32.ir) for _ in ws] for _ in xs]
        for place in itertools.chain(*sums):
            builder.store(emit_constant(F32, 0.0), place)

        with cgutils.for_range(builder, builder.sdiv(length, WORD(LANES))) as loop:
            offset = builder.mul(loop.index, WORD(LANES * 4))
            inputs = [emit_load(builder, builder.add(x, offset), FLOAT) for x in xs]
            for row, w in enumerate(ws):
                weight = emit_load(builder, builder.add(w, offset), FLOAT)
                for token, x in enumerate(inputs):
                    place = sums[token][row]
                    builder.store(emit_fma(builder, x, weight, builder.load(place)), place)
        for token, places in enumerate(sums):
            for row, place in enumerate(places):
                value = emit_fold(builder, builder.load(place), builder.fadd)
                at = builder.add(out, WORD((token * LANES + row) * 4))
                builder.store(value, pointer(builder, at, FLOAT), align=4)

    return tile


TOKENS = 3  # of the large tile: 3 tokens x 2 rows x 16 lanes are 12 AVX2 registers
tile_3x2 = dot_tile(TOKENS, 2)
