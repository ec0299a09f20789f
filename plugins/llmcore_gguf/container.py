"""The GGUF container: header, metadata and tensor table, as the file states them and checked against its size.

Layout (little-endian): magic ``GGUF``, u32 version, u64 tensor count, u64 metadata count; the metadata as (key, u32
type, value); the tensors as (name, u32 dimensions, u64 sizes innermost first, u32 type, u64 offset); padding to the
alignment; the data. Specification: ``docs/gguf.md`` of the ggml project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.errors import CheckpointError
from llmcore.weights.formats import TensorFormat
from llmcore.weights.mapping import MappedFile
from llmcore_gguf.cursor import KEY_LIMIT, Cursor
from llmcore_gguf.types import TENSOR_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
COUNT_LIMIT = 65_536  # of metadata keys and of tensors: ten times what the largest models have
MAX_DIMENSIONS = 4
SMALLEST_KEY = 8 + 4 + 1  # bytes of the shortest metadata entry and tensor entry: a count is checked against them
SMALLEST_TENSOR = 8 + 4 + 4 + 8


@dataclass(frozen=True)
class TensorEntry:
    """A row of the tensor table: ``shape`` row-major, ``offset`` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    format: TensorFormat
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Container:
    """A parsed GGUF file; the tensors' data is untouched."""

    mapping: MappedFile
    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return self.mapping.path


def read_container(path: Path) -> Container:
    """Maps and parses ``path``.

    Raises:
        CheckpointError: not GGUF, a version or byte order that we do not read, truncated, or inconsistent; names the
            key or tensor and the byte.
    """
    cursor = Cursor(MappedFile(path))
    try:
        version = _version(cursor)
        tensor_count, key_count = cursor.u64(), cursor.u64()
        _check_count(cursor, tensor_count, SMALLEST_TENSOR, "tensors", 8)
        _check_count(cursor, key_count, SMALLEST_KEY, "metadata keys", 16)
        metadata = _metadata(cursor, key_count)
        alignment = _alignment(cursor, metadata)
        entries = _tensors(cursor, tensor_count, alignment)
        start = -(-cursor.at // alignment) * alignment
        return Container(cursor.mapping, version, metadata, _placed(cursor.mapping, entries, start))
    except CheckpointError:
        cursor.mapping.close()
        raise


def shown(value: Any) -> str:
    """A metadata value for a message: never long, whatever the file holds."""
    if isinstance(value, list | np.ndarray):
        return f"an array of {len(value)}"
    return repr(value[:60]) if isinstance(value, str) else str(value)


def _version(cursor: Cursor) -> int:
    if cursor.buffer[:4] != MAGIC:
        raise cursor.error(f"this is not a GGUF file: it starts with {cursor.buffer[:4]!r}", 0, "give a .gguf file")
    cursor.at = 4
    version = cursor.u32()
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise cursor.error("big-endian GGUF is not read", 4, "convert it with gguf_convert_endian of the gguf package")
    raise cursor.error(f"GGUF version {version} is not read; versions {VERSIONS} are", 4, "convert the model again")


def _check_count(cursor: Cursor, count: int, least: int, what: str, offset: int) -> None:
    if count * least > cursor.mapping.size:
        raise cursor.error(f"{count} {what} do not fit in a file of {cursor.mapping.size} bytes", offset)
    if count > COUNT_LIMIT:
        raise cursor.error(f"{count} {what} are more than {COUNT_LIMIT}", offset)


def _metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        cursor.place = f"metadata key {index} of {count}"
        start = cursor.at
        key = cursor.string(KEY_LIMIT)
        cursor.place = f"metadata key {key!r}"
        if key in metadata:
            raise cursor.error("appears twice", start)
        metadata[key] = cursor.value(cursor.u32())
    return metadata


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    cursor.place = "metadata key 'general.alignment'"
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.error(f"is {shown(alignment)}, not a power of two from 8 to {1 << 20}")
    return alignment


def _tensors(cursor: Cursor, count: int, alignment: int) -> list[TensorEntry]:
    """The table's rows, with offsets still relative to the data."""
    entries: dict[str, TensorEntry] = {}
    for index in range(count):
        cursor.place = f"tensor {index} of {count}"
        start = cursor.at
        name = cursor.string(KEY_LIMIT)
        cursor.place = f"tensor {name!r}"
        if name in entries:
            raise cursor.error("appears twice", start)
        shape = _shape(cursor)
        kind = cursor.u32()
        form = TENSOR_TYPES.get(kind)
        if form is None:
            raise cursor.error(f"there is no tensor type {kind}", cursor.at - 4, "a newer or an obsolete ggml wrote it")
        if shape[-1] % form.block:
            raise cursor.error(f"rows of {shape[-1]} are not whole blocks of {form.block} ({form.name})", start)
        offset = cursor.u64()
        if offset % alignment:
            raise cursor.error(f"offset {offset} is not a multiple of the alignment {alignment}", cursor.at - 8)
        entries[name] = TensorEntry(name, shape, form, offset, form.nbytes(math.prod(shape)))
    return list(entries.values())


def _shape(cursor: Cursor) -> tuple[int, ...]:
    dimensions = cursor.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.error(f"has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible", cursor.at - 4)
    start = cursor.at
    shape = tuple(cursor.u64() for _ in range(dimensions))[::-1]
    if 0 in shape:
        raise cursor.error(f"shape {list(shape)} has a zero", start)
    return shape


def _placed(mapping: MappedFile, entries: list[TensorEntry], start: int) -> tuple[TensorEntry, ...]:
    """The rows with offsets from the start of the file; refuses what lies outside it or overlaps."""
    placed = [TensorEntry(e.name, e.shape, e.format, e.offset + start, e.nbytes) for e in entries]
    before: TensorEntry | None = None
    for entry in sorted(placed, key=lambda e: e.offset):
        if entry.offset + entry.nbytes > mapping.size:
            raise CheckpointError(
                f"{list(entry.shape)} {entry.format.name} needs {entry.nbytes} bytes, the file ends at {mapping.size}",
                file=mapping.path,
                tensor=entry.name,
                offset=entry.offset,
                remedy="the file is truncated or damaged: get it again from its source",
            )
        if before is not None and before.offset + before.nbytes > entry.offset:
            raise CheckpointError(
                f"overlaps tensor {before.name!r}, which ends at byte {before.offset + before.nbytes}",
                file=mapping.path,
                tensor=entry.name,
                offset=entry.offset,
                remedy="the file is damaged: get it again from its source",
            )
        before = entry
    return tuple(placed)
