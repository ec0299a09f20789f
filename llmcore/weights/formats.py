"""Tensor formats: how a tensor's elements lie in its bytes, and how to get float32 out of them.

A format is a run of blocks; ``F32``, ``F16`` and ``BF16`` are blocks of one. The table :data:`FORMATS` holds every
format that the ops compute with, and a few integer ones that files carry along (storage only: no decoder).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from llmcore.errors import CheckpointError, near
from llmcore.weights import k_quants, quants
from llmcore.weights.quants import Bytes, Floats

DECODE_CHUNK = 1 << 18  # elements decoded at a time: the temporaries of a chunk stay in the cache


@dataclass(frozen=True)
class TensorFormat:
    """One way to store a tensor.

    Attributes:
        name: ``"F32"``, ``"Q4_1"`` …, as ggml and safetensors spell it.
        block: elements per block, along the innermost axis.
        block_bytes: bytes per block.
        decode: ``[n, block_bytes]`` uint8 → ``[n, block]`` float32; None for formats that can only be stored.
        encode: the reverse, where we have one.
        floats: where a block keeps floating-point numbers: ``(byte in block, kind)``; a non-finite one spoils
            the whole block. Kinds: ``"f4"``, ``"f2"``, ``"bf16"``.
        plain: numpy's name for the element type of an unquantized format (``"bfloat16"`` is that of ml_dtypes).
    """

    name: str
    block: int
    block_bytes: int
    decode: Callable[[Bytes], Floats] | None = None
    encode: Callable[[Floats], Bytes] | None = None
    floats: tuple[tuple[int, str], ...] = ()
    plain: str = ""

    @property
    def quantized(self) -> bool:
        """Whether a block is more than one element."""
        return self.block > 1

    def nbytes(self, count: int) -> int:
        """Bytes of ``count`` elements, a multiple of :attr:`block`."""
        return count // self.block * self.block_bytes

    def dequantize(self, raw: Bytes, count: int) -> Floats:
        """The ``count`` float32 elements stored in ``raw`` (uint8 of any shape), as a new array ``[count]``.

        Raises:
            CheckpointError: the format is storage-only, or ``raw`` is not ``nbytes(count)`` long.
        """
        if self.decode is None:
            raise CheckpointError(f"format {self.name} is not one that we compute with", remedy=computable())
        if count % self.block or raw.size != self.nbytes(count):
            raise CheckpointError(f"{raw.size} bytes are not {count} elements of {self.name}")
        blocks = raw.reshape(-1, self.block_bytes)
        out = np.empty((len(blocks), self.block), dtype=np.float32)
        step = max(1, DECODE_CHUNK // self.block)
        for start in range(0, len(blocks), step):
            out[start : start + step] = self.decode(blocks[start : start + step])
        return out.reshape(-1)

    def first_non_finite(self, raw: Bytes) -> tuple[int, int] | None:
        """The first number in ``raw`` that is NaN or infinite: (element, byte), or None; of blocks, reads the scales.

        In sign-magnitude floats the non-finite bit patterns are the largest of either sign, so two integer
        maximums settle a whole tensor without a temporary.
        """
        worst: tuple[int, int] | None = None
        for at, kind in self.floats:
            signed, unsigned, limit = _BITS[kind]
            lane = np.ndarray(
                (raw.size // self.block_bytes,), signed, buffer=raw, offset=at, strides=(self.block_bytes,)
            )
            if not lane.size:
                continue
            sign = np.iinfo(signed).min
            if lane.max() < limit and lane.view(unsigned).max() < limit - sign:
                continue
            index = int(((lane & ~np.array(sign, signed)) >= limit).argmax())
            if worst is None or index * self.block_bytes + at < worst[1]:
                worst = (index * self.block, index * self.block_bytes + at)
        return worst


_BITS: dict[str, tuple[str, str, int]] = {  # kind → signed and unsigned views, bit pattern of +infinity
    "f2": ("<i2", "<u2", 0x7C00),
    "bf16": ("<i2", "<u2", 0x7F80),
    "f4": ("<i4", "<u4", 0x7F800000),
}


def _decode_f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _decode_f16(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _decode_bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _encode_f32(values: Floats) -> Bytes:
    return values.astype("<f4").view(np.uint8)


def _encode_f16(values: Floats) -> Bytes:
    return values.astype("<f2").view(np.uint8)


def _encode_bf16(values: Floats) -> Bytes:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16).view(np.uint8)


def storage(name: str, block: int, block_bytes: int, plain: str = "") -> TensorFormat:
    """A format that files may hold but that no op computes with: its size is known, its values are not read."""
    return TensorFormat(name, block, block_bytes, plain=plain)


_ALL = (
    TensorFormat("F32", 1, 4, _decode_f32, _encode_f32, ((0, "f4"),), "<f4"),
    TensorFormat("F16", 1, 2, _decode_f16, _encode_f16, ((0, "f2"),), "<f2"),
    TensorFormat("BF16", 1, 2, _decode_bf16, _encode_bf16, ((0, "bf16"),), "bfloat16"),
    TensorFormat("Q8_0", 32, 34, quants.decode_q8_0, quants.encode_q8_0, ((0, "f2"),)),
    TensorFormat("Q4_0", 32, 18, quants.decode_q4_0, quants.encode_q4_0, ((0, "f2"),)),
    TensorFormat("Q4_1", 32, 20, quants.decode_q4_1, quants.encode_q4_1, ((0, "f2"), (2, "f2"))),
    TensorFormat("Q5_0", 32, 22, quants.decode_q5_0, quants.encode_q5_0, ((0, "f2"),)),
    TensorFormat("Q5_1", 32, 24, quants.decode_q5_1, quants.encode_q5_1, ((0, "f2"), (2, "f2"))),
    TensorFormat("Q2_K", 256, 84, k_quants.decode_q2_k, None, ((80, "f2"), (82, "f2"))),
    TensorFormat("Q3_K", 256, 110, k_quants.decode_q3_k, None, ((108, "f2"),)),
    TensorFormat("Q4_K", 256, 144, k_quants.decode_q4_k, None, ((0, "f2"), (2, "f2"))),
    TensorFormat("Q5_K", 256, 176, k_quants.decode_q5_k, None, ((0, "f2"), (2, "f2"))),
    TensorFormat("Q6_K", 256, 210, k_quants.decode_q6_k, None, ((208, "f2"),)),
    storage("F64", 1, 8, "<f8"),
    storage("I8", 1, 1, "|i1"),
    storage("I16", 1, 2, "<i2"),
    storage("I32", 1, 4, "<i4"),
    storage("I64", 1, 8, "<i8"),
    storage("U8", 1, 1, "|u1"),
    storage("BOOL", 1, 1, "|b1"),
)

FORMATS: Mapping[str, TensorFormat] = MappingProxyType({each.name: each for each in _ALL})


def computable() -> str:
    """A remedy sentence that lists the formats that ops compute with."""
    return f"weights may be {', '.join(name for name, each in FORMATS.items() if each.decode is not None)}"


def tensor_format(name: str) -> TensorFormat:
    """The format ``name``; raises :class:`CheckpointError` with near names."""
    if name not in FORMATS:
        raise CheckpointError(f"there is no tensor format {name!r}", remedy=near(name, FORMATS))
    return FORMATS[name]


def quantize(values: npt.ArrayLike, format: TensorFormat | str) -> Bytes:
    """Encodes ``values`` along their last axis: ``[..., n]`` → uint8 ``[..., n // block * block_bytes]``.

    Raises:
        CheckpointError: the format has no encoder, or ``n`` is not a multiple of its block.
    """
    form = tensor_format(format) if isinstance(format, str) else format
    array = np.ascontiguousarray(values, dtype=np.float32)
    if form.encode is None:
        able = ", ".join(name for name, each in FORMATS.items() if each.encode is not None)
        raise CheckpointError(f"there is no quantizer for {form.name}", remedy=f"quantize to one of {able}")
    if array.ndim == 0 or array.shape[-1] % form.block:
        raise CheckpointError(f"rows of {array.shape} are not whole blocks of {form.block} ({form.name})")
    encoded = form.encode(array.reshape(-1, form.block))
    return encoded.reshape(*array.shape[:-1], form.nbytes(array.shape[-1]))
