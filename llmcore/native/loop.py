"""The compiled half of the worker pool: the loops that threads run without the GIL. :mod:`llmcore.native.pool` has the
other half, and the idea.

Importing this imports Numba.
"""

from __future__ import annotations

from numba import types

from llmcore.native import COUNTERS
from llmcore.native.compiling import inlined, native_function
from llmcore.native.control import (
    BELL,
    FLAG,
    FRONT,
    IDLE_PAUSES,
    MUTEX,
    OFFER_PAUSES,
    OFFER_ROWS,
    PAUSES,
    READY,
    ROWS,
    SLEEPERS,
    STATE,
    STOPPED,
    TABLE,
    THREAD,
    THREADS,
    TURN,
)
from llmcore.native.courtesy import offer_processor
from llmcore.native.memory import (
    call_kernel,
    exchange,
    fetch_add,
    load_acquire,
    load_i64,
    load_ordered,
    pause,
    store_i64,
    store_release,
)

_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))
_mutex_init = types.ExternalFunction("pthread_mutex_init", types.int32(types.int64, types.int64))
_mutex_lock = types.ExternalFunction("pthread_mutex_lock", types.int32(types.int64))
_mutex_unlock = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.int64))
_cond_init = types.ExternalFunction("pthread_cond_init", types.int32(types.int64, types.int64))
_cond_wait = types.ExternalFunction("pthread_cond_wait", types.int32(types.int64, types.int64))
_cond_broadcast = types.ExternalFunction("pthread_cond_broadcast", types.int32(types.int64))


@inlined  # type: ignore[untyped-decorator]
def _line(control: int, thread: int) -> int:
    return control + THREADS + thread * THREAD


@inlined  # type: ignore[untyped-decorator]
def _await_change(address: int, value: int) -> None:
    """Waits until the word at ``address`` is not ``value``.

    After a while whoever we wait for has lost its processor, and may need the time that spinning takes. A thread that
    sleeps is soon back; one that yields is put behind all others (Linux 6.18); and one that somebody wakes is often put
    on the processor of whoever did.
    """
    spins = 0
    while load_acquire(address) == value:
        spins += 1
        if spins < PAUSES:
            pause()
        else:
            _usleep(50)


@inlined  # type: ignore[untyped-decorator]
def _await_state(control: int, thread: int, state: int) -> None:
    """Waits until the state is not ``state``: spins for longer than steps are apart, then sleeps until it is told."""
    for pauses in range(IDLE_PAUSES):
        if load_acquire(control + STATE) != state:
            return
        if pauses % OFFER_PAUSES == OFFER_PAUSES - 1:
            offer_processor(_line(control, thread))
        pause()
    _mutex_lock(control + MUTEX)
    fetch_add(control + SLEEPERS, 1)
    while load_ordered(control + STATE) == state:
        _cond_wait(control + BELL, control + MUTEX)
    fetch_add(control + SLEEPERS, -1)
    _mutex_unlock(control + MUTEX)


@inlined  # type: ignore[untyped-decorator]
def _tell(control: int, state: int) -> None:
    """Sets the state and wakes the sleepers. A worker that is not among them yet will see it.

    Once the mutex was free, none of them is between its look at the state and its sleep.
    """
    exchange(control + STATE, state)
    if load_ordered(control + SLEEPERS) != 0:
        _mutex_lock(control + MUTEX)
        _mutex_unlock(control + MUTEX)
        _cond_broadcast(control + BELL)


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
        if row % OFFER_ROWS == 0:
            offer_processor(_line(control, thread))
        for other in range(threads):
            if other != thread:
                _await_change(_line(control, other) + FLAG, row + 1)
        row += 1
        if thread == 0:
            store_release(control + FRONT, row)


@native_function("int64(int64, int64, int64, int64)")
def run(control: int, address: int, rows: int, threads: int) -> int:
    """The caller's side: runs the table at ``address``, callers in turns; returns 0 if the pool is not ready."""
    _mutex_lock(control + TURN)
    ready = load_i64(control + READY)
    if ready:
        for row in range(rows):
            counters = load_i64(load_i64(address + row * 16 + 8))
            for counter in range(COUNTERS):
                store_i64(counters + counter * 8, 0)
        if threads == 1:
            for row in range(rows):
                call_kernel(load_i64(address + row * 16), load_i64(address + row * 16 + 8), 0, 1)
                if row % OFFER_ROWS == 0:
                    offer_processor(_line(control, 0))
        else:
            _run_together(control, address, rows, threads)
    _mutex_unlock(control + TURN)
    return ready


@inlined  # type: ignore[untyped-decorator]
def _run_together(control: int, address: int, rows: int, threads: int) -> None:
    """Opens a run, takes part in it as thread 0, closes it."""
    store_i64(control + TABLE, address)
    store_i64(control + ROWS, rows)
    store_i64(control + FRONT, 0)
    state = load_i64(control + STATE) + 1
    _tell(control, state)
    _walk(control, state, 0, threads)
    exchange(control + STATE, state + 1)
    for thread in range(1, threads):
        flag = _line(control, thread) + FLAG
        raised = load_ordered(flag)
        if raised != 0:
            _await_change(flag, raised)


@native_function("void(int64, int64, int64)")
def serve(control: int, thread: int, threads: int) -> None:
    """A worker's side: joins runs as they come, until the pool is stopped."""
    state = load_acquire(control + STATE)
    while state != STOPPED:
        if state & 1:
            _walk(control, state, thread, threads)
        _await_state(control, thread, state)
        state = load_acquire(control + STATE)


@native_function("void(int64)")
def prepare(control: int) -> None:
    """Makes a control block of zeros ready for use."""
    _mutex_init(control + TURN, 0)
    _mutex_init(control + MUTEX, 0)
    _cond_init(control + BELL, 0)


@native_function("void(int64)")
def stop(control: int) -> None:
    """Lets every worker return from :func:`serve`, after the run that is under way."""
    _mutex_lock(control + TURN)
    store_i64(control + READY, 0)
    _tell(control, STOPPED)
    _mutex_unlock(control + TURN)
