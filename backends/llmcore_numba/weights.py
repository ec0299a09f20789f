"""Rows of a quantized weight matrix against tokens in float32, whatever the weight's format.

Many tokens share a row that is unpacked once into scratch memory; for a single token the weights never leave the
registers. Both ways sum each product in the same order (:mod:`llmcore_numba.tile`), so they give the same bits.

``fmt`` is a :class:`llmcore_numba.unpack.Format`, a constant of the kernel that is compiled; ``inner`` is the length of
a row.
"""

from __future__ import annotations

from llmcore.native.abi import NativeFunction, inlined, native_kernel, scratch, specialised, store_f32
from llmcore.native.vector import fma, load, load_first, store, store_first, total, zeros
from llmcore_numba.scratch import FOR_ROWS
from llmcore_numba.tile import TOKENS, tile_3x2
from llmcore_numba.unpack import FORMATS

ROWS = 16  # weight rows of a chunk at most: one vector of results for each token
TOKEN_CHUNK = 192  # tokens of a chunk: unpacking the rows again for the next ones costs little by then

F32 = FORMATS["F32"]


class PerFormat:
    """One kernel for every weight format, made of one template: ``kernels.Q4_1`` is its native kernel for Q4_1.

    Args:
        template: ``f(operands, thread, threads)`` over the global name ``FORMAT``.
    """

    def __init__(self, template) -> None:
        self.template = template

    def __getattr__(self, name: str) -> NativeFunction:
        if name not in FORMATS:
            raise AttributeError(f"{self.template.__name__} has no kernel for {name}")
        kernel = native_kernel(specialised(self.template, f"{self.template.__name__}_{name}", FORMAT=FORMATS[name]))
        setattr(self, name, kernel)
        return kernel


@inlined
def row_bytes(fmt, inner):
    """Bytes of a row in the checkpoint."""
    return inner // fmt.block * fmt.block_bytes + inner % fmt.block * fmt.block_bytes // fmt.block


@inlined
def unpack_row(fmt, row, inner, out):
    """Writes one row of whole blocks as float32."""
    for block in range(inner // fmt.block):
        for part in range(fmt.block // 16):
            store(out + (block * fmt.block + part * 16) * 4, fmt.unpack(row + block * fmt.block_bytes, part))


@inlined
def rows_per_chunk(inner):
    """How many rows a chunk has: as many as fit the scratch memory."""
    return max(1, min(ROWS, FOR_ROWS // (inner * 4)))


@inlined
def unpack_rows(fmt, weight, first, count, inner, out):
    """Writes ``count`` rows from row ``first`` on as float32."""
    for row in range(count):
        unpack_row(fmt, weight + (first + row) * row_bytes(fmt, inner), inner, out + row * inner * 4)


@inlined
def one_token(fmt, x, rows, stride, count, inner, out):
    """``out[row]`` = token ``x`` times each of ``count`` <= 16 rows, four at a time; the last may be repeated."""
    last = count - 1
    for row in range(0, count, 4):
        a, b = rows + row * stride, rows + min(row + 1, last) * stride
        c, d = rows + min(row + 2, last) * stride, rows + min(row + 3, last) * stride
        sum_a, sum_b, sum_c, sum_d = zeros(), zeros(), zeros(), zeros()
        for block in range(inner // fmt.block):
            at = block * fmt.block_bytes
            for part in range(fmt.block // 16):
                v = load(x + (block * fmt.block + part * 16) * 4)
                sum_a = fma(fmt.unpack(a + at, part), v, sum_a)
                sum_b = fma(fmt.unpack(b + at, part), v, sum_b)
                sum_c = fma(fmt.unpack(c + at, part), v, sum_c)
                sum_d = fma(fmt.unpack(d + at, part), v, sum_d)
        store_f32(out + row * 4, total(sum_a))
        store_f32(out + row * 4 + 4, total(sum_b))
        store_f32(out + row * 4 + 8, total(sum_c))
        store_f32(out + row * 4 + 12, total(sum_d))


@inlined
def three_tokens(x, token, end, rows, count, inner, out):
    """``out[i, row]`` for tokens ``token + i`` < ``end``, i < 3; those beyond the last repeat it."""
    last_token, last_row = end - 1, count - 1
    x0, x1 = x + token * inner * 4, x + min(token + 1, last_token) * inner * 4
    x2 = x + min(token + 2, last_token) * inner * 4
    for row in range(0, count, 2):
        w0, w1 = rows + row * inner * 4, rows + min(row + 1, last_row) * inner * 4
        tile_3x2(x0, x1, x2, w0, w1, inner, out + row * 4)


@inlined
def few_tokens(x, token, end, rows, count, inner, out):
    """``out[i, row]`` (16 floats a row) for up to three tokens from ``token`` with unpacked rows; returns how many."""
    if end - token == 1:
        one_token(F32, x + token * inner * 4, rows, inner * 4, count, inner, out)
        return 1
    three_tokens(x, token, end, rows, count, inner, out)
    return min(TOKENS, end - token)


@inlined
def load_up_to(address, count):
    """``count`` <= 16 float32."""
    return load(address) if count == 16 else load_first(address, count)


@inlined
def store_up_to(address, vector, count):
    """Writes ``count`` <= 16 float32."""
    if count == 16:
        store(address, vector)
    else:
        store_first(address, vector, count)


@inlined
def results_of(operands, thread):
    """Address of the part of a thread's scratch that rows leave free."""
    return scratch(operands, thread) + FOR_ROWS
