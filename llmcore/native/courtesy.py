"""Offers of a processor that a program's threads keep busy to the threads that wait for it.

A server's event loop, or a client on the same machine, needs some tens of µs for a token, at once. Where programs keep
all processors busy it waits for the scheduler's next tick, 4 ms on most Linux machines: longer than a step of a small
model. So threads yield every few rows. But Linux (6.18) puts whoever yields behind all others, and one of those may
compute without end. Hence patience: after somebody has kept the processor for long, nothing is offered for a while, and
for twice as long if the next one does so too; each that is brief halves that.

Importing this imports Numba.
"""

from __future__ import annotations

import time

from numba import types

from llmcore.native.compiling import inlined
from llmcore.native.control import BRIEF, CLOCK, KEPT_UNTIL, LONGEST, PATIENCE, SHORTEST
from llmcore.native.memory import load_i64, store_i64

MONOTONIC = time.CLOCK_MONOTONIC
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@inlined  # type: ignore[untyped-decorator]
def _now(line: int) -> int:
    """The time in ns, by way of the timespec in the thread's control line."""
    _clock_gettime(MONOTONIC, line + CLOCK)
    return load_i64(line + CLOCK) * 1_000_000_000 + load_i64(line + CLOCK + 8)


@inlined  # type: ignore[untyped-decorator]
def offer_processor(line: int) -> None:
    """Lets others run on this processor first, if the last ones were brief.

    Args:
        line: address of the thread's control line (:mod:`llmcore.native.control`).
    """
    begun = _now(line)
    if begun < load_i64(line + KEPT_UNTIL):
        return
    _sched_yield()
    ended = _now(line)
    patience = max(load_i64(line + PATIENCE), SHORTEST)
    if ended - begun <= BRIEF:
        store_i64(line + PATIENCE, patience // 2)
    else:
        store_i64(line + KEPT_UNTIL, ended + patience)
        store_i64(line + PATIENCE, min(2 * patience, LONGEST))
