"""Rows of a weight matrix against tokens, whatever the weight's format.

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
    """Writes one row as float32, and zeros up to a multiple of 16."""
    for block in range(inner // fmt.block):
        for part in range(fmt.block // 16):
            store(out + (block * fmt.block + part * 16) * 4, fmt.unpack(row + block * fmt.block_bytes, part))
    whole = inner & ~15
    if fmt.block == 16 and whole < inner:
        store(out + whole * 4, fmt.unpack_first(row + whole // 16 * fmt.block_bytes, inner - whole))


@inlined
def stride_of(fmt, inner):
    """Bytes from one float32 row to the next."""
    return inner * 4 if fmt.mapped else (inner + 15 & ~15) * 4


@inlined
def rows_per_chunk(fmt, inner):
    """How many rows a chunk has: as many as fit the scratch memory."""
    return ROWS if fmt.mapped else max(1, min(ROWS, FOR_ROWS // stride_of(fmt, inner)))


@inlined
def float_rows(fmt, weight, first, count, inner, work):
    """Address of ``count`` float32 rows from row ``first``: in the checkpoint, or else unpacked to ``work``."""
    if fmt.mapped:
        return weight + first * inner * 4
    for row in range(count):
        unpack_row(fmt, weight + (first + row) * row_bytes(fmt, inner), inner, work + row * stride_of(fmt, inner))
    return work


@inlined
def one_token(fmt, x, rows, stride, count, inner, out):
    """``out[row]`` = token ``x`` times each of ``count`` <= 16 rows, four at a time; the last may be repeated."""
    last = count - 1
    whole = inner & ~15
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
        if fmt.block == 16 and whole < inner:
            at, rest = whole // 16 * fmt.block_bytes, inner - whole
            v = load_first(x + whole * 4, rest)
            sum_a = fma(fmt.unpack_first(a + at, rest), v, sum_a)
            sum_b = fma(fmt.unpack_first(b + at, rest), v, sum_b)
            sum_c = fma(fmt.unpack_first(c + at, rest), v, sum_c)
            sum_d = fma(fmt.unpack_first(d + at, rest), v, sum_d)
        store_f32(out + row * 4, total(sum_a))
        store_f32(out + row * 4 + 4, total(sum_b))
        store_f32(out + row * 4 + 8, total(sum_c))
        store_f32(out + row * 4 + 12, total(sum_d))


@inlined
def three_tokens(x, token, end, rows, stride, count, inner, out):
    """``out[i, row]`` for tokens ``token + i`` < ``end``, i < 3; those beyond the last repeat it."""
    last_token, last_row = end - 1, count - 1
    x0, x1 = x + token * inner * 4, x + min(token + 1, last_token) * inner * 4
    x2 = x + min(token + 2, last_token) * inner * 4
    for row in range(0, count, 2):
        w0, w1 = rows + row * stride, rows + min(row + 1, last_row) * stride
        tile_3x2(x0, x1, x2, w0, w1, inner, out + row * 4)


@inlined
def few_tokens(x, token, end, rows, stride, count, inner, out):
    """``out[i, row]`` (16 floats a row) for up to three tokens from ``token`` with float32 rows; returns how many."""
    if end - token == 1:
        one_token(F32, x + token * inner * 4, rows, stride, count, inner, out)
        return 1
    three_tokens(x, token, end, rows, stride, count, inner, out)
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
