"""How the Numba backend divides the work of an op: every unit once, whoever comes; alone and together in long runs."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.native import COUNTERS
from llmcore.native.abi import specialised
from llmcore_numba.chunks import COUNTER, REGIONS, claims_early, next_run


class Row:
    """The counters of a row, and an operand table that begins with them."""

    def __init__(self) -> None:
        self.counters = np.zeros(COUNTERS, np.int64)
        self.operands = np.array([self.counters.ctypes.data], np.int64)

    def run(self, thread: int, threads: int, units: int, past: int) -> tuple[int, int, int]:
        """What ``next_run`` gives, interpreted."""
        return _next_run(self.operands.ctypes.data, thread, threads, units, past)


def _fetch_add(address: int, value: int) -> int:
    word = np.ctypeslib.as_array(_words(address), (1,))
    before = int(word[0])
    word[0] += value
    return before


def _load(address: int) -> int:
    return int(np.ctypeslib.as_array(_words(address), (1,))[0])


def _words(address: int) -> ctypes._Pointer[ctypes.c_int64]:
    return ctypes.cast(address, ctypes.POINTER(ctypes.c_int64))


_next_run = specialised(next_run.py_func, "next_run_here", fetch_add=_fetch_add, load_i64=_load)


@given(
    units=st.integers(0, 300),
    threads=st.integers(1, 2 * REGIONS + 1),
    turns=st.lists(st.integers(0, 100), max_size=60),
)
def test_every_unit_once_whoever_comes(units, threads, turns):
    row, past, seen = Row(), dict.fromkeys(range(threads), 0), []
    order = [turn % threads for turn in turns]
    last = order[-1] if order else 0  # the one that goes on to the end: others may never come back
    for thread in [*order, *[last] * 1000]:
        first, end, past[thread] = row.run(thread, threads, units, past[thread])
        seen += range(first, end)
        if thread == last and first == end:
            break
    assert sorted(seen) == list(range(units))


@pytest.mark.parametrize(("threads", "units"), [(1, 48), (2, 48), (3, 1000), (6, 97)])
def test_a_thread_reads_its_own_region_in_order_then_helps(threads, units):
    row, past = Row(), 0
    runs = []
    while True:
        first, end, past = row.run(1 % threads, threads, units, past)
        if first == end:
            break
        runs.append((first, end, past))
    home = 1 % threads
    own = [(first, end) for first, end, past in runs if past == 0]
    assert own[0][0] == units * home // threads
    assert own[-1][1] == units * (home + 1) // threads
    assert all(before[1] == after[0] for before, after in itertools.pairwise(own))
    sizes = [end - first for first, end in own]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == -(-sum(sizes) // 2)
    assert sizes[-1] == 1
    assert past == threads


def test_what_is_taken_by_others_is_left_out():
    row = Row()
    assert row.run(0, 2, 16, 0) == (0, 4, 0)
    assert row.run(1, 2, 16, 0) == (8, 12, 0)
    assert [row.run(1, 2, 16, 0)[:2] for _ in range(3)] == [(12, 14), (14, 15), (15, 16)]
    assert row.run(1, 2, 16, 0) == (4, 6, 1)  # of what the other has left
    assert row.run(0, 2, 16, 0) == (6, 7, 0)


def test_nobody_claims_early_where_another_would_go_without():
    claims = claims_early.py_func
    assert not claims(8, 18, 32)
    assert claims(8, 18, 2)
    assert not claims(1, 1000, 2)  # one token: memory takes all of the time


def test_counters_are_those_of_the_row():
    row = Row()
    for thread in range(REGIONS):
        row.run(thread, REGIONS + 3, 100, 0)
    assert COUNTER // 8 + REGIONS == COUNTERS
    assert row.counters.tolist() == [0, 0, *[1] * REGIONS]
