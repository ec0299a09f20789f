"""The KV cache's memory, taken before it is needed, while requests are answered.

The system gives memory as it is touched, and the first touch of a page of keys and values, some twenty pages of the
system's for each layer of a small model, holds up the step that makes it: by some tenths of a ms on a machine of one's
own, by several where a hypervisor has to find that memory first.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from llmcore.device.base import Array

POPULATE_WRITE = 23  # madvise's advice: as if every page were written, with what it holds (Linux 5.14)
BLOCK = 2 << 20  # bytes of each array before the next array's turn, and between two looks at what is spare
SLICE = 128 << 10  # bytes at a time: nobody else in the process can map memory meanwhile
REST = 2  # times as long as a slice has taken
RESERVE = 1 << 30  # bytes that are left to others
FILES = Path("/")  # where the system says what is spare


class Preallocation:
    """A thread that takes the memory of arrays, from their beginnings on, a third of the time at most.

    It ends early where memory is short, when it is closed or dropped, and at once where the system cannot do it: what
    it has left is taken as it is touched.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        """Starts it. Meanwhile the arrays can be used like any others."""
        stop = threading.Event()
        self._thread = threading.Thread(target=_run, args=(arrays, stop), name="llmcore-preallocation", daemon=True)
        self._finalizer = weakref.finalize(self, stop.set)
        with suppress(RuntimeError):  # there can be no more threads
            self._thread.start()

    def wait(self) -> None:
        """Until it has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def close(self) -> None:
        """Ends it soon."""
        self._finalizer()


def _run(arrays: Sequence[Array], stop: threading.Event) -> None:
    for offset in range(0, max((array.nbytes for array in arrays), default=0), BLOCK):
        for array in arrays:
            if spare_memory() < RESERVE:
                return
            for begin in range(offset, min(offset + BLOCK, array.nbytes), SLICE):
                started = time.perf_counter()
                if not take(array, begin, SLICE) or stop.wait(REST * (time.perf_counter() - started)):
                    return


def take(array: Array, offset: int, nbytes: int) -> bool:
    """Takes the memory of some bytes of a C-contiguous array, and changes none; False if the system cannot."""
    if sys.platform != "linux":
        return False
    page = mmap.PAGESIZE
    begin, end = array.ctypes.data + offset, array.ctypes.data + min(offset + nbytes, array.nbytes)
    begin, end = -(-begin // page) * page, end // page * page  # whole pages, which are the array's alone
    if begin >= end:
        return True
    madvise = ctypes.CDLL(None).madvise  # the mmap module's holds the GIL
    return bool(madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), POPULATE_WRITE) == 0)


def spare_memory() -> int:
    """Bytes that the machine and every cgroup of this process have left; a large number where none says so."""
    return min([1 << 62, *_of_machine(), *_of_groups()])


def _of_machine() -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in (FILES / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) << 10


def _of_groups() -> Iterator[int]:
    with suppress(OSError, ValueError):
        for line in (FILES / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            group = PurePosixPath(path.lstrip("/"))
            for each in (group, *group.parents):
                if not controllers:  # version 2
                    yield from _of_group(FILES / "sys/fs/cgroup" / each, "memory.max", "memory.current", "")
                elif "memory" in controllers.split(","):
                    files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
                    yield from _of_group(FILES / "sys/fs/cgroup/memory" / each, *files)


def _of_group(folder: Path, limit: str, used: str, prefix: str) -> Iterator[int]:
    """What is used but for files that need not stay in memory; nothing where there is no limit, or no such group."""
    with suppress(OSError, ValueError):
        most = int((folder / limit).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        files = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        yield most - int((folder / used).read_text()) + files
