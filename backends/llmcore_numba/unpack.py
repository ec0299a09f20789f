"""Weight formats: for each, the function that makes 16 float32 of the bytes in the checkpoint.

``unpack(block, part)`` gives the weights ``16 * part`` … ``16 * part + 15`` of the block at address ``block``. A new
format is one such function and one line in :data:`FORMATS`. Formats without blocks are read 16 elements at a time;
theirs also have ``unpack_first(block, count)``, for the end of a row whose length is no multiple of 16: ``count``
weights and zeros. The layouts of the blocks are told in :mod:`llmcore.weights.quants` and
:mod:`llmcore.weights.k_quants`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from llmcore.native import vector
from llmcore.native.abi import inlined, load_f16, load_i8, load_u8, load_u16
from llmcore.native.vector import bits, fma, from_i8, from_u8, splat, splat_u8, zeros


class Format(NamedTuple):
    """One format, as kernels are compiled for it.

    Attributes:
        unpack, unpack_first: see above.
        block, block_bytes: elements and bytes of one block.
    """

    unpack: Callable[..., Any]
    unpack_first: Callable[..., Any]
    block: int
    block_bytes: int


# --- without blocks ---


@inlined
def f32(block, _part):
    return vector.load(block)


@inlined
def f32_first(block, count):
    return vector.load_first(block, count)


@inlined
def f16(block, _part):
    return vector.load_f16(block)


@inlined
def f16_first(block, count):
    return vector.load_f16_first(block, count)


@inlined
def bf16(block, _part):
    return vector.load_bf16(block)


@inlined
def bf16_first(block, count):
    return vector.load_bf16_first(block, count)


# --- blocks of 32 ---


@inlined
def field(address, shift, width):
    """Bits ``shift`` … ``shift + width - 1`` of each of 16 bytes."""
    return (vector.load_u8(address) >> splat_u8(np.uint8(shift))) & splat_u8(np.uint8((1 << width) - 1))


@inlined
def fifth(address, part):
    """Bit ``16 * part + i`` of the 32 at ``address``, moved to bit 4 of lane ``i``."""
    return bits(load_u16(address + 2 * part)) << splat_u8(np.uint8(4))


@inlined
def q8_0(block, part):
    return from_i8(vector.load_u8(block + 2 + 16 * part)) * splat(load_f16(block))


@inlined
def q4_0(block, part):
    return (from_u8(field(block + 2, 4 * part, 4)) - splat(8.0)) * splat(load_f16(block))


@inlined
def q4_1(block, part):
    return fma(from_u8(field(block + 4, 4 * part, 4)), splat(load_f16(block)), splat(load_f16(block + 2)))


@inlined
def q5_0(block, part):
    q = field(block + 6, 4 * part, 4) | fifth(block + 2, part)
    return (from_u8(q) - splat(16.0)) * splat(load_f16(block))


@inlined
def q5_1(block, part):
    q = field(block + 8, 4 * part, 4) | fifth(block + 4, part)
    return fma(from_u8(q), splat(load_f16(block)), splat(load_f16(block + 2)))


# --- super-blocks of 256: 16 parts, whose fields lie in planes of 32 or 64 bytes ---


@inlined
def two_bits(packed, part):
    """The 2-bit fields of a part: each 32 bytes hold 4 planes of 32 elements."""
    return field(packed + part // 8 * 32 + part % 2 * 16, part % 8 // 2 * 2, 2)


@inlined
def one_bit(packed, part):
    """The 1-bit fields of a part: 32 bytes hold 8 planes of 32 elements."""
    return field(packed + part % 2 * 16, part // 2, 1)


@inlined
def four_bits(packed, part):
    """The 4-bit fields of a part: each 32 bytes hold 2 planes of 32 elements."""
    return field(packed + part // 4 * 32 + part % 2 * 16, part % 4 // 2 * 4, 4)


@inlined
def scale_and_minimum(packed, sub):
    """The 6-bit scale and minimum of sub-block ``sub`` < 8, out of the 12 bytes of Q4_K and Q5_K."""
    if sub < 4:
        return load_u8(packed + sub) & 63, load_u8(packed + 4 + sub) & 63
    low = load_u8(packed + 4 + sub)
    scale = low & 15 | load_u8(packed + sub - 4) >> 6 << 4
    return scale, low >> 4 | load_u8(packed + sub) >> 6 << 4


@inlined
def scaled(q, factor, scale, minimum_factor, minimum):
    """``factor * scale * q - minimum_factor * minimum``, both factors IEEE halves at an address."""
    low = load_f16(minimum_factor) * np.float32(minimum)
    return fma(from_u8(q), splat(load_f16(factor) * np.float32(scale)), zeros() - splat(low))


@inlined
def q2_k(block, part):
    packed = load_u8(block + part)
    return scaled(two_bits(block + 16, part), block + 80, packed & 15, block + 82, packed >> 4)


@inlined
def q3_k(block, part):
    q = two_bits(block + 32, part) | one_bit(block, part) << splat_u8(np.uint8(2))
    low = load_u8(block + 96 + part % 8) >> 4 * (part // 8) & 15
    high = load_u8(block + 104 + part % 4) >> 2 * (part // 4) & 3
    scale = np.float32((low | high << 4) - 32)
    return (from_u8(q) - splat(4.0)) * splat(load_f16(block + 108) * scale)


@inlined
def q4_k(block, part):
    scale, minimum = scale_and_minimum(block + 4, part // 2)
    return scaled(four_bits(block + 16, part), block, scale, block + 2, minimum)


@inlined
def q5_k(block, part):
    scale, minimum = scale_and_minimum(block + 4, part // 2)
    q = four_bits(block + 48, part) | one_bit(block + 16, part) << splat_u8(np.uint8(4))
    return scaled(q, block, scale, block + 2, minimum)


@inlined
def q6_k(block, part):
    low = field(block + part // 8 * 64 + part % 4 * 16, part % 8 // 4 * 4, 4)
    q = low | two_bits(block + 128, part) << splat_u8(np.uint8(4))
    return (from_u8(q) - splat(32.0)) * splat(load_f16(block + 208) * np.float32(load_i8(block + 192 + part)))


@inlined
def no_rest(_block, _count):
    """In place of ``unpack_first``: rows of this format are whole blocks."""
    return zeros()


FORMATS = {
    "F32": Format(f32, f32_first, 16, 64),
    "F16": Format(f16, f16_first, 16, 32),
    "BF16": Format(bf16, bf16_first, 16, 32),
    "Q8_0": Format(q8_0, no_rest, 32, 34),
    "Q4_0": Format(q4_0, no_rest, 32, 18),
    "Q4_1": Format(q4_1, no_rest, 32, 20),
    "Q5_0": Format(q5_0, no_rest, 32, 22),
    "Q5_1": Format(q5_1, no_rest, 32, 24),
    "Q2_K": Format(q2_k, no_rest, 256, 84),
    "Q3_K": Format(q3_k, no_rest, 256, 110),
    "Q4_K": Format(q4_k, no_rest, 256, 144),
    "Q5_K": Format(q5_k, no_rest, 256, 176),
    "Q6_K": Format(q6_k, no_rest, 256, 210),
}
