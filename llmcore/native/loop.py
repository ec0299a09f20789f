"""The compiled half of the worker pool: the loops that threads run without the GIL. :mod:`llmcore.native.pool` has the
other half, and the idea.

Importing this imports Numba.
"""

from __future__ import annotations

from numba import types

from llmcore.native.compiling import inlined, native_function
from llmcore.native.control import (
    ANNOUNCED,
    FLAG,
    FRONT,
    IDLE_ROUNDS,
    LINE,
    PARKED,
    PAUSES,
    ROWS,
    STATE,
    STOP,
    TABLE,
    THREADS,
    WOKEN,
    YIELDS,
)
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


@native_function("void(int64, int64, int64, int64)")
def run(control: int, address: int, rows: int, threads: int) -> None:
    """The caller's side: opens a run of the table at ``address``, takes part in it as thread 0, closes it."""
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


@native_function("int64(int64, int64)")
def announce(control: int, threads: int) -> int:
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


@native_function("int64(int64, int64, int64)")
def serve(control: int, thread: int, threads: int) -> int:
    """A worker's side: joins runs as they come. Returns 1 to go to sleep, 0 to end."""
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
                return 1
            if exchange(parked, 0) == 0:  # whoever announced the run has counted this thread as asleep
                return 1
            idle = 0
        _sched_yield()
    return 0
