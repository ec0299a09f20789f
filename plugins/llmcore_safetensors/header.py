"""The header of a safetensors file, read strictly and in bounded memory.

A file is a u64 header length, a JSON object ``{name: {"dtype", "shape", "data_offsets": [begin, end]}}`` with an
optional ``__metadata__`` of strings, padded with spaces, and then the data, which the tensors must cover without gap or
overlap. A general JSON parser would build whatever a hostile header asks for before we could look at it; this one walks
the outer object itself, and parses each entry, of bounded length, by itself.
Specification: "Format" in the safetensors project's README.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from llmcore.errors import CheckpointError
from llmcore.weights.formats import FORMATS, TensorFormat, storage
from llmcore.weights.json_file import refuse_constant, unique_keys
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor

HEADER_LIMIT = 16 << 20  # the format allows 100 MB; a model of 65,536 tensors needs 10
ENTRY_LIMIT = 4096  # characters of one tensor's entry
COUNT_LIMIT = 65_536  # tensors in one file, and entries in its metadata
NAME_LIMIT = 1024  # characters of a name
MAX_DIMENSIONS = 8
METADATA = "__metadata__"

DTYPES: dict[str, TensorFormat] = {
    **{name: FORMATS[name] for name in ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL")},
    "U16": storage("U16", 1, 2, "<u2"),
    "U32": storage("U32", 1, 4, "<u4"),
    "U64": storage("U64", 1, 8, "<u8"),
    "C64": storage("C64", 1, 8, "<c8"),
    "F8_E4M3": storage("F8_E4M3", 1, 1),
    "F8_E5M2": storage("F8_E5M2", 1, 1),
    "F8_E8M0": storage("F8_E8M0", 1, 1),
}

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant)


@dataclass(frozen=True)
class Header:
    """What one file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(mapping: MappedFile) -> Header:
    """The tensors and the metadata of ``mapping``.

    Raises:
        CheckpointError: not safetensors, truncated, or inconsistent; names the tensor and the byte.
    """
    if mapping.size < 8:
        raise CheckpointError(f"has {mapping.size} bytes, not even a header length", file=mapping.path, offset=0)
    length = int.from_bytes(mapping.buffer[:8], "little")
    if length > mapping.size - 8:
        raise CheckpointError(
            f"the header of {length} bytes runs past the end of the file ({mapping.size} bytes)",
            file=mapping.path,
            offset=0,
            remedy="the file is truncated, or is not safetensors: get it again from its source",
        )
    if length > HEADER_LIMIT:
        raise CheckpointError(
            f"the header of {length} bytes is longer than {HEADER_LIMIT}", file=mapping.path, offset=0
        )
    try:
        text = mapping.buffer[8 : 8 + length].decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("the header is not UTF-8", file=mapping.path, offset=8 + error.start) from error
    return _Parser(mapping, text, 8 + length).header()


