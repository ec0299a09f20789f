"""Token embedding: the rows that a step needs are read as they lie in the checkpoint, and become numbers on the way.

Quantized rows are unpacked element by element, every one from its own bytes: a step reads a few rows, which lie in the
cache after the first byte of each. Layouts: :mod:`llmcore.weights.quants` and :mod:`llmcore.weights.k_quants`.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl

from llmcore.weights.formats import FORMATS
from llmcore_triton.configs import Config, config, warps
from llmcore_triton.elementwise import gather

BLOCK = 512  # elements of a program, at most


@triton.jit
def byte(pointer):
    """The byte at ``pointer`` as an int32."""
    return tl.load(pointer).to(tl.int32)


@triton.jit
def half(pointer):
    """The float16 at ``pointer``, which need not be even, as float32."""
    bits = byte(pointer) | byte(pointer + 1) << 8
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def signed(pointer):
    """The int8 at ``pointer`` as float32."""
    return tl.load(pointer).to(tl.int8, bitcast=True).to(tl.float32)


@triton.jit
def field(pointer, i, WIDTH: tl.constexpr, BITS: tl.constexpr):
    """Field ``i`` of ``BITS`` bits: a group of ``WIDTH`` bytes holds ``WIDTH`` fields in the lowest bits of each, then
    as many in the next bits, and so on."""
    planes: tl.constexpr = 8 // BITS
    at = i // (WIDTH * planes) * WIDTH + i % WIDTH
    shift = i // WIDTH % planes * BITS
    return byte(pointer + at) >> shift & ((1 << BITS) - 1)


@triton.jit
def block_of_32(pointer, i, FORMAT: tl.constexpr):
    """Element ``i`` of the block at ``pointer``, in Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1."""
    d = half(pointer)
    if FORMAT == "Q8_0":
        value = signed(pointer + 2 + i) * d
    elif FORMAT == "Q4_0":
        value = (field(pointer + 2, i, 16, 4) - 8).to(tl.float32) * d
    elif FORMAT == "Q4_1":
        value = field(pointer + 4, i, 16, 4).to(tl.float32) * d + half(pointer + 2)
    elif FORMAT == "Q5_0":
        q = field(pointer + 6, i, 16, 4) | field(pointer + 2, i, 1, 1) << 4
        value = (q - 16).to(tl.float32) * d
    else:
        tl.static_assert(FORMAT == "Q5_1")
        q = field(pointer + 8, i, 16, 4) | field(pointer + 4, i, 1, 1) << 4
        value = q.to(tl.float32) * d + half(pointer + 2)
    return value


@triton.jit
def six_bits(pointer, s):
    """Scale and minimum ``s`` of the 8 that Q4_K and Q5_K keep in 12 bytes."""
    first, second, third = byte(pointer + s % 4), byte(pointer + 4 + s % 4), byte(pointer + 8 + s % 4)
    scale = tl.where(s < 4, first & 63, third & 15 | first >> 6 << 4)
    minimum = tl.where(s < 4, second & 63, third >> 4 | second >> 6 << 4)
    return scale.to(tl.float32), minimum.to(tl.float32)


@triton.jit
def block_of_256(pointer, i, FORMAT: tl.constexpr):
    """Element ``i`` of the super-block at ``pointer``, in Q2_K to Q6_K."""
    if FORMAT == "Q2_K":
        packed = byte(pointer + i // 16)
        scale = half(pointer + 80) * (packed & 15).to(tl.float32)
        value = scale * field(pointer + 16, i, 32, 2).to(tl.float32) - half(pointer + 82) * (packed >> 4).to(tl.float32)
    elif FORMAT == "Q3_K":
        q = (field(pointer + 32, i, 32, 2) | field(pointer, i, 32, 1) << 2) - 4
        scale = (field(pointer + 96, i // 16, 8, 4) | field(pointer + 104, i // 16, 4, 2) << 4) - 32
        value = half(pointer + 108) * scale.to(tl.float32) * q.to(tl.float32)
    elif FORMAT == "Q6_K":
        q = (field(pointer, i, 64, 4) | field(pointer + 128, i, 32, 2) << 4) - 32
        value = half(pointer + 208) * signed(pointer + 192 + i // 16) * q.to(tl.float32)
    else:
        scale, minimum = six_bits(pointer + 4, i // 32)
        if FORMAT == "Q4_K":
            q = field(pointer + 16, i, 32, 4)
        else:
            tl.static_assert(FORMAT == "Q5_K")
            q = field(pointer + 48, i, 32, 4) | field(pointer + 16, i, 32, 1) << 4
        value = half(pointer) * scale * q.to(tl.float32) - half(pointer + 2) * minimum
    return value


@triton.jit
def _embedding(
    ids_ptr, weight_ptr, y_ptr, row_bytes, D: tl.constexpr, FORMAT: tl.constexpr,
    ELEMENTS: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``BLOCK`` elements of one row; a block of ``FORMAT`` is ``ELEMENTS`` elements in ``BYTES`` bytes."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids_ptr + token).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # all below D
    pointer = weight_ptr + row * row_bytes + column // ELEMENTS * BYTES
    if ELEMENTS == 32:
        values = block_of_32(pointer, column % 32, FORMAT)
    else:
        values = block_of_256(pointer, column % 256, FORMAT)
    tl.store(y_ptr + token * D + column, values.to(y_ptr.dtype.element_ty))


def embedding(ids: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> None:
    """Row ``ids[t]`` of ``weight`` [V, D], in whatever type it is, into ``y`` [T, D]."""
    gather(weight, ids, y)


def _quantized(name: str, ids: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> None:
    """The same for ``weight`` [V, bytes of a row] of format ``name``."""
    tokens, width = y.shape
    if not tokens:
        return
    block = min(BLOCK, width & -width)  # divides every width: blocks have at least 32 elements
    chosen = config("embedding", (tokens, width), Config({}, num_warps=warps(block, each=4)))
    form = FORMATS[name]
    _embedding[(tokens, width // block)](
        ids, weight, y, weight.shape[1], D=width, FORMAT=name, ELEMENTS=form.block, BYTES=form.block_bytes,
        BLOCK=block, **chosen.options,
    )  # fmt: skip


q8_0, q4_0, q4_1, q5_0, q5_1 = (partial(_quantized, name) for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"))
q2_k, q3_k, q4_k, q5_k, q6_k = (partial(_quantized, name) for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"))
