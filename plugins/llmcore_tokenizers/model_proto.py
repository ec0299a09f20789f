"""SentencePiece's ``ModelProto``, as far as it has to be written.

Protocol buffers join by concatenation: of a field set twice the last value counts, and the parts of a message are
merged. So one setting of a model is changed by appending it, without reading the rest. The field numbers are those of
sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type; GGUF counts the same way
BPE = 2  # TrainerSpec.ModelType


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


NO_DUMMY_PREFIX = _message(3, _number(3, 0))  # normalizer_spec { add_dummy_prefix: false }


def bpe_model(pieces: Iterable[tuple[str, float, int]], *, byte_fallback: bool) -> bytes:
    """A serialized model that merges by score, over ``(text, score, type)`` in the order of their ids.

    It changes nothing in a text but to write spaces as ``▁``.
    """
    parts = []
    for text, score, kind in pieces:
        raw = text.encode("utf-8", "replace")
        parts.append(_message(1, _message(1, raw) + b"\x15" + struct.pack("<f", score) + _number(3, kind)))
    trainer = _number(3, BPE) + _number(35, int(byte_fallback))
    normalizer = _message(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    return b"".join(parts) + _message(2, trainer) + _message(3, normalizer)
