"""Segments: the runs of nodes of one kind that a program consists of."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmcore.device import Device
from llmcore.device.host import aligned
from llmcore.native import COUNTERS, HEADER
from llmcore.registry.operand import Operand

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool


class Segment(Protocol):
    """Consecutive nodes that run by one mechanism."""

    kind: str
    nodes: list[int]

    def run(self) -> None:
        """Runs them over the sizes that the step block holds."""

    def run_node(self, index: int) -> None:
        """Runs the ``index``-th of them alone; what it reads must be there. For measuring."""


def bits(value: Any) -> int:
    """An attribute as a native kernel reads it: integers and booleans as they are, floats as the bits of a float64."""
    if isinstance(value, float | np.floating):
        return int(struct.unpack("<q", struct.pack("<d", value))[0])
    return int(value)


@dataclass(frozen=True)
class NativeRow:
    """One native call before it has a place in a table.

    Attributes:
        function: address of the kernel.
        operands: what follows the header.
        before: kernels that run first, over the same operands.
    """

    function: int
    operands: Sequence[int]
    before: Sequence[int] = ()


class NativeSegment:
    """Rows of (function, operand table), run by one compiled loop on all workers of a pool; a node has one or more."""

    kind = "native"

    def __init__(self, pool: WorkerPool, nodes: list[int], rows: Sequence[NativeRow]) -> None:
        """Lays the tables out: counters on a cache line of its own for every call, operands behind each other.

        ``rows`` has one for each of ``nodes``.
        """
        self.nodes = nodes
        self.pool = pool
        calls = [(function, row.operands) for row in rows for function in (*row.before, row.function)]
        self.ends = np.cumsum([len(row.before) + 1 for row in rows])  # of each node's calls
        self.counters = aligned(8 * COUNTERS * len(calls)).view(np.int64)
        self.operands = np.zeros(sum(HEADER + len(operands) for _, operands in calls), np.int64)
        self.table = np.zeros((len(calls), 2), np.int64)
        start = 0
        for i, (function, operands) in enumerate(calls):
            self.table[i] = function, self.operands.ctypes.data + 8 * start
            self.operands[start] = self.counters.ctypes.data + 8 * COUNTERS * i
            self.operands[start + 1] = pool.scratch
            start += HEADER + len(operands)
            self.operands[start - len(operands) : start] = operands
        self.address = int(self.table.ctypes.data)

    def run(self) -> None:
        """One pass of the compiled loop."""
        self.pool.run_at(self.address, len(self.table))

    def run_node(self, index: int) -> None:
        """The compiled loop over one node's calls."""
        self.pool.run(self.table[self.ends[index - 1] if index else 0 : self.ends[index]])


class BoundCall:
    """A Python kernel with its arguments: views made at bind time, cut to a step's sizes when these change."""

    def __init__(
        self,
        function: Callable[..., None],
        operands: Sequence[Operand | None],
        view: str,
        attrs: Mapping[str, Any],
        block: np.ndarray[Any, Any],
        slots: Mapping[str, int],
    ) -> None:
        """Args: ``block`` is the step block and ``slots`` each step dimension's index in it."""
        self.function = function
        self.attrs = dict(attrs)
        self.whole = [None if operand is None else operand.view(view) for operand in operands]
        self.cuts = [
            (i, slots[operand.leading]) for i, operand in enumerate(operands) if operand is not None and operand.leading
        ]
        self.block = block
        self.sizes: list[int] | None = None
        self.args = list(self.whole)

    def __call__(self) -> None:
        """Runs the kernel over the step's sizes."""
        sizes = self.block.tolist()
        if sizes != self.sizes:
            for i, slot in self.cuts:
                self.args[i] = self.whole[i][: sizes[slot]]  # type: ignore[index]
            self.sizes = sizes
        self.function(*self.args, **self.attrs)


class CallSegment:
    """Bound Python kernels, one after the other."""

    kind = "calls"

    def __init__(self, nodes: list[int], calls: Sequence[BoundCall]) -> None:
        """A segment of the given calls."""
        self.nodes = nodes
        self.calls = list(calls)

    def run(self) -> None:
        """Calls them in order."""
        for call in self.calls:
            call()

    def run_node(self, index: int) -> None:
        """Calls one of them."""
        self.calls[index]()


class CapturedSegment(CallSegment):
    """Bound kernels whose launches are recorded once and then replayed at a cost of one launch: a CUDA graph.

    Its steps always have the sizes that the program was built for.
    """

    kind = "captured"

    def __init__(self, nodes: list[int], calls: Sequence[BoundCall], device: Device) -> None:
        """Nothing is recorded yet."""
        super().__init__(nodes, calls)
        self._device = device
        self._replay: Callable[[], None] | None = None

    def run(self) -> None:
        """Replays; the first time calls the kernels, which compiles them, and records them for the next."""
        if self._replay is None:
            super().run()
            self._replay = self._device.capture(super().run)
        else:
            self._replay()
