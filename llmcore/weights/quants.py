"""The 32-element block formats of ggml (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0): numpy decoders and encoders.

Each weight of a block is ``d * q`` or ``d * q + m``, with ``d`` and ``m`` in float16 at the block's start. Decoders
take ``[n, block_bytes]`` uint8 and return ``[n, 32]`` float32; encoders take float32 ``[n, 32]`` and return the bytes.
The arithmetic is that of ggml's reference C code, operation by operation, so that results agree bit for bit.
Layouts: the block structs in ggml's ``ggml-common.h``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BLOCK = 32


def half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte ``at`` of each block, as float32 ``[n, 1]``."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """``[n, 16]`` → ``[n, 32]``: the low nibbles are elements 0–15, the high ones 16–31."""
    return np.concatenate((packed & 0x0F, packed >> np.uint8(4)), axis=1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """``[n, 4]`` → ``[n, 32]``: bit ``i`` of the little-endian word, moved to bit 4 of element ``i``."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def decode_q8_0(blocks: Bytes) -> Floats:
    """``d * q``; block: d f16, q int8[32]."""
    return blocks[:, 2:].view(np.int8).astype(np.float32) * half(blocks, 0)


def decode_q4_0(blocks: Bytes) -> Floats:
    """``d * (q - 8)``; block: d f16, nibbles[16]."""
    return (_nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32) * half(blocks, 0)


def decode_q4_1(blocks: Bytes) -> Floats:
    """``d * q + m``; block: d f16, m f16, nibbles[16]."""
    return _nibbles(blocks[:, 4:]).astype(np.float32) * half(blocks, 0) + half(blocks, 2)


def decode_q5_0(blocks: Bytes) -> Floats:
    """``d * (q - 16)``; block: d f16, fifth bits u32, nibbles[16]."""
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (q.astype(np.int8) - np.int8(16)).astype(np.float32) * half(blocks, 0)


def decode_q5_1(blocks: Bytes) -> Floats:
    """``d * q + m``; block: d f16, m f16, fifth bits u32, nibbles[16]."""
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return q.astype(np.float32) * half(blocks, 0) + half(blocks, 2)


def _reciprocal(scale: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _half_bytes(values: Floats) -> Bytes:
    return np.ascontiguousarray(values.astype("<f2")).view(np.uint8)


def _pack_nibbles(q: Bytes) -> Bytes:
    low, high = q[:, :16] & np.uint8(0x0F), q[:, 16:] << np.uint8(4)
    return low | high


def _pack_fifth_bits(q: Bytes) -> Bytes:
    return np.packbits(q >> np.uint8(4), axis=1, bitorder="little")


def _symmetric(values: Floats, levels: int) -> tuple[Floats, Bytes]:
    """``d`` that maps the value of largest magnitude to ``-levels``; ``q`` in 0 … 2·levels − 1, rounded half up."""
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    d = largest / np.float32(-levels)
    q = np.trunc(values * _reciprocal(d) + np.float32(levels + 0.5))
    return d, q.clip(0, 2 * levels - 1).astype(np.uint8)


def _affine(values: Floats, steps: int) -> tuple[Floats, Floats, Bytes]:
    """``d, m`` that map the smallest value to 0 and the largest to ``steps``; ``q`` rounded half up."""
    low = values.min(axis=1, keepdims=True)
    d = (values.max(axis=1, keepdims=True) - low) / np.float32(steps)
    q = np.trunc((values - low) * _reciprocal(d) + np.float32(0.5)).clip(0, steps).astype(np.uint8)
    return d, low, q


def encode_q8_0(values: Floats) -> Bytes:
    """``d`` = largest magnitude / 127; rounds half away from zero."""
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scaled = values * _reciprocal(d)
    q = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled).astype(np.int8)
    return np.concatenate((_half_bytes(d), q.view(np.uint8)), axis=1)


def encode_q4_0(values: Floats) -> Bytes:
    """See :func:`_symmetric` with 8 levels."""
    d, q = _symmetric(values, 8)
    return np.concatenate((_half_bytes(d), _pack_nibbles(q)), axis=1)


def encode_q4_1(values: Floats) -> Bytes:
    """See :func:`_affine` with 15 steps."""
    d, m, q = _affine(values, 15)
    return np.concatenate((_half_bytes(d), _half_bytes(m), _pack_nibbles(q)), axis=1)


def encode_q5_0(values: Floats) -> Bytes:
    """See :func:`_symmetric` with 16 levels."""
    d, q = _symmetric(values, 16)
    return np.concatenate((_half_bytes(d), _pack_fifth_bits(q), _pack_nibbles(q)), axis=1)


def encode_q5_1(values: Floats) -> Bytes:
    """See :func:`_affine` with 31 steps."""
    d, m, q = _affine(values, 31)
    return np.concatenate((_half_bytes(d), _half_bytes(m), _pack_fifth_bits(q), _pack_nibbles(q)), axis=1)
