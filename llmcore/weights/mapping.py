"""A file mapped into memory, read-only: the bytes that every tensor of a checkpoint is a view of."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcore.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]
Signature = tuple[str, int, int, int, int, int]
"""Path, device, inode, size, and when content and inode last changed, in ns: a change of content shows in it."""


class MappedFile:
    """A whole file as one read-only uint8 array; pages are read by the kernel when they are first touched.

    Args:
        path: a regular file that is not empty.

    Raises:
        CheckpointError: the file cannot be opened, is empty, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():  # opening a pipe would block for ever
            raise CheckpointError("is missing, or not a regular file", file=path, remedy="check the path")
        try:
            with path.open("rb") as file:
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.signature = signature(path, os.fstat(file.fileno()))
        except ValueError as error:
            raise CheckpointError("the file is empty", file=path, offset=0, remedy="download it again") from error
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", file=path) from error
        self._bytes: Bytes | None = np.frombuffer(self._map, dtype=np.uint8)
        self.size = self._bytes.size

    @property
    def bytes(self) -> Bytes:
        """[size] uint8, not writable; raises :class:`CheckpointError` after :meth:`close`."""
        if self._bytes is None:
            raise CheckpointError("the checkpoint is closed", file=self.path, remedy="open it again")
        return self._bytes

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping itself, for ``struct.unpack_from`` and slicing into ``bytes``."""
        if self._map is None:
            raise CheckpointError("the checkpoint is closed", file=self.path, remedy="open it again")
        return self._map

    def unchanged(self) -> bool:
        """Whether the file at :attr:`path` is still the one that was mapped, with the content that it had then."""
        try:
            return signature(self.path, self.path.stat()) == self.signature
        except OSError:
            return False

    def forget(self, start: int, nbytes: int) -> None:
        """Takes the pages that lie within a range out of this process; they come back when they are next touched."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED, first, length)

    def close(self) -> None:
        """Lets go of the mapping; the pages are unmapped when the last array that views them is gone."""
        self._bytes = None
        self._map = None


def signature(path: Path, found: os.stat_result) -> Signature:
    """The signature of a file, of what the system says about it."""
    return str(path.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
