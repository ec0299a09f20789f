"""Checkpoint files written byte by byte, so that a test can write them wrong.

The good ones hold the same two float32 tensors, :data:`WANTED`, and open.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WANTED = {"model.embed_tokens.weight": (4, 32), "model.norm.weight": (32,)}
EMBED = np.linspace(-1, 1, 128, dtype=np.float32).reshape(4, 32)
NORM = np.linspace(0.5, 1.5, 32, dtype=np.float32)
CONFIG = json.dumps({"model_type": "llama", "hidden_size": 32}).encode()

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 4, 5, 6, 7, 8, 9, 10, 12  # GGUF's numbers of value types
_CODES = {U8: "B", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", F64: "d"}


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    """A GGUF metadata value, its type number included."""
    return struct.pack("<I", kind) + _payload(kind, value)


def _payload(kind: int, value: Any) -> bytes:
    return text(value) if kind == STRING else struct.pack("<" + _CODES[kind], value)


def array(kind: int, values: Sequence[Any], count: int | None = None) -> bytes:
    """A GGUF array, which may lie about its ``count``."""
    head = struct.pack("<IIQ", ARRAY, kind, len(values) if count is None else count)
    return head + b"".join(_payload(kind, value) for value in values)


def nested(depth: int, innermost: bytes) -> bytes:
    """``innermost`` (an :func:`array`) inside ``depth`` arrays of one element."""
    value = innermost
    for _ in range(depth):
        value = struct.pack("<IIQ", ARRAY, ARRAY, 1) + value[4:]
    return value


def entry(key: str | bytes, value: bytes) -> bytes:
    """A GGUF metadata entry."""
    return text(key) + value


@dataclass(frozen=True)
class Row:
    """A row of GGUF's tensor table; ``sizes`` innermost first."""

    name: str | bytes
    sizes: tuple[int, ...]
    kind: int = 0
    offset: int = 0
    dimensions: int | None = None

    def build(self) -> bytes:
        dimensions = len(self.sizes) if self.dimensions is None else self.dimensions
        head = text(self.name) + struct.pack("<I", dimensions)
        return head + struct.pack(f"<{len(self.sizes)}QIQ", *self.sizes, self.kind, self.offset)


METADATA = {
    "general.architecture": scalar(STRING, "llama"),
    "llama.block_count": scalar(U32, 1),
    "llama.context_length": scalar(U32, 64),
    "llama.embedding_length": scalar(U32, 32),
    "llama.feed_forward_length": scalar(U32, 48),
    "llama.attention.head_count": scalar(U32, 4),
    "llama.attention.layer_norm_rms_epsilon": scalar(F32, 1e-5),
    "tokenizer.ggml.model": scalar(STRING, "llama"),
    "tokenizer.ggml.tokens": array(STRING, ["<unk>", "<s>", "</s>", "a"]),
    "tokenizer.ggml.scores": array(F32, [0.0, 0.0, 0.0, -1.0]),
    "tokenizer.ggml.token_type": array(I32, [2, 3, 3, 1]),
    "tokenizer.ggml.bos_token_id": scalar(U32, 1),
    "tokenizer.ggml.eos_token_id": scalar(U32, 2),
}
ROWS = (Row("token_embd.weight", (32, 4)), Row("output_norm.weight", (32,), offset=EMBED.nbytes))


def gguf(
    change: dict[str, bytes | None] | None = None,
    rows: Sequence[Row] = ROWS,
    *,
    raw_metadata: bytes = b"",
    raw_count: int = 0,
    key_count: int | None = None,
    row_count: int | None = None,
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    data: bytes = EMBED.tobytes() + NORM.tobytes(),
) -> bytes:
    """A GGUF file: :data:`METADATA` with ``change`` (None removes a key), then ``raw_metadata``, ``raw_count`` keys.

    The counts, the magic and the version may lie.
    """
    metadata = {key: value for key, value in {**METADATA, **(change or {})}.items() if value is not None}
    keys = len(metadata) + raw_count if key_count is None else key_count
    head = magic + version + struct.pack("<QQ", len(rows) if row_count is None else row_count, keys)
    head += b"".join(entry(key, value) for key, value in metadata.items()) + raw_metadata
    head += b"".join(row.build() for row in rows)
    return head + bytes(-len(head) % 32) + data


HEADER = {
    "model.embed_tokens.weight": {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, EMBED.nbytes]},
    "model.norm.weight": {"dtype": "F32", "shape": [32], "data_offsets": [EMBED.nbytes, EMBED.nbytes + NORM.nbytes]},
}


def safetensors(
    header: str | bytes | dict[str, Any] = HEADER,
    *,
    length: int | None = None,
    data: bytes = EMBED.tobytes() + NORM.tobytes(),
) -> bytes:
    """A safetensors file: ``header`` as JSON or as it stands, ``length`` what it claims to be."""
    raw = json.dumps(header) if isinstance(header, dict) else header
    raw = raw.encode() if isinstance(raw, str) else raw
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data
