"""Operand memory that notices what a kernel does to it and around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from llmcore.device import Device
from llmcore.device.host import aligned
from llmcore.native import SCRATCH_BYTES
from llmcore.testing.fences import ENCLOSURES, Fence, forbid, mapping

Array = np.ndarray[Any, Any]

FILL = (
    0x5A  # of guards and of memory that nobody has written: as floats about 1e16, finite and never a plausible result
)
LEAST_GUARD = 256  # bytes
SCRATCH_GUARD = 16 << 10


class KernelMismatch(AssertionError):
    """A kernel does something else than its op; the message says what, where and by how much."""


class KernelRaised(KernelMismatch):
    """A kernel raised an exception, which is this one's cause."""


class Guarded:
    """An array with guard zones on both sides.

    Args:
        name: of the operand, for messages.
        shape, dtype: of the array.
        skewed: whether it begins one element past a 64-byte boundary instead of on it.
        fence: on which side a forbidden page touches it: a kernel that strays there ends the process. A buffer with one
            behind it begins where that lets it, skewed or not, and is full pages away from one before it.

    The guards are two rows wide, so a kernel that is off by one row stays within them.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, skewed: bool = False, fence: Fence = ""
    ) -> None:
        self.name = name
        nbytes = math.prod(shape) * dtype.itemsize
        if fence:
            self._block = ENCLOSURES.take(nbytes)
            self._start = self._block.nbytes - nbytes if fence == "behind" else 0
        else:
            row = math.prod(shape[1:]) * dtype.itemsize
            guard = -(-max(LEAST_GUARD, 2 * row) // 64) * 64
            self._start = guard + (max(dtype.itemsize, 2) if skewed else 0)
            self._block = aligned(self._start + nbytes + guard)
        self._block[:] = FILL
        self.array: Array = self._block[self._start :][:nbytes].view(dtype).reshape(shape)
        self._before: bytes | None = None

    @classmethod
    def holding(cls, name: str, values: Array, *, skewed: bool = False, fence: Fence = "") -> Guarded:
        """A guarded copy of ``values`` that a kernel may read only."""
        guarded = cls(name, values.shape, values.dtype, skewed=skewed, fence=fence)
        guarded.array[...] = values
        guarded._before = guarded.array.tobytes()
        return guarded

    @classmethod
    def output(
        cls, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, skewed: bool = False, fence: Fence = ""
    ) -> Guarded:
        """Memory to be written, full of NaN (integers: of :data:`FILL`)."""
        guarded = cls(name, shape, dtype, skewed=skewed, fence=fence)
        if dtype.kind != "i":
            guarded.array[...] = np.nan
        return guarded

    @property
    def address(self) -> int:
        """Where the array begins; numpy says something else of an empty one."""
        return int(self._block.ctypes.data) + self._start

    def lend(self, device: Device) -> tuple[Any, Callable[[], None]]:
        """The array on ``device``, guards around it; and what brings all of it back."""
        block = device.put(self._block)

        def back() -> None:
            self._block[...] = device.fetch(block)

        return device.view(block, self._start, self.array.shape, self.array.dtype.name), back

    def release(self) -> Guarded:
        """The same memory, to be overwritten: an output that takes over an input."""
        self._before = None
        return self

    def check(self) -> None:
        """Raises :class:`KernelMismatch` where a guard, or a value that is only to be read, has changed."""
        end = self._start + self.array.nbytes
        for zone, origin in ((self._block[: self._start], self._start), (self._block[end:], 0)):
            _check_zone(self.name, zone, origin)
        if self._before is not None and self.array.tobytes() != self._before:
            raise KernelMismatch(f"{self.name}: was changed, though the op only reads it")


class Scratch:
    """Scratch memory of several threads, each with guards on both sides.

    A kernel finds its own by its number, ``SCRATCH_BYTES`` from one to the next. So it is told that its threads are the
    numbers 0, ``STEP``, 2 ``STEP`` …, and what lies between belongs to threads that never come: guard bytes, or
    forbidden pages where ``fenced``.
    """

    STEP = 2

    def __init__(self, threads: int, *, fenced: bool = False) -> None:
        self.threads = (threads - 1) * self.STEP + 1  # as the kernel is told
        nbytes = (self.threads + 2) * SCRATCH_BYTES
        block = self._block = mapping(nbytes) if fenced else aligned(nbytes)
        self.address = int(block.ctypes.data) + SCRATCH_BYTES
        starts = [(1 + number) * SCRATCH_BYTES for number in range(0, self.threads, self.STEP)]
        self._before: list[Array] = []
        self._behind: list[Array] = []
        if fenced:
            for start in set(range(0, nbytes, SCRATCH_BYTES)) - set(starts):
                forbid(block[start : start + SCRATCH_BYTES])
            return
        self._before = [block[start - SCRATCH_GUARD : start] for start in starts]
        self._behind = [block[start + SCRATCH_BYTES :][:SCRATCH_GUARD] for start in starts]
        for zone in (*self._before, *self._behind):
            zone[:] = FILL

    def check(self) -> None:
        """Raises :class:`KernelMismatch` where a guard has changed."""
        for thread, zones in enumerate(zip(self._before, self._behind, strict=True)):
            for zone, origin in zip(zones, (SCRATCH_GUARD, 0), strict=True):
                _check_zone(f"scratch of thread {thread}", zone, origin)


def _check_zone(name: str, zone: Array, origin: int) -> None:
    """Raises :class:`KernelMismatch` where a guard has changed; ``origin``: the guard's size where it lies before."""
    changed = np.flatnonzero(zone != FILL)
    if changed.size:
        zone[...] = FILL  # scratch memory is used again: said once is enough
        first = int(changed[0]) - origin
        place = f"{-first} bytes before its start" if origin else f"{first} bytes past its end"
        raise KernelMismatch(f"{name}: {changed.size} bytes outside it were overwritten, first {place}")
