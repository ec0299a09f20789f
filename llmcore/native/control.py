"""The control block that a pool's threads share, in bytes.

One line for the run, one for its progress, one for each thread. Lines lie two cache lines
apart, since processors fetch pairs.
"""

from __future__ import annotations

LINE = 128
STATE, ANNOUNCED, TABLE, ROWS, STOP = 0, 8, 16, 24, 32
FRONT = LINE  # rows that thread 0 has passed: where a late thread begins
THREADS = 2 * LINE
FLAG, PARKED, WOKEN = 0, 8, 16  # within a thread's line; FLAG holds the row + 1 that it works on

PAUSES = 256  # before a waiting thread offers its processor to others
YIELDS = 32  # and this often, before it sleeps
IDLE_ROUNDS = 10  # of PAUSES each before an idle worker goes to sleep: 50 to 100 µs
