"""The ops before attention on packed integer weights, see :mod:`llmcore_numba.qkv`."""

from __future__ import annotations

from llmcore.native.abi import inlined, specialised
from llmcore_numba.integer_linear import (
    NBYTES,
    TOKEN_CHUNK,
    multiply_strip,
    parts_for,
    strip,
)
from llmcore_numba.packing import COLUMNS, ROWS
from llmcore_numba.qkv import Multiplier, alone_by, project_by


def _strip_bytes(inner):
    return inner // COLUMNS * NBYTES


def _multiply(tokens, begin, end, at, weight, bias, y, inner, outer, following, out):
    multiply_strip(strip, NBYTES, tokens, begin, end, at, weight, bias, 0, y, inner, outer, following, out)


def _multiplier(op: str, name: str, *, alone: bool) -> Multiplier:
    parts = parts_for(op, name, alone=alone)
    strip_bytes = inlined(specialised(_strip_bytes, f"strip_bytes_{name}", **parts))
    multiply = inlined(specialised(_multiply, f"multiply_{name}", **parts))
    return Multiplier(ROWS, TOKEN_CHUNK, strip_bytes, multiply, parts["tokens_of"])


project, alone = project_by(_multiplier), alone_by(_multiplier)
