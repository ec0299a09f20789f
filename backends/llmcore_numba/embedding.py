"""embedding: rows of a table, unpacked straight to the output. ``embedding.Q8_0`` is the kernel for Q8_0 weights."""

from __future__ import annotations

from llmcore.native.abi import claim, dim, load_i32, tensor
from llmcore.native.vector import store_first
from llmcore_numba.operands import operands_of
from llmcore_numba.unpack import FORMATS
from llmcore_numba.weights import PerFormat, row_bytes, unpack_row

FORMAT = FORMATS["F32"]  # each kernel has its own

IDS, WEIGHT, Y, T, _V, D = operands_of("embedding")


@PerFormat
def embedding(operands, _thread, _threads):
    tokens, width = dim(operands, T), dim(operands, D)
    ids, weight, y = tensor(operands, IDS), tensor(operands, WEIGHT), tensor(operands, Y)
    whole = width & ~15
    token = claim(operands)
    while token < tokens:
        row, out = weight + load_i32(ids + token * 4) * row_bytes(FORMAT, width), y + token * width * 4
        unpack_row(FORMAT, row, whole, out)
        if whole < width:  # the end of a row may not touch the next token
            last = FORMAT.unpack_first(row + row_bytes(FORMAT, whole), width - whole)
            store_first(out + whole * 4, last, width - whole)
        token = claim(operands)
