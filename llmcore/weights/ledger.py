"""What is known about the content of files, so that it is found out once and not at every start.

Notes lie in ``<cache>/packed``, one small JSON file for each file's signature (path, inode, size, times of change). A
file that changes has another signature, and nothing is known about it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmcore.errors import ConfigError
from llmcore.weights.cachedir import CacheWarning, subfolder
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor, check_finite

SETTLED_NS = 2_000_000_000
"""Of a file that changed less than this ago nothing is noted: it may change again within the same tick of the clock."""
LEAST = 4 << 20
"""Bytes: what is smaller is read, and packed, as fast as a note of it is found."""


@dataclass
class Ledger:
    """Notes about files.

    Attributes:
        folder: where they are kept; None to know nothing and to write nothing.
        least: bytes of a file, or of packed weights, that are worth it.
        writable: whether the folder can be written to, as far as is known; others may have filled it.
    """

    folder: Path | None
    least: int = LEAST
    writable: bool = True

    @classmethod
    def at(cls, cache_dir: Path | None = None) -> Ledger:
        """The ledger of a cache directory; one that keeps nothing, after a warning, where there can be none."""
        try:
            return cls(subfolder("packed", cache_dir))
        except ConfigError as error:
            ledger = cls(None)
            ledger.give_up(error)
            return ledger

    def sha256(self, file: MappedFile) -> str | None:
        """The digest of a file's content; None if it has changed since it was mapped."""
        note = self._note(file)
        if "sha256" not in note:
            digest = _digest(file)
            if digest is None:
                return None
            note["sha256"] = digest
            self._write(file, note)
        return note["sha256"]

    def check_finite(self, tensors: Iterable[Tensor]) -> None:
        """Looks for NaN and infinity in all tensors of those files in which they have not been looked at yet.

        Raises:
            CheckpointError: one is not finite.
        """
        by_file: dict[MappedFile, list[Tensor]] = {}
        for tensor in tensors:
            by_file.setdefault(tensor.mapping, []).append(tensor)
        for file, members in by_file.items():
            note, looked_at = self._note(file), _places(members)
            if note.get("finite") != looked_at:
                check_finite(members)
                self._write(file, note | {"finite": looked_at})

    def _path(self, file: MappedFile) -> Path | None:
        name = hashlib.sha256(json.dumps(file.signature).encode()).hexdigest()
        return self.folder / f"{name[:32]}.json" if self.folder and file.size >= self.least else None

    def _note(self, file: MappedFile) -> dict[str, str]:
        path = self._path(file)
        if path is None:
            return {}
        try:
            note = json.loads(path.read_bytes())
        except (OSError, ValueError):  # none yet, or a damaged one: it is written anew
            return {}
        touch(path)
        return note if isinstance(note, dict) and all(isinstance(value, str) for value in note.values()) else {}

    def _write(self, file: MappedFile, note: dict[str, str]) -> None:
        path = self._path(file)
        settled = time.time_ns() - file.signature[-1] > SETTLED_NS
        if path is None or not self.writable or not settled or not file.unchanged():
            return
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as part:
                part.write(json.dumps(note).encode())
            Path(part.name).replace(path)
        except OSError as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Writes nothing any more, and says so, once."""
        self.writable = False
        warnings.warn(f"repacked weights are not kept: {error}", CacheWarning, stacklevel=4)


def touch(path: Path) -> None:
    """Notes that ``path`` is of use; what nobody uses is removed one day."""
    with suppress(OSError):  # in a cache that we may only read, whoever writes it decides
        os.utime(path)


def _digest(file: MappedFile) -> str | None:
    """Read, not mapped: a whole file would count as this process's memory."""
    try:
        with file.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
    return digest if file.unchanged() else None


def _places(tensors: Iterable[Tensor]) -> str:
    places = sorted((tensor.offset, tensor.nbytes, tensor.format.name) for tensor in tensors)
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()
