"""The pool of threads that runs native programs: each walks through all rows in one compiled loop, without the GIL.

Between two rows is an *elastic barrier*. A thread raises its flag, calls the row's kernel, lowers the flag, and goes on
when no thread has its flag up for that row. Kernels take their work in chunks from an atomic counter, so a thread that
returns from a kernel knows that every chunk is taken, and the flags tell when the last of them is done. Nobody waits
for a thread that the operating system has put aside between rows: it finds no chunks left when it comes, and catches
up.

A run is open between two values of the state word: odd is open, the next even value is closed. Workers join by
themselves, whenever they come; a raised flag is worth something only if the state was still the same after it was
raised, so the caller may close a run and wait for raised flags alone. Idle workers spin for longer than the time
between two steps, then sleep until the next run. They never hold the GIL: to wake them takes no Python. And all threads
offer their processors, every few rows, to others that are brief (:mod:`llmcore.native.courtesy`).
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from llmcore.errors import LlmcoreError
from llmcore.native import SCRATCH_BYTES
from llmcore.native.code import loader
from llmcore.native.control import LINE, READY, THREAD, THREADS

Table = np.ndarray[Any, np.dtype[np.int64]]


def _function(name: str, arguments: int, result: Any = None) -> Callable[..., Any]:
    kind = ctypes.CFUNCTYPE(result, *[ctypes.c_int64] * arguments)
    return kind(loader().address(f"llmcore.native.loop:{name}"))


class _Loop(NamedTuple):
    """The functions of :mod:`llmcore.native.loop`."""

    prepare: Callable[[int], None]
    run: Callable[[int, int, int, int], int]
    serve: Callable[[int, int, int], None]
    stop: Callable[[int], None]


@cache
def _compiled() -> _Loop:
    """Each is called without the GIL."""
    run = _function("run", 4, ctypes.c_int64)
    return _Loop(_function("prepare", 1), run, _function("serve", 3), _function("stop", 1))


def _serve(block: Table, thread: int, threads: int) -> None:
    """The body of a worker thread; it holds the control block, not the pool."""
    _compiled().serve(block.ctypes.data, thread, threads)


def _stop(block: Table, workers: list[threading.Thread]) -> None:
    _compiled().stop(block.ctypes.data)
    for worker in workers:
        if worker.ident is not None and worker is not threading.current_thread():
            worker.join()


def _aligned_words(nbytes: int) -> Table:
    block = np.zeros(nbytes // 8 + 16, np.int64)
    return block[-block.ctypes.data % LINE // 8 :][: nbytes // 8]


class PoolClosedError(LlmcoreError, RuntimeError):
    """A program is run on a pool that is closed."""


class WorkerPool:
    """Runs tables of native kernels on ``threads`` threads, the caller's included.

    Workers are started by the first run, are daemons, and sleep between requests. Several threads may share a pool (one
    run at a time), and several pools may exist. A forked child has no workers; its first run starts its own. An
    exception in the middle of a run (an interrupt, say) leaves the pool as good as before.

    Attributes:
        threads: threads that take part, the caller included.
        scratch: address of ``SCRATCH_BYTES`` for every thread; memory is taken only where it is touched.
    """

    def __init__(self, threads: int) -> None:
        assert threads >= 1
        self.threads = threads
        self._memory = _aligned_words(threads * SCRATCH_BYTES)
        self.scratch = int(self._memory.ctypes.data)
        self._run = _compiled().run
        self._start_over()
        _pools.add(self)

    def _start_over(self) -> None:
        """State without workers."""
        self._lock = threading.Lock()
        self._block = _aligned_words(THREADS + self.threads * THREAD)
        self._control = int(self._block.ctypes.data)
        _compiled().prepare(self._control)
        self._workers = [self._worker(thread) for thread in range(1, self.threads)]
        self._finalizer = weakref.finalize(self, _stop, self._block, self._workers)

    def forked(self) -> None:
        """In a forked child: the workers, and whoever holds the lock or a mutex, are its parent's."""
        if self._finalizer.detach() is not None:
            self._start_over()

    def _worker(self, thread: int) -> threading.Thread:
        arguments = (self._block, thread, self.threads)
        return threading.Thread(target=_serve, args=arguments, name=f"llmcore-{thread}", daemon=True)

    def _start_workers(self) -> None:
        """Starts those that an earlier attempt, if it was interrupted, has not: never two of one number."""
        with self._lock:
            if not self._finalizer.alive:
                raise PoolClosedError("the worker pool is closed", remedy="run before closing it, or make another one")
            for worker in self._workers:
                if worker.ident is None:
                    worker.start()
            self._block[READY // 8] = 1

    def run(self, table: Table) -> None:
        """Runs every row of ``table`` (int64 [n, 2]: function address, operands address), one after the other.

        Returns when all are done. The counters that the operands point to are set to zero first.

        Raises:
            PoolClosedError: the pool is closed.
        """
        assert table.dtype == np.int64 and table.ndim == 2 and table.shape[1] == 2 and table.flags.c_contiguous
        self.run_at(int(table.ctypes.data), len(table))

    def run_at(self, address: int, rows: int) -> None:
        """:meth:`run` for the table of ``rows`` rows at an address, which numpy takes a microsecond to say."""
        while not self._run(self._control, address, rows, self.threads):
            self._start_workers()

    def close(self) -> None:
        """Ends the workers and waits for them; a second call does nothing."""
        with self._lock:
            self._finalizer()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _forked() -> None:
    for pool in _pools:
        pool.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
