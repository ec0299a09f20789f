"""Memory between two pages that nobody may touch.

A stray access there ends the process, be it a read or a write; guard bytes see writes only.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections import defaultdict
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Fence = Literal["", "before", "behind"]
"""On which side of a buffer the forbidden page begins; on neither, it has guard bytes on both."""

PAGE = mmap.PAGESIZE
FORBIDDEN = 0  # PROT_NONE, which Python has no name for
LARGE = 64 * PAGE  # what has more is not kept: there are too many sizes
UNUSED = 2  # references to a mapping that nobody uses: the pool's, and the one by which it is asked


def available() -> bool:
    """Whether this system can forbid pages."""
    return sys.platform != "win32"


def forbid(block: Array) -> None:
    """Makes whole pages inaccessible, for good."""
    assert block.ctypes.data % PAGE == 0 and block.nbytes % PAGE == 0
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(ctypes.c_void_p(block.ctypes.data), ctypes.c_size_t(block.nbytes), FORBIDDEN):
        raise OSError(ctypes.get_errno(), "mprotect")


def mapping(nbytes: int) -> Array:
    """Fresh pages that nobody else has."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


class Enclosures:
    """Whole pages with a forbidden one on either side; small ones are used again when nobody holds them any more."""

    def __init__(self) -> None:
        self._made: defaultdict[int, list[Array]] = defaultdict(list)  # by size, forbidden pages included

    def take(self, nbytes: int) -> Array:
        """The least number of pages that ``nbytes`` fit, one at least."""
        size = max(PAGE, -(-nbytes // PAGE) * PAGE) + 2 * PAGE
        made = self._made[size] if size <= LARGE else []
        free = next((i for i in range(len(made)) if sys.getrefcount(made[i]) == UNUSED), None)
        if free is None:
            free = len(made)
            made.append(mapping(size))
            forbid(made[free][:PAGE])
            forbid(made[free][-PAGE:])
        return made[free][PAGE:-PAGE]


ENCLOSURES = Enclosures()
