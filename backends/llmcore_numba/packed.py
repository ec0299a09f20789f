"""What packs weights: from the blocks of a checkpoint to those of :mod:`llmcore_numba.packing`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmcore.errors import CheckpointError
from llmcore.weights.formats import FORMATS
from llmcore.weights.k_quants import Parts, parts_q4_k, parts_q5_k
from llmcore.weights.tensor import Tensor
from llmcore_numba.packing import COLUMNS, PACKINGS, ROWS, Packing

Array = np.ndarray[Any, Any]
HALF_MAX = float(np.finfo(np.float16).max)
CHUNK = 1 << 20  # weights that are repacked at a time: what is between the steps stays in the caches

Codes = tuple[Array, Array, Array | None]
"""Codes uint8 or int8 ``[blocks, 32]``, scales and minima float16 ``[blocks]``."""


def _q8_0(blocks: Array) -> Codes:
    return blocks[:, 2:].view(np.int8), _half(blocks, 0), None


def _q4_0(blocks: Array) -> Codes:
    return _nibbles(blocks[:, 2:]), _half(blocks, 0), None


def _q4_1(blocks: Array) -> Codes:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Array) -> Codes:
    codes = _nibbles(blocks[:, 6:]) | _fifth(blocks[:, 2:6])
    return codes.astype(np.int8) - np.int8(16), _half(blocks, 0), None


def _q5_1(blocks: Array) -> Codes:
    codes = _nibbles(blocks[:, 8:]) | _fifth(blocks[:, 4:8])
    return codes.view(np.int8), _half(blocks, 0), _half(blocks, 2)


def _q4_k(blocks: Array) -> Codes:
    return _sub_blocks(parts_q4_k(blocks))


def _q5_k(blocks: Array) -> Codes:
    return _sub_blocks(parts_q5_k(blocks))


def _sub_blocks(parts: Parts) -> Codes:
    """Sub-blocks of 32 as blocks; products of two factors are rounded to float16."""
    codes, scales, minima = parts
    return codes.reshape(-1, COLUMNS).view(np.int8), _to_half(scales), _to_half(-minima)


def _requantized(format_name: str) -> Callable[[Array], Codes]:
    """For sub-blocks of 16: their weights again, in 8 bits with one scale for 32."""
    decode = FORMATS[format_name].decode
    assert decode is not None

    def split(blocks: Array) -> Codes:
        weights = decode(blocks).reshape(-1, COLUMNS)
        scales = _to_half(np.abs(weights).max(axis=1) / 127)
        factors = scales.astype(np.float32)
        inverse = np.divide(1, factors, out=np.zeros_like(factors), where=factors > 0)
        codes = np.clip(np.rint(weights * inverse[:, None]), -127, 127)
        return codes.astype(np.int8), scales, None

    return split


def _to_half(factors: Array) -> Array:
    flat = factors.reshape(-1)
    if flat.size and np.abs(flat).max() > HALF_MAX:
        raise CheckpointError(
            "a scale of a quantized weight is too large for 16 bits", remedy="compute=exact multiplies such weights"
        )
    return flat.astype(np.float16)


def _half(blocks: Array, at: int) -> Array:
    return blocks[:, at : at + 2].copy().view(np.float16)[:, 0]


def _nibbles(packed: Array) -> Array:
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, : packed.shape[1]])
    np.right_shift(packed, 4, out=codes[:, packed.shape[1] :])
    return codes


def _fifth(bits: Array) -> Array:
    """Bit ``i`` of each 32, as bit 4 of byte ``i``."""
    return np.unpackbits(np.ascontiguousarray(bits), axis=1, bitorder="little") << np.uint8(4)


SPLITS: dict[str, Callable[[Array], Codes]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _requantized("Q6_K"),
}
"""Weight format → what takes its blocks apart."""


def pack(tensor: Tensor) -> Array:
    """A weight ``[N, K]`` as packed blocks, uint8 ``[ceil(N / 32), K / 32, block bytes]``."""
    packing, split = PACKINGS[tensor.format.name], SPLITS[tensor.format.name]
    rows, columns = tensor.shape
    groups, row_bytes = columns // COLUMNS, columns // tensor.format.block * tensor.format.block_bytes
    raw = tensor.raw().reshape(rows, row_bytes)
    out = np.empty((-(-rows // ROWS), groups, packing.nbytes), np.uint8)
    step = max(1, CHUNK // (ROWS * columns))  # blocks of rows
    for first in range(0, len(out), step):
        part = raw[first * ROWS : (first + step) * ROWS]
        missing = -len(part) % ROWS
        if missing:
            part = np.concatenate([part, np.zeros((missing, part.shape[1]), np.uint8)])
        codes, scales, minima = split(part.reshape(-1, tensor.format.block_bytes))
        _fill(out[first : first + step], packing, codes, scales, minima)
    return out


def _fill(out: Array, packing: Packing, codes: Array, scales: Array, minima: Array | None) -> None:
    """Writes ``out`` ``[n, groups, block bytes]`` from codes in the order ``[n, 32 rows, groups]``."""
    n, groups, _ = out.shape
    for i, factors in enumerate((scales, minima)):
        if factors is not None:
            turned = factors.reshape(n, ROWS, groups).transpose(0, 2, 1)
            out[:, :, 2 * ROWS * i : 2 * ROWS * (i + 1)] = np.ascontiguousarray(turned).view(np.uint8)
    quads = codes.view(np.uint8).reshape(n, ROWS, groups, 8, 4)
    if packing.bits == 4:
        quads = quads[:, :, :, :4] | quads[:, :, :, 4:] << np.uint8(4)
    words = np.ascontiguousarray(quads).view(np.uint32)[..., 0]  # [n, rows, groups, quads]
    turned = np.ascontiguousarray(words.transpose(0, 2, 3, 1))
    out[:, :, packing.head :] = turned.reshape(n, groups, -1).view(np.uint8)
