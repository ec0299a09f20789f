"""The pool of threads that runs native programs: each walks through all rows in one compiled loop, without the GIL.

Between two rows is an *elastic barrier*. A thread raises its flag, calls the row's kernel, lowers the flag, and goes on
when no thread has its flag up for that row. Kernels take their work in chunks from an atomic counter, so a thread that
returns from a kernel knows that every chunk is taken, and the flags tell when the last of them is done. Nobody waits
for a thread that the operating system has put aside between rows: it finds no chunks left when it comes, and catches
up.

A run is open between two values of the state word: odd is open, the next even value is closed. Workers join by
themselves, whenever they come; a raised flag is worth something only if the state was still the same after it was
raised, so the caller may close a run and wait for raised flags alone. Idle workers spin for some tens of microseconds,
then sleep until the next run.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np

from llmcore.errors import LlmcoreError
from llmcore.native import SCRATCH_BYTES
from llmcore.native.code import loader
from llmcore.native.control import ANNOUNCED, LINE, STOP, THREADS, WOKEN

Table = np.ndarray[Any, np.dtype[np.int64]]


def _function(name: str, result: Any, arguments: int) -> Callable[..., Any]:
    """A function of :mod:`llmcore.native.loop`, called without the GIL."""
    kind = ctypes.CFUNCTYPE(result, *[ctypes.c_int64] * arguments)
    return kind(loader().address(f"llmcore.native.loop:{name}"))


@cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    return _function("run", None, 4), _function("announce", ctypes.c_int64, 2), _function("serve", ctypes.c_int64, 3)


def _work(block: Table, thread: int, threads: int, bell: threading.Lock) -> None:
    """The body of a worker thread; it holds the control block, not the pool."""
    serve = _compiled()[2]
    while serve(block.ctypes.data, thread, threads):
        bell.acquire()  # released by whoever took this thread's PARKED word back


def _stop(block: Table, workers: list[threading.Thread], bells: list[threading.Lock]) -> None:
    block[STOP // 8] = 1
    for bell in bells:
        _release(bell)
    for worker in workers:
        if worker.ident is not None and worker is not threading.current_thread():
            worker.join()


def _release(bell: threading.Lock) -> None:
    if bell.locked():  # else it has been rung already, and nobody has come yet
        bell.release()


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
        self._run, self._announce, _ = _compiled()
        self._start_over()

    def _start_over(self) -> None:
        """State without workers."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._block = _aligned_words(THREADS + self.threads * LINE)
        self._control = int(self._block.ctypes.data)
        self._bells = [threading.Lock() for _ in range(1, self.threads)]
        self._workers = [self._worker(thread) for thread in range(1, self.threads)]
        self._complete = self.threads == 1
        self._finalizer = weakref.finalize(self, _stop, self._block, self._workers, self._bells)

    def _worker(self, thread: int) -> threading.Thread:
        bell = self._bells[thread - 1]
        bell.acquire()
        arguments = (self._block, thread, self.threads, bell)
        return threading.Thread(target=_work, args=arguments, name=f"llmcore-{thread}", daemon=True)

    def _start_workers(self) -> None:
        """Starts those that an earlier attempt, if it was interrupted, has not: never two of one number."""
        for worker in self._workers:
            if worker.ident is None:
                worker.start()
        self._complete = True

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
        if os.getpid() != self._pid and self._finalizer.alive:
            self._start_over()
        with self._lock:
            if not self._finalizer.alive:
                raise PoolClosedError("the worker pool is closed", remedy="run before closing it, or make another one")
            if not self._complete:
                self._start_workers()
            try:
                if self.threads > 1 and self._announce(self._control, self.threads):
                    self._ring()
                self._run(self._control, address, rows, self.threads)
            except BaseException:
                self._block[ANNOUNCED // 8] = 0  # else workers would await the run that has not come
                raise

    def _ring(self) -> None:
        """Wakes those that ``_announce`` has counted. If it is interrupted, a bell may ring twice, but not never."""
        for thread in range(1, self.threads):
            word = (THREADS + thread * LINE + WOKEN) // 8
            if self._block[word]:
                _release(self._bells[thread - 1])
                self._block[word] = 0

    def close(self) -> None:
        """Ends the workers and waits for them; a second call does nothing."""
        if os.getpid() != self._pid:  # a forked child: its workers, and whoever held the lock, are its parent's
            self._finalizer.detach()
            return
        with self._lock:
            self._finalizer()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
