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

import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np
from numba import types

from llmcore.errors import LlmcoreError
from llmcore.native import SCRATCH_BYTES
from llmcore.native.compiling import compiled, inlined
from llmcore.native.memory import (
    call_kernel,
    exchange,
    load_acquire,
    load_i64,
    load_ordered,
    pause,
    store_i64,
    store_release,
)

Table = np.ndarray[Any, np.dtype[np.int64]]

# The control block, in bytes: one line for the run, one for its progress, one for each thread. Lines lie two cache
# lines apart, since processors fetch pairs.
LINE = 128
STATE, ANNOUNCED, TABLE, ROWS, STOP = 0, 8, 16, 24, 32
FRONT = LINE  # rows that thread 0 has passed: where a late thread begins
THREADS = 2 * LINE
FLAG, PARKED, WOKEN = 0, 8, 16  # within a thread's line; FLAG holds the row + 1 that it works on

PAUSES = 256  # before a waiting thread offers its processor to others
YIELDS = 32  # and this often, before it sleeps
IDLE_ROUNDS = 10  # of PAUSES each before an idle worker goes to sleep: 50 to 100 µs

_sched_yield = types.ExternalFunction("sched_yield", types.int32())
_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@inlined  # type: ignore[untyped-decorator]
def _line(control: int, thread: int) -> int:
    return control + THREADS + thread * LINE


@inlined  # type: ignore[untyped-decorator]
def _await_change(address: int, value: int) -> None:
    """Waits until the word at ``address`` is not ``value``."""
    spins = 0
    while load_acquire(address) == value:
        spins += 1
        if spins < PAUSES:
            pause()
        elif spins < PAUSES + YIELDS:
            _sched_yield()
        else:  # whoever we wait for has lost its processor: it may need the time that spinning takes
            _usleep(50)


@inlined  # type: ignore[untyped-decorator]
def _walk(control: int, state: int, thread: int, threads: int) -> None:
    """Runs the rows of the run ``state`` that are not passed yet; returns early when that run has been closed."""
    table, rows = load_acquire(control + TABLE), load_acquire(control + ROWS)
    flag = _line(control, thread) + FLAG
    row = load_acquire(control + FRONT)
    while row < rows:
        exchange(flag, row + 1)
        if load_ordered(control + STATE) != state:
            store_release(flag, 0)
            return
        call_kernel(load_i64(table + row * 16), load_i64(table + row * 16 + 8), thread, threads)
        store_release(flag, 0)
        for other in range(threads):
            if other != thread:
                _await_change(_line(control, other) + FLAG, row + 1)
        row += 1
        if thread == 0:
            store_release(control + FRONT, row)


def _run(control: int, table: Table, threads: int) -> None:
    """The caller's side: opens a run, takes part in it as thread 0, closes it."""
    address, rows = table.ctypes.data, len(table)
    for row in range(rows):
        counters = load_i64(load_i64(address + row * 16 + 8))
        store_i64(counters, 0)
        store_i64(counters + 8, 0)
    if threads == 1:
        for row in range(rows):
            call_kernel(load_i64(address + row * 16), load_i64(address + row * 16 + 8), 0, 1)
        return
    store_i64(control + TABLE, address)
    store_i64(control + ROWS, rows)
    store_i64(control + FRONT, 0)
    state = load_i64(control + STATE) + 1
    exchange(control + STATE, state)
    _walk(control, state, 0, threads)
    exchange(control + STATE, state + 1)
    for thread in range(1, threads):
        flag = _line(control, thread) + FLAG
        raised = load_ordered(flag)
        if raised != 0:
            _await_change(flag, raised)


def _announce(control: int, threads: int) -> int:
    """Keeps workers from going to sleep before the next run; returns how many are asleep and must be woken.

    Those that an interrupted run has announced to, and not woken, are among them.
    """
    exchange(control + ANNOUNCED, load_i64(control + STATE) + 1)
    woken = 0
    for thread in range(1, threads):
        line = _line(control, thread)
        if load_ordered(line + PARKED) != 0 and exchange(line + PARKED, 0) != 0:
            store_i64(line + WOKEN, 1)
        woken += load_i64(line + WOKEN)
    return woken


def _serve(control: int, thread: int, threads: int) -> bool:
    """A worker's side: joins runs as they come. Returns True to go to sleep, False to end."""
    parked = _line(control, thread) + PARKED
    done = 0
    idle = 0
    while load_acquire(control + STOP) == 0:
        state = load_acquire(control + STATE)
        if state & 1 and state != done:
            _walk(control, state, thread, threads)
            done = state
            idle = 0
            continue
        for _ in range(PAUSES):
            pause()
            if load_acquire(control + STATE) != state:
                break
        idle += 1
        if idle > IDLE_ROUNDS:
            exchange(parked, 1)
            now = load_ordered(control + STATE)
            coming = load_ordered(control + ANNOUNCED) > now or (now & 1 and now != done)
            if not coming and load_ordered(control + STOP) == 0:
                return True
            if exchange(parked, 0) == 0:  # whoever announced the run has counted this thread as asleep
                return True
            idle = 0
        _sched_yield()
    return False


@cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    return compiled(_run), compiled(_announce), compiled(_serve)


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
        if os.getpid() != self._pid and self._finalizer.alive:
            self._start_over()
        with self._lock:
            if not self._finalizer.alive:
                raise PoolClosedError("the worker pool is closed", remedy="run before closing it, or make another one")
            if not self._complete:
                self._start_workers()
            try:
                if self._announce(self._control, self.threads):
                    self._ring()
                self._run(self._control, table, self.threads)
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
