"""A file of repacked weights: safetensors, aligned for kernels, mapped in huge pages where the system has them.

Data begin on a page's boundary and each array on one of 64 bytes; what lies between is an array of its own, since the
format allows no gaps. The header says how long the file is, and holds a checksum over itself and over one word of every
page, so that a file that was cut off, or pages that never reached the disk, are found without reading all of it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALIGNMENT = 64
PAGE = 4096
CHUNK = 8 << 20  # bytes written at a time, at multiples of it: the system can keep them in huge pages
RESERVE = 512 << 20  # bytes that stay free on the disk
DTYPES = {"uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "bfloat16": "BF16"}
DTYPES |= {"uint32": "U32", "int32": "I32", "float32": "F32", "int64": "I64", "float64": "F64"}
NUMPY = {name: dtype for dtype, name in DTYPES.items()}
PADDING = "padding "
ENTRY = 160  # characters that a header's entry takes at most, beside its name
METADATA = "__metadata__"


class Unkeepable(Exception):
    """These arrays cannot be written: the disk is full, or they are of no type of the format."""


def write(path: Path, key: str, names: Iterable[str], arrays: Iterable[tuple[str, Array]]) -> None:
    """Writes ``path`` whole or not at all, whoever else does the same.

    Args:
        key: what :func:`read` will ask for.
        names: of all ``arrays``, known before the first of them is made.

    Raises:
        OSError: it cannot be written.
        Unkeepable: the disk has not enough room, or an array has a type that safetensors does not know.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as part:
        try:
            _Writer(part.fileno(), _room(names)).write(key, arrays)
            Path(part.name).replace(path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def _room(names: Iterable[str]) -> int:
    """Bytes of the header, before it is known what it says: every array and the padding behind it is named there."""
    longest = sum(len(json.dumps(name)) + len(PADDING) + 2 * ENTRY for name in names)
    return -(-(8 + 2 * ENTRY + longest) // PAGE) * PAGE


class _Writer:
    """Gathers what is written into chunks."""

    def __init__(self, handle: int, room: int) -> None:
        """``room``: bytes that the header takes."""
        self.handle = handle
        self.room = room
        self.chunk = np.zeros(CHUNK, np.uint8)
        self.filled = room % CHUNK
        self.at = room  # in the file
        self.words = 0  # checksum so far
        self.entries: dict[str, Any] = {}
        os.ftruncate(handle, room - self.filled)
        os.lseek(handle, room - self.filled, os.SEEK_SET)

    def write(self, key: str, arrays: Iterable[tuple[str, Array]]) -> None:
        for name, array in arrays:
            if array.dtype.name not in DTYPES:
                raise Unkeepable(f"{name} is an array of {array.dtype}")
            data = np.ascontiguousarray(array)
            self._add(name, DTYPES[array.dtype.name], list(array.shape), data.reshape(-1).view(np.uint8))
            gap = -self.at % ALIGNMENT
            if gap:
                self._add(f"{PADDING}{len(self.entries)}", "U8", [gap], np.zeros(gap, np.uint8))
        self._flush()
        metadata = {"format": "llmcore packed", "key": key, "check": str(_check(self.words, self.entries))}
        header = json.dumps({METADATA: metadata, **self.entries}).encode()
        length = self.room - 8
        if len(header) > length:
            raise Unkeepable(f"its header takes {len(header)} bytes, and {length} were kept free")
        os.pwrite(self.handle, length.to_bytes(8, "little") + header.ljust(length), 0)

    def _add(self, name: str, dtype: str, shape: list[int], data: Array) -> None:
        begin = self.at - self.room
        self.entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + data.nbytes]}
        while data.nbytes:
            taken = data[: CHUNK - self.filled]
            self.chunk[self.filled : self.filled + taken.nbytes] = taken
            self.filled += taken.nbytes
            self.at += taken.nbytes
            data = data[taken.nbytes :]
            if self.filled == CHUNK:
                self._flush()

    def _flush(self) -> None:
        if shutil.disk_usage(self.handle).free < RESERVE:
            raise Unkeepable(f"less than {RESERVE >> 20} MB of the disk are free")
        start = self.at - self.filled
        skipped = max(self.room - start, 0)  # the header's pages are none of the data's
        self.words = _words(self.chunk[skipped : self.filled], self.words)
        rest = self.chunk[: self.filled].data
        while rest:
            rest = rest[os.write(self.handle, rest) :]
        self.filled = 0


def _words(data: Array, before: int = 0) -> int:
    """A checksum over the first word of every page; ``data`` begins on a page's boundary."""
    whole = data[: data.nbytes // 8 * 8].view(np.uint64)
    return zlib.crc32(whole[:: PAGE // 8].tobytes(), before)


def _check(words: int, entries: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entries).encode(), words)


def read(path: Path, key: str) -> dict[str, Array] | None:
    """The arrays of ``path``, mapped and read-only; None if it was not written for ``key``, or is damaged.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size <= 8:
            return None
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    start = 8 + int.from_bytes(mapping[:8], "little")
    if start > len(mapping) or start % PAGE:
        return None
    data = np.frombuffer(mapping, np.uint8)[start:]
    try:
        header = json.loads(mapping[8:start])
        metadata = header.pop(METADATA)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if metadata["key"] != key or end != data.nbytes or int(metadata["check"]) != _check(_words(data), header):
            return None
        return {name: _array(data, entry) for name, entry in header.items() if not name.startswith(PADDING)}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):  # a header that is not what we write
        return None


def _array(data: Array, entry: Mapping[str, Any]) -> Array:
    begin, end = entry["data_offsets"]
    name = NUMPY[entry["dtype"]]
    if name == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(name)
    shape = tuple(entry["shape"])
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("shape and bytes differ")
    array: Array = data[begin:end].view(dtype).reshape(shape)
    return array