class _Parser:
    """Walks the outer object of a header; ``at`` is the next character."""

    def __init__(self, mapping: MappedFile, text: str, data_start: int) -> None:
        self.mapping = mapping
        self.text = text
        self.data_start = data_start
        self.at = 0

    def error(self, message: str, tensor: str | None = None, at: int | None = None) -> CheckpointError:
        end, step = self.at if at is None else at, 1 << 16  # in steps: no second copy of a long header
        byte = 8 + sum(len(self.text[start : min(start + step, end)].encode()) for start in range(0, end, step))
        remedy = "the file is damaged: get it again from its source"
        return CheckpointError(message, file=self.mapping.path, tensor=tensor, offset=byte, remedy=remedy)

    def header(self) -> Header:
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] | None = None
        if not self.text.startswith("{"):
            raise self.error("the header does not start with '{'")
        if self.text.count("data_offsets") > COUNT_LIMIT:
            raise self.error(f"more than {COUNT_LIMIT} entries")
        for name in self._members():
            start = self.at
            if name == METADATA:
                if metadata is not None:
                    raise self.error(f"{METADATA} appears twice")
                metadata = self._metadata()
            elif name in tensors:
                raise self.error("appears twice", name)
            else:
                tensors[name] = self._tensor(name, self._entry(name), start)
        if self.text[self.at :].strip(" "):
            raise self.error("something follows the header's object")
        self._check_cover(tensors)
        return Header(tensors, metadata or {})

    def _members(self) -> Any:
        """Yields the keys of the object at :attr:`at`; the caller moves past each value before asking for the next."""
        self._expect("{")
        if self._peek() == "}":
            self.at += 1
            return
        for _ in range(COUNT_LIMIT):
            key = self._string()
            if len(key) > NAME_LIMIT:
                raise self.error(f"a name is longer than {NAME_LIMIT} characters")
            self._expect(":")
            self._peek()
            yield key
            if self._peek() == "}":
                self.at += 1
                return
            self._expect(",")
        raise self.error(f"more than {COUNT_LIMIT} entries")

    def _peek(self) -> str:
        """The next character that is not space; empty at the end."""
        if self.text[self.at : self.at + 1].isspace() and (space := _SPACE.match(self.text, self.at)):
            self.at = space.end()
        return self.text[self.at : self.at + 1]

    def _expect(self, character: str) -> None:
        found = self._peek()
        if found != character:
            raise self.error(f"the header's JSON has {found or 'its end'!r} where {character!r} belongs")
        self.at += 1

    def _string(self) -> str:
        if self._peek() != '"':
            raise self.error("the header's JSON lacks a string here")
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except ValueError as error:
            raise self.error(f"the header's JSON is damaged: {error}") from error
        return str(value)

    def _metadata(self) -> dict[str, str]:
        metadata: dict[str, str] = {}
        for key in self._members():
            if key in metadata:
                raise self.error(f"{METADATA} has key {key!r} twice")
            metadata[key] = self._string()
        return metadata

    def _entry(self, name: str) -> dict[str, Any]:
        """The object at :attr:`at`: it holds no other object, so it ends at the first closing brace."""
        end = self.text.find("}", self.at, self.at + ENTRY_LIMIT) + 1
        if not end:
            raise self.error(f"its entry does not end within {ENTRY_LIMIT} characters", name)
        try:
            value = _DECODER.decode(self.text[self.at : end])
        except (ValueError, RecursionError) as error:
            raise self.error(f"its entry is not JSON: {error}", name) from error
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise self.error("its entry does not have exactly dtype, shape and data_offsets", name)
        self.at = end
        return value

    def _tensor(self, name: str, entry: dict[str, Any], at: int) -> Tensor:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self.error(f"dtype {dtype!r} is not one that we read ({', '.join(DTYPES)})", name, at)
        if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
            raise self.error(f"shape {shape!r} is not a list of up to {MAX_DIMENSIONS} sizes", name, at)
        if not _sizes(offsets) or len(offsets) != 2:
            raise self.error(f"data_offsets {offsets!r} are not two offsets", name, at)
        begin, end = offsets
        if not begin <= end <= self.mapping.size - self.data_start:
            data = self.mapping.size - self.data_start
            raise self.error(f"data_offsets {offsets} lie outside the file's {data} bytes of data", name, at)
        wanted = DTYPES[dtype].nbytes(math.prod(shape))
        if end - begin != wanted:
            raise self.error(f"{shape} {dtype} needs {wanted} bytes, data_offsets span {end - begin}", name, at)
        return Tensor(name, tuple(shape), DTYPES[dtype], self.mapping, self.data_start + begin)

    def _check_cover(self, tensors: dict[str, Tensor]) -> None:
        """Refuses overlaps, and bytes that belong to no tensor."""
        end, before = self.data_start, "the header"
        for tensor in sorted(tensors.values(), key=lambda each: (each.offset, each.nbytes)):
            if tensor.offset != end:
                what = "overlaps" if tensor.offset < end else "leaves a gap after"
                raise self._misplaced(f"{what} {before}, which ends at byte {end}", tensor.name, tensor.offset)
            end, before = end + tensor.nbytes, f"tensor {tensor.name!r}"
        if end != self.mapping.size:
            raise self._misplaced(f"{self.mapping.size - end} bytes after {before} belong to no tensor", None, end)

    def _misplaced(self, message: str, tensor: str | None, offset: int) -> CheckpointError:
        remedy = "the file is damaged: get it again from its source"
        return CheckpointError(message, file=self.mapping.path, tensor=tensor, offset=offset, remedy=remedy)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 62 for each in value)
