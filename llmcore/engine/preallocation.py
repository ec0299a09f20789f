"""The KV cache's memory, taken before it is needed, while requests are answered.

The system gives memory as it is touched, and the first touch of a page of keys and values, some twenty pages of the
system's for each layer of a small model, holds up the step that makes it: by some tenths of a ms on a machine of one's
own, by several where a hypervisor has to find that memory first.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llmcore.device.base import Array

POPULATE_WRITE = 23  # madvise's advice: as if every page were written, with what it holds (Linux 5.14)
SLICE = 2 << 20  # bytes of each array at a time
RESERVE = 1 << 30  # bytes that are left to others


class Preallocation:
    """A thread that takes the memory of arrays, from their beginnings on, when nobody else wants the processor.

    It ends early where memory is short, and at once where the system cannot do it: what it has left is taken as it is
    touched.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        """Starts it. Meanwhile the arrays can be used like any others."""
        self._arrays = arrays
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="llmcore-preallocation", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it has ended."""
        self._thread.join()

    def close(self) -> None:
        """Ends it."""
        self._closing = True
        self.wait()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # on Linux, of this thread alone
        for offset in range(0, max((array.nbytes for array in self._arrays), default=0), SLICE):
            if spare_memory() < RESERVE:
                return
            for array in self._arrays:
                if self._closing or not take(array, offset, SLICE):
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
    """Bytes that the machine, and the cgroup (version 2), have left; a large number where nothing says so."""
    found = [1 << 62]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # no limit is "max", which is no number
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found)
