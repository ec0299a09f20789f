"""Packed weights: how quantized matrices lie in memory for the kernels, and what packs them.

A unit is 32 columns of one row. Its codes are 4 words (codes of 4 bits) or 8 words (of 8), in one load of 16 bytes a
thread. Field ``f`` of word ``w`` is column ``f * words + w``: so the columns that a shift brings to the front lie side
by side, and a half of a word's fields is a half of the unit. Everything is unsigned, the zero is a constant::

    weight = scale * (code - zero) + minimum       zero: 128 for 8 bits, 8 for 4 bits, 0 for 4 bits with minima

One array holds a matrix, as regions one behind the other, each ``[N, ...]``, so that rows of each are contiguous::

    codes       int32   [N, K / 32, words]
    scales      float16 [N, groups], or [N, K / 256] factors of the small scales
    minima      float16 as scales, where the form has them
    small       int8    [N, groups]: scales by which the factors are multiplied, where the form has them
    small       int8    [N, groups]: the same of the minima

``groups`` are of 32 columns, or of 16. All formats are packed without loss: products of a factor and a small scale are
made in the kernels, in float32, as the formats define them. The array's shape is ``[N, bytes of a row]``, which tells
the form (:func:`form_of`): no two need the same number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.device.host import aligned
from llmcore.weights import k_quants
from llmcore.weights.quants import Bytes

if TYPE_CHECKING:
    from llmcore.weights.tensor import Tensor

Array = np.ndarray[Any, Any]

UNIT, SUPER_BLOCK = 32, 256  # columns

PACKED, EIGHT, HALVES, SMALL, MINIMA = 1, 2, 4, 8, 16
"""What a form is made of: not plain numbers; codes of 8 bits; groups of 16; factors and small scales; minima."""

FORMS = {
    "Q8_0": PACKED | EIGHT,
    "Q5_0": PACKED | EIGHT,
    "Q5_1": PACKED | EIGHT | MINIMA,
    "Q4_0": PACKED,
    "Q4_1": PACKED | MINIMA,
    "Q2_K": PACKED | HALVES | SMALL | MINIMA,
    "Q3_K": PACKED | HALVES | SMALL,
    "Q4_K": PACKED | SMALL | MINIMA,
    "Q5_K": PACKED | EIGHT | SMALL | MINIMA,
    "Q6_K": PACKED | EIGHT | HALVES | SMALL,
}
"""Weight format → its form."""

GROUPS = ("triton-groups", 1)
"""Name and version of the layout above, whatever the form."""


def zero_of(form: int) -> int:
    """The code that stands for zero, or for the minimum."""
    if form & EIGHT:
        return 128
    return 0 if form & MINIMA else 8


def bytes_of_super_block(form: int) -> int:
    """What 256 columns of a row take in all regions: a whole number, for shorter rows too."""
    codes = SUPER_BLOCK if form & EIGHT else SUPER_BLOCK // 2
    groups = SUPER_BLOCK // UNIT * (2 if form & HALVES else 1)
    scales = groups + 2 if form & SMALL else 2 * groups
    return codes + scales * (2 if form & MINIMA else 1)


BYTES = {bytes_of_super_block(form): form for form in FORMS.values()}


def form_of(row_bytes: int, columns: int) -> int:
    """The form of a packed matrix whose rows of ``columns`` take ``row_bytes``."""
    return BYTES[row_bytes * SUPER_BLOCK // columns]


def pack(tensor: Tensor) -> Array:
    """Packs a quantized weight [N, K]: uint8 [N, bytes of a row]."""
    name, (rows, columns) = tensor.format.name, tensor.shape
    form = FORMS[name]
    blocks = tensor.raw().reshape(-1, tensor.format.block_bytes)
    codes, *scales = PARTS[name](blocks)
    regions = [_words(codes.astype(np.uint8), form), *scales]
    out = aligned(rows * columns * bytes_of_super_block(form) // SUPER_BLOCK)
    at = 0
    for region in regions:
        flat = np.ascontiguousarray(region).reshape(-1).view(np.uint8)
        out[at : at + flat.size] = flat
        at += flat.size
    assert at == out.size, f"{name}: {at} bytes where its form says {out.size}"
    return out.reshape(rows, -1)


def _words(codes: Bytes, form: int) -> Array:
    """Codes [n, columns] as words; see the module's text for their order."""
    words, bits = (8, 8) if form & EIGHT else (4, 4)
    fields = codes.reshape(-1, UNIT // words, words)
    out = np.zeros((len(fields), words), np.uint32)
    for field in range(UNIT // words):
        out |= fields[:, field].astype(np.uint32) << np.uint32(field * bits)
    return out


def _halves(blocks: Bytes, at: int) -> Array:
    """The float16 at byte ``at`` of each block, as it is."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")


def _codes(weights: Array, offset: int) -> Bytes:
    return (weights.astype(np.int16) + np.int16(offset)).astype(np.uint8)


def _nibbles(blocks: Bytes, at: int) -> Bytes:
    return np.concatenate((blocks[:, at : at + 16] & 15, blocks[:, at : at + 16] >> 4), axis=1)


def _five_bits(blocks: Bytes, at: int) -> Bytes:
    high = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return _nibbles(blocks, at + 4) | high << np.uint8(4)


def _q8_0(blocks: Bytes) -> tuple[Array, ...]:
    return _codes(blocks[:, 2:].view(np.int8), 128), _halves(blocks, 0)


def _q5_0(blocks: Bytes) -> tuple[Array, ...]:
    return _codes(_five_bits(blocks, 2), 128 - 16), _halves(blocks, 0)


def _q5_1(blocks: Bytes) -> tuple[Array, ...]:
    return _codes(_five_bits(blocks, 4), 128), _halves(blocks, 0), _halves(blocks, 2)


def _q4_0(blocks: Bytes) -> tuple[Array, ...]:
    return _nibbles(blocks, 2), _halves(blocks, 0)


def _q4_1(blocks: Bytes) -> tuple[Array, ...]:
    return _nibbles(blocks, 4), _halves(blocks, 0), _halves(blocks, 2)


def _q2_k(blocks: Bytes) -> tuple[Array, ...]:
    small, codes = blocks[:, :16], k_quants._planes(blocks[:, 16:80], width=32, bits=2)
    return codes, _halves(blocks, 80), -_halves(blocks, 82), small & 15, small >> 4


def _q3_k(blocks: Bytes) -> tuple[Array, ...]:
    low = k_quants._planes(blocks[:, 32:96], width=32, bits=2)
    high = k_quants._planes(blocks[:, :32], width=32, bits=1)
    packed = blocks[:, 96:108]
    small = k_quants._planes(packed[:, :8], width=8, bits=4) | k_quants._planes(packed[:, 8:], width=4, bits=2) << 4
    return _codes(low | high << 2, 8 - 4), _halves(blocks, 108), small.view(np.int8) - np.int8(32)


def _q4_k(blocks: Bytes) -> tuple[Array, ...]:
    small, minima = k_quants._six_bit_pairs(blocks[:, 4:16])
    codes = k_quants._planes(blocks[:, 16:], width=32, bits=4)
    return codes, _halves(blocks, 0), -_halves(blocks, 2), small, minima


def _q5_k(blocks: Bytes) -> tuple[Array, ...]:
    small, minima = k_quants._six_bit_pairs(blocks[:, 4:16])
    low = k_quants._planes(blocks[:, 48:], width=32, bits=4)
    high = k_quants._planes(blocks[:, 16:48], width=32, bits=1)
    return _codes(low | high << np.uint8(4), 128), _halves(blocks, 0), -_halves(blocks, 2), small, minima


def _q6_k(blocks: Bytes) -> tuple[Array, ...]:
    low = k_quants._planes(blocks[:, :128], width=64, bits=4)
    high = k_quants._planes(blocks[:, 128:192], width=32, bits=2)
    return _codes(low | high << 4, 128 - 32), _halves(blocks, 208), blocks[:, 192:208]


PARTS: dict[str, Callable[[Bytes], tuple[Array, ...]]] = {
    "Q8_0": _q8_0,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""Weight format → blocks to codes [n, block]; then scales, minima, small scales, small minima, as the form has them."""


def dense_f16(tensor: Tensor) -> Array:
    """Packs a weight as float16: layout ``dense-f16``, version 1. Numbers beyond its range become infinite."""
    return _dense(tensor, np.dtype(np.float16))


def dense_bf16(tensor: Tensor) -> Array:
    """Packs a weight as bfloat16: layout ``dense-bf16``, version 1."""
    import ml_dtypes

    return _dense(tensor, np.dtype(ml_dtypes.bfloat16))


def _dense(tensor: Tensor, dtype: np.dtype[Any]) -> Array:
    values = tensor.dequantize()
    out = aligned(values.size * dtype.itemsize).view(dtype).reshape(values.shape)
    with np.errstate(over="ignore"):
        out[...] = values
    return out
