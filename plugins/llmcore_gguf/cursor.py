"""A bounded cursor over a GGUF header: nothing is allocated before the file is known to hold it.

Limits: the header is at most :data:`HEADER_LIMIT` bytes (the largest vocabularies take half of that), arrays nest at
most :data:`DEPTH_LIMIT` deep, and a header has at most :data:`STRING_LIMIT` strings and :data:`ARRAY_LIMIT` nested
arrays, so that no file makes us hold more than 200 MB.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from llmcore.errors import CheckpointError
from llmcore.weights.mapping import MappedFile
from llmcore_gguf.types import ARRAY, BOOL, SCALARS, STRING

HEADER_LIMIT = 32 << 20
STRING_LIMIT = 1_200_000
ARRAY_LIMIT = 10_000
DEPTH_LIMIT = 3
KEY_LIMIT = 1024  # bytes of a key or a tensor name

_LENGTH = struct.Struct("<Q")


class Cursor:
    """Reads GGUF's primitive values one after the other; ``at`` is the next byte, ``place`` says what is being read."""

    def __init__(self, mapping: MappedFile) -> None:
        self.mapping = mapping
        self.buffer = mapping.buffer
        self.end = min(mapping.size, HEADER_LIMIT)
        self.at = 0
        self.place = "header"
        self._strings_left = STRING_LIMIT
        self._arrays_left = ARRAY_LIMIT

    def error(self, message: str, offset: int | None = None, remedy: str = "") -> CheckpointError:
        """An error in :attr:`place` at ``offset`` (the cursor if None)."""
        return CheckpointError(
            f"{self.place}: {message}",
            file=self.mapping.path,
            offset=self.at if offset is None else offset,
            remedy=remedy or "the file is damaged: get it again from its source",
        )

    def take(self, count: int, what: str) -> int:
        """Moves past ``count`` bytes and returns where they start."""
        start = self.at
        if count > self.end - start:
            if self.end < self.mapping.size and count <= self.mapping.size - start:
                raise self.error(f"the header is longer than {HEADER_LIMIT} bytes")
            raise self.error(f"{what} of {count} bytes runs past the end of the file ({self.mapping.size} bytes)")
        self.at = start + count
        return start

    def scalar(self, kind: int) -> Any:
        """One value of a scalar type."""
        code, size = SCALARS[kind]
        start = self.take(size, "a value")
        if kind == BOOL and self.buffer[start] > 1:
            raise self.error(f"a boolean is {self.buffer[start]}", start)
        return struct.unpack_from("<" + code, self.buffer, start)[0]

    def u32(self) -> int:
        """One unsigned 32-bit number."""
        return int(self.scalar(4))

    def u64(self) -> int:
        """One unsigned 64-bit number."""
        return int(self.scalar(10))

    def string(self, limit: int = HEADER_LIMIT) -> str:
        """A length-prefixed UTF-8 string of at most ``limit`` bytes."""
        length = self.u64()
        if length > limit:
            raise self.error(f"a string of {length} bytes is longer than {limit}", self.at - 8)
        start = self.take(length, "a string")
        try:
            return self.buffer[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.error("a string is not UTF-8", start + error.start) from error

    def value(self, kind: int, depth: int = 0) -> Any:
        """A metadata value: a scalar, a string, or an array (numeric: a numpy copy; otherwise a list)."""
        if kind in SCALARS:
            return self.scalar(kind)
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise self.error(f"there is no metadata type {kind}", self.at - 4)
        if depth == DEPTH_LIMIT:
            raise self.error(f"arrays are nested more than {DEPTH_LIMIT} deep", self.at - 4)
        element, count = self.u32(), self.u64()
        if element in SCALARS:
            return self._numbers(element, count)
        if element == STRING:
            return self._strings(count)
        self._admit(count, 12, self._arrays_left, "nested arrays")
        self._arrays_left -= count
        return [self.value(element, depth + 1) for _ in range(count)]

    def _admit(self, count: int, least: int, left: int, what: str) -> None:
        """Refuses ``count`` objects of at least ``least`` bytes each, if the file or the limit has no room for them."""
        if count * least > self.end - self.at:
            raise self.error(f"an array of {count} elements runs past the end of the file", self.at - 8)
        if count > left:
            raise self.error(f"there are too many {what} in this file", self.at - 8)

    def _numbers(self, kind: int, count: int) -> np.ndarray[Any, Any]:
        code, size = SCALARS[kind]
        start = self.take(count * size, f"an array of {count} numbers")
        raw = self.mapping.bytes[start : self.at]
        if kind == BOOL and raw.size and raw.max() > 1:
            raise self.error("a boolean is neither 0 nor 1", start + int((raw > 1).argmax()))
        return raw.view("<" + code).copy()

    def _strings(self, count: int) -> list[str]:
        """``count`` strings, in one tight loop: vocabularies have hundreds of thousands."""
        self._admit(count, 8, self._strings_left, "strings")
        self._strings_left -= count
        buffer, at, end, length_at = self.buffer, self.at, self.end, _LENGTH.unpack_from
        texts: list[str] = []
        try:
            for _ in range(count):
                start = at + 8
                length = length_at(buffer, at)[0] if start <= end else end
                at = start + length
                if at > end:
                    raise self.error(f"string {len(texts)} of {count} runs past the end of the file", start - 8)
                texts.append(buffer[start:at].decode())
        except UnicodeDecodeError as error:
            raise self.error(f"string {len(texts)} of {count} is not UTF-8", start + error.start) from error
        self.at = at
        return texts
