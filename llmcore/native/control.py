"""The control block that a pool's threads share, in bytes.

One line for the run, one for its progress, some for taking turns and for sleeping, and two for each thread: what others
look at, and what it keeps for itself. Lines lie two cache lines apart, since processors fetch pairs.
"""

from __future__ import annotations

LINE = 128
STATE, TABLE, ROWS = 0, 8, 16
STOPPED = -2  # a state that no run has
READY = 24  # whether runs are accepted: workers are started, and not stopped
FRONT = LINE  # rows that thread 0 has passed: where a late thread begins
TURN = 2 * LINE  # pthread's mutex, 64 bytes at most, that a run holds
SLEEPERS = 3 * LINE  # workers that are asleep, or about to be
MUTEX, BELL = 4 * LINE, 5 * LINE  # pthread's mutex and condition that they sleep with
THREADS = 6 * LINE
THREAD = 2 * LINE
FLAG = 0  # within a thread's lines; it holds the row + 1 that the thread works on
CLOCK = LINE  # a timespec
KEPT_UNTIL, PATIENCE = LINE + 16, LINE + 24  # ns: when the processor is offered again; how long it is kept next time

PAUSES = 2048  # some tens of µs, before a thread that waits for others within a run sleeps
IDLE_PAUSES = 12_800  # before an idle worker goes to sleep: a few hundred µs, longer than between two steps

OFFER_ROWS = 8  # between two offers of the processor to others
OFFER_PAUSES = 512  # of an idle worker, between two
BRIEF = (
    1_000_000  # ns for which others may have it: less than a slice of Linux (1.4 ms on two processors, more on more)
)
SHORTEST, LONGEST = 10_000_000, 320_000_000  # ns for which it is kept after somebody has had it for longer
