"""The 256-element super-block formats of ggml (Q2_K … Q6_K): numpy decoders.

A super-block holds sub-blocks of 16 or 32 weights, each with a small integer scale (and minimum), and one float16
factor for the scales (and one for the minimums). Decoders take ``[n, block_bytes]`` uint8 and return ``[n, 256]``
float32, with the arithmetic of ggml's reference C code. Layouts: the block structs in ggml's ``ggml-common.h``.
"""

from __future__ import annotations

import numpy as np

from llmcore.weights.quants import Bytes, Floats, half

SUPER = 256


def _planes(packed: Bytes, width: int, bits: int) -> Bytes:
    """Unpacks ``bits``-wide fields: ``[n, groups * width]`` → ``[n, groups * (8 // bits) * width]``.

    Field ``p`` of a group's ``width`` bytes holds ``width`` consecutive elements, the lowest field first.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    groups = packed.reshape(len(packed), -1, 1, width)
    return ((groups >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 8 scales and 8 minimums of Q4_K and Q5_K, 6 bits each, from 12 bytes: ``[n, 12]`` → 2 × ``[n, 8]``.

    Bytes 0–3 and 4–7: the first four scales and minimums in the low 6 bits, and in the top 2 bits the high bits of
    the last four; bytes 8–11: the low nibbles of the last four scales (low) and minimums (high).
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6) << 4), axis=1)
    minimums = np.concatenate((second & 63, (third >> 4) | (second >> 6) << 4), axis=1)
    return scales, minimums


def _scaled(q: Bytes | np.ndarray, scales: Floats, minimums: Floats | None = None) -> Floats:
    """``scale * q - minimum`` per sub-block: q ``[n, 256]``, scales and minimums ``[n, sub-blocks]``."""
    n, subs = scales.shape
    out: Floats = q.reshape(n, subs, SUPER // subs).astype(np.float32) * scales[:, :, None]
    if minimums is not None:
        out -= minimums[:, :, None]
    return out.reshape(n, SUPER)


def decode_q2_k(blocks: Bytes) -> Floats:
    """Block: 16 × (scale, minimum) nibbles, q 2 bits [64], d f16, dmin f16; sub-blocks of 16."""
    packed = blocks[:, :16]
    q = _planes(blocks[:, 16:80], width=32, bits=2)
    return _scaled(q, half(blocks, 80) * (packed & 15), half(blocks, 82) * (packed >> 4))


def decode_q3_k(blocks: Bytes) -> Floats:
    """Block: high bits [32], low 2 bits [64], 16 scales of 6 bits [12], d f16; sub-blocks of 16; q − 4, scale − 32."""
    low = _planes(blocks[:, 32:96], width=32, bits=2)
    high = _planes(blocks[:, :32], width=32, bits=1)
    packed = blocks[:, 96:108]
    scales = _planes(packed[:, :8], width=8, bits=4) | _planes(packed[:, 8:], width=4, bits=2) << 4
    q = (low | high << 2).astype(np.int8) - np.int8(4)
    return _scaled(q, half(blocks, 108) * (scales.astype(np.int8) - np.int8(32)).astype(np.float32))


Parts = tuple[Bytes, Floats, Floats]
"""q ``[n, 256]``, scales and minimums ``[n, sub-blocks]``: a weight is ``scale * q - minimum``."""


def parts_q4_k(blocks: Bytes) -> Parts:
    """Block: d f16, dmin f16, scales and minimums [12], q 4 bits [128]; sub-blocks of 32."""
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    q = _planes(blocks[:, 16:], width=32, bits=4)
    return q, half(blocks, 0) * scales, half(blocks, 2) * minimums


def parts_q5_k(blocks: Bytes) -> Parts:
    """Block: d f16, dmin f16, scales and minimums [12], fifth bits [32], low 4 bits [128]; sub-blocks of 32."""
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    q: Bytes = _planes(blocks[:, 48:], width=32, bits=4) | _planes(blocks[:, 16:48], width=32, bits=1) << np.uint8(4)
    return q, half(blocks, 0) * scales, half(blocks, 2) * minimums


def decode_q4_k(blocks: Bytes) -> Floats:
    """See :func:`parts_q4_k`."""
    return _scaled(*parts_q4_k(blocks))


def decode_q5_k(blocks: Bytes) -> Floats:
    """See :func:`parts_q5_k`."""
    return _scaled(*parts_q5_k(blocks))


def decode_q6_k(blocks: Bytes) -> Floats:
    """Block: low 4 bits [128], high 2 bits [64], scales int8 [16], d f16; sub-blocks of 16; q − 32."""
    low = _planes(blocks[:, :128], width=64, bits=4)
    high = _planes(blocks[:, 128:192], width=32, bits=2)
    q = (low | high << 4).astype(np.int8) - np.int8(32)
    return _scaled(q, half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32))
