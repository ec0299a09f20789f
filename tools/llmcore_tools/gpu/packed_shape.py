"""The shape of a packed weight, without packing it: from what the packer makes of small ones.

Packers pad rows and columns to whole tiles and lay them out anew, so each axis of the result is a polynomial of the
first degree in the number of rows and in that of columns, as long as these leave the same remainder on division by the
tile. Four small weights with the remainders of the large one settle its coefficients, and a fifth tests them.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np

from llmcore.errors import PluginError
from llmcore.plugins import resolve
from llmcore.testing.operands import random_weight
from llmcore.weights.formats import tensor_format

PERIOD = 512  # of remainders: a multiple of any tile's rows and columns
ODD = "cannot tell the shape of packed weights: {pack} does not pad to tiles that divide {period}"


@cache
def packed_shape(pack: str, form: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Shape and torch's name of the type of a weight ``[N, K]`` of format ``form`` as a kernel reads it.

    Args:
        pack: import string of the kernel's packer; empty where it reads the weight as it lies in the file.

    Raises:
        PluginError: the packer's result follows no such rule.
    """
    rows, columns = shape
    if not pack:
        kind = tensor_format(form)
        if kind.quantized:
            return (rows, kind.nbytes(columns)), "uint8"
        return shape, _torch_name(kind.plain)
    n, k = rows % PERIOD, columns % PERIOD
    corners = {(i, j): _probe(pack, form, n + i * PERIOD, k + j * PERIOD) for i in (1, 2) for j in (1, 2)}
    dtype, rank = corners[1, 1][1], len(corners[1, 1][0])
    if any(len(found[0]) != rank for found in corners.values()):
        raise PluginError(ODD.format(pack=pack, period=PERIOD))

    def at(row: Fraction, column: Fraction) -> tuple[int, ...]:
        sizes = []
        for axis in range(rank):
            a, b, c, d = (corners[key][0][axis] for key in ((1, 1), (2, 1), (1, 2), (2, 2)))
            size = a + (b - a) * row + (c - a) * column + (d - b - c + a) * row * column
            if size.denominator != 1:
                raise PluginError(ODD.format(pack=pack, period=PERIOD))
            sizes.append(int(size))
        return tuple(sizes)

    two = Fraction(2)
    if at(two, two) != _probe(pack, form, n + 3 * PERIOD, k + 3 * PERIOD)[0]:
        raise PluginError(ODD.format(pack=pack, period=PERIOD))
    return at(Fraction(rows - n, PERIOD) - 1, Fraction(columns - k, PERIOD) - 1), dtype


@cache
def _probe(pack: str, form: str, rows: int, columns: int) -> tuple[tuple[int, ...], str]:
    """What the packer makes of a small weight."""
    weight = random_weight("probe", (rows, columns), tensor_format(form), np.random.default_rng(0))
    made = resolve(pack)(weight)
    return made.shape, made.dtype.name


def _torch_name(plain: str) -> str:
    return plain if plain == "bfloat16" else np.dtype(plain).name
