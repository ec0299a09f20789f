"""Threads of a pool let others in, until one of those keeps the processor for long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcore.native import courtesy
from llmcore.native.control import BRIEF, KEPT_UNTIL, LONGEST, OFFER_ROWS, SHORTEST

LINE = 4096  # where a thread's control line is said to be
MS = 1_000_000


class Processor:
    """A thread's memory, its clock, and those who wait for its processor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 10**15
        self.words: dict[int, int] = {}
        self.takes = 0
        self.yields = 0
        monkeypatch.setattr(courtesy, "_now", lambda line: self.time)
        monkeypatch.setattr(courtesy, "_sched_yield", self._yield)
        monkeypatch.setattr(courtesy, "load_i64", lambda address: self.words.get(address, 0))
        monkeypatch.setattr(courtesy, "store_i64", self.words.__setitem__)
        self._offer: Callable[[int], None] = courtesy.offer_processor.py_func

    def _yield(self) -> None:
        self.yields += 1
        self.time += self.takes

    def offer(self, takes: int) -> bool:
        """Whether an offer was made to one who takes it for so long."""
        before, self.takes = self.yields, takes
        self._offer(LINE)
        return self.yields > before

    @property
    def kept_for(self) -> int:
        return self.words[LINE + KEPT_UNTIL] - self.time


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Processor:
    return Processor(monkeypatch)


def test_who_is_brief_is_let_in_each_time(processor):
    assert all(processor.offer(takes) for takes in (0, 1000, BRIEF, 300_000, BRIEF))


def test_after_a_long_one_nobody_is_let_in_for_a_while(processor):
    assert processor.offer(4 * MS)
    assert processor.kept_for == SHORTEST
    for _ in range(10):
        processor.time += SHORTEST // 11
        assert not processor.offer(0)
    processor.time += SHORTEST // 10
    assert processor.offer(0)


def test_one_who_computes_without_end_gets_ever_less(processor):
    pauses = []
    for _ in range(12):
        assert processor.offer(4 * MS)
        pauses.append(processor.kept_for)
        processor.time += processor.kept_for
    assert pauses[:3] == [SHORTEST, 2 * SHORTEST, 4 * SHORTEST]
    assert pauses[-2:] == [LONGEST, LONGEST]
    assert max(pauses) == LONGEST
    share = 12 * 4 * MS / (12 * 4 * MS + sum(pauses))
    assert share < 0.03


def test_a_brief_one_makes_up_for_long_ones(processor):
    for _ in range(3):
        processor.offer(5 * MS)
        processor.time += processor.kept_for
    assert processor.offer(1000)  # 8 times the shortest would have been next
    assert processor.offer(5 * MS)
    assert processor.kept_for == 4 * SHORTEST
    processor.time += processor.kept_for
    for _ in range(20):
        assert processor.offer(1000)
    assert processor.offer(5 * MS)
    assert processor.kept_for == SHORTEST


C_COUNT = """
static int count;
int sched_yield(void) { count++; return 0; }
int counted(void) { return count; }
"""

PYTHON_COUNT = """
import ctypes, sys, time
import numpy as np
from llmcore.native.abi import native_kernel
from llmcore.native.pool import WorkerPool

@native_kernel
def nothing(operands, thread, threads):
    pass

rows, threads = map(int, sys.argv[2:])
claims, operands, table = (np.zeros((rows, words), np.int64) for words in (8, 1, 2))
operands[:, 0] = claims.ctypes.data + 64 * np.arange(rows)
table[:, 0], table[:, 1] = nothing(), operands.ctypes.data + 8 * np.arange(rows)
with WorkerPool(threads) as pool:
    pool.run(table)
    time.sleep(0.2 * (threads > 1))  # workers spin for less before they sleep
print(ctypes.CDLL(sys.argv[1]).counted())
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose ``sched_yield`` counts."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler, and LD_PRELOAD")
    folder = tmp_path_factory.mktemp("count")
    (folder / "count.c").write_text(C_COUNT)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "count.so", folder / "count.c"], check=True)
    return folder / "count.so"


def counted(counter: Path, rows: int, threads: int) -> int:
    """Offers in a process that runs a program of so many rows."""
    command = [sys.executable, "-c", PYTHON_COUNT, str(counter), str(rows), str(threads)]
    environment = {**os.environ, "LD_PRELOAD": str(counter), "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


@pytest.mark.parametrize(("rows", "offers"), [(1, 1), (OFFER_ROWS, 1), (3 * OFFER_ROWS + 1, 4)])
def test_programs_offer_every_few_rows(counter, rows, offers):
    assert counted(counter, rows, threads=1) == offers


def test_every_thread_offers(counter):
    """The caller does, and the other one too, which waits for the next run when this one has ended."""
    idle = counted(counter, 1, threads=2) - 1
    assert idle > 1
    assert counted(counter, 1000 * OFFER_ROWS, threads=2) >= 1000 + idle // 2
