"""Memory for repacked weights: a few large mappings that the system may back with huge pages.

A step streams through all of it. With pages of 2 MB in place of 4 kB the processor looks up a five-hundredth of the
addresses, and its prefetcher, which stops at the end of a page, goes on.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
HUGE = 2 << 20  # bytes of a huge page on x86 and most ARM systems
SLAB = 64 << 20
ALIGNMENT = 64


@dataclass
class Slabs:
    """Arrays placed one behind the other; they live as long as anybody holds one of them."""

    free: Array = field(default_factory=lambda: np.empty(0, np.uint8))

    def place(self, array: Array) -> Array:
        """A copy of the C-contiguous ``array``."""
        room = -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if room > self.free.nbytes:
            self.free = _slab(max(SLAB, room))
        taken, self.free = self.free[: array.nbytes], self.free[room:]
        copy = taken.view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy


def _slab(nbytes: int) -> Array:
    """Anonymous memory from a huge page's boundary on; the system gives pages as they are touched."""
    memory = mmap.mmap(-1, (nbytes // HUGE + 2) * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    block = np.frombuffer(memory, np.uint8)
    start = -block.ctypes.data % HUGE
    return block[start : start + nbytes]
