"""What this machine allows, measured on the spot: how fast it reads memory and computes; and the state that it is in.

The roofline (Williams, Waterman & Patterson 2009, doi:10.1145/1498765.1498785): an op that reads B bytes and computes F
operations takes at least ``max(B / bandwidth, F / peak)``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.device.host import aligned
from llmcore.graph.segments import NativeRow, NativeSegment
from llmcore_tools.bench.machine import memory_bytes

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool

PASSES = 7
TRIPS = 50_000
EMPTY_RUNS = 400
LEAST_S = 2e-3  # of one timed run of arithmetic: starting it must not matter
IN_MEMORY = 1 << 30  # bytes that no cache holds


@dataclass(frozen=True)
class Roofline:
    """The limits of ``threads`` threads.

    Attributes:
        bandwidth: bytes per second when reading as many bytes as the model's weights have.
        peaks: kind of arithmetic (``f32``, ``int8``) → operations per second.
    """

    threads: int
    bandwidth: float
    peaks: Mapping[str, float]

    def peak(self, kind: str) -> float:
        """Operations per second of a kind; where it was not measured, those of float32."""
        return self.peaks.get(kind, self.peaks["f32"])

    def seconds(self, nbytes: float, operations: float, kind: str) -> float:
        """The least time for so much work."""
        return max(nbytes / self.bandwidth, operations / self.peak(kind))


@contextmanager
def pool_of(threads: int) -> Iterator[WorkerPool]:
    """A worker pool that is closed afterwards."""
    from llmcore.native.pool import WorkerPool

    with WorkerPool(threads) as pool:
        yield pool


def machine_state(threads: int, nbytes: int) -> dict[str, Any]:
    """How the machine is just now: reading ``nbytes`` on all threads, a cache line between two of them, its load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with pool_of(threads) as pool:
        reads = [_read_record(pool, nbytes)]
        trip = round_trip_ns(pool) if threads > 1 else None
    return {"read": reads, "round_trip_ns": trip, "load": load}


def measure(threads: int, nbytes: int) -> tuple[Roofline, dict[str, Any]]:
    """The roofline of ``threads`` threads for weights of ``nbytes``, and all that was measured as plain data.

    Reading is measured over ``nbytes`` and over more than any cache holds, on one thread and on all.
    """
    large = min(IN_MEMORY, (memory_bytes() or IN_MEMORY) // 8)
    reads: list[dict[str, Any]] = []
    computes: list[dict[str, Any]] = []
    for count in sorted({1, threads}):
        with pool_of(count) as pool:
            reads += [_read_record(pool, size) for size in (nbytes, large)]
            computes += [
                {"threads": count, "kind": kind, "gops_per_s": rate / 1e9} for kind, rate in peaks(pool).items()
            ]
    bandwidth = next(r["gb_per_s"] for r in reads if r["threads"] == threads) * 1e9
    most = {record["kind"]: record["gops_per_s"] * 1e9 for record in computes if record["threads"] == threads}
    return Roofline(threads, bandwidth, most), {"read": reads, "compute": computes}


def _read_record(pool: WorkerPool, nbytes: int) -> dict[str, Any]:
    read, bandwidth = read_bandwidth(pool, nbytes)
    return {"threads": pool.threads, "bytes": read, "gb_per_s": bandwidth / 1e9}


def read_bandwidth(pool: WorkerPool, nbytes: int) -> tuple[int, float]:
    """Bytes read at a time (``nbytes``, in whole chunks), and bytes per second: the median of some passes."""
    from llmcore_tools.bench.probes import CHUNK, read

    chunks = max(nbytes // CHUNK, 1)
    block = aligned(chunks * CHUNK)
    block[:] = 0  # until something is written there is no memory to read
    run = _row(pool, read(), [int(block.ctypes.data), chunks])
    run()
    return chunks * CHUNK, chunks * CHUNK / median(_seconds(run) for _ in range(PASSES))


def peaks(pool: WorkerPool) -> dict[str, float]:
    """Operations per second of each kind of arithmetic, by the fastest way known here."""
    from llmcore_tools.bench.probes import arithmetic

    found = {}
    for kind, variants in arithmetic().items():
        found[kind] = max(_rate(pool, kernel(), operations) for kernel, operations in variants)
    return found


def _rate(pool: WorkerPool, function: int, operations: int) -> float:
    """Operations per second of an arithmetic kernel, whose chunks have so many each."""
    chunks = 8 * pool.threads
    while True:
        run = _row(pool, function, [chunks])
        if _seconds(run) > LEAST_S:
            return chunks * operations / min(_seconds(run) for _ in range(PASSES))
        chunks *= 2


def round_trip_ns(pool: WorkerPool) -> float | None:
    """Nanoseconds for a cache line there and back; None where the second thread did not come."""
    from llmcore_tools.bench.probes import round_trips

    line = aligned(256, 128).view(np.int64)
    run = _row(pool, round_trips(), [int(line.ctypes.data), TRIPS])
    found = []
    for _ in range(3):
        line[:] = 0
        seconds = _seconds(run)
        if line[16] == TRIPS:
            found.append(seconds / TRIPS * 1e9)
    return min(found, default=None)


def empty_row(pool: WorkerPool) -> NativeSegment:
    """A row that has no work, to be run as a node is."""
    from llmcore_tools.bench.probes import nothing

    return _segment(pool, nothing(), [])


def empty_row_s(empty: NativeSegment) -> float:
    """Seconds that it takes to run a row that has no work, by itself: one of the shortest tries."""
    return sorted(_seconds(lambda: empty.run_node(0)) for _ in range(EMPTY_RUNS))[EMPTY_RUNS // 20]


def _segment(pool: WorkerPool, function: int, operands: list[int]) -> NativeSegment:
    return NativeSegment(pool, [0], [NativeRow(function, operands)])


def _row(pool: WorkerPool, function: int, operands: list[int]) -> Callable[[], None]:
    return _segment(pool, function, operands).run


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
