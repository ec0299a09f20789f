"""The ops before attention on packed float weights, see :mod:`llmcore_numba.qkv`."""

from __future__ import annotations

from llmcore.native.abi import inlined, specialised
from llmcore_numba.float_linear import (
    KIND,
    TOKEN_CHUNK,
    block_bytes,
    factors_of,
    multiply_strip,
    parts_for,
)
from llmcore_numba.float_packing import ROWS
from llmcore_numba.float_tile import STRIP
from llmcore_numba.qkv import Multiplier, alone_by, project_by


def _strip_bytes(inner):
    return STRIP * block_bytes(KIND, factors_of(KIND, inner))


def _multiply(tokens, begin, end, at, weight, bias, y, inner, outer, _following, out):
    multiply_strip(KIND, tokens, begin, end, at // ROWS, weight, bias, 0, y, inner, outer, out)


def _multiplier(op: str, name: str, *, alone: bool) -> Multiplier:
    parts = parts_for(op, name, alone=alone)
    strip_bytes = inlined(specialised(_strip_bytes, f"strip_bytes_{name}", **parts))
    multiply = inlined(specialised(_multiply, f"multiply_{name}", **parts))
    return Multiplier(STRIP * ROWS, TOKEN_CHUNK, strip_bytes, multiply, parts["tokens_of"])


project, alone = project_by(_multiplier), alone_by(_multiplier)
