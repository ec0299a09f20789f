"""The worker pool: every chunk of every row exactly once, rows in order, whatever the threads do."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcore.errors import LlmcoreError
from llmcore.native import COUNTERS
from llmcore.native.abi import array, claim, dim, fetch_add, native_kernel, scratch, tensor
from llmcore.native.pool import PoolClosedError, WorkerPool


@native_kernel
def mix(operands, thread, threads):
    """Chunk c of a row adds c to an element of the row before: wrong unless that row was finished."""
    before, after = dim(operands, 2), dim(operands, 3)
    x, y = array(tensor(operands, 0), before, np.int64), array(tensor(operands, 1), after, np.int64)
    note = array(scratch(operands, thread), 1, np.int64)
    chunk = claim(operands)
    while chunk < after:
        note[0] = x[(chunk * 7 + 3) % before] + chunk
        y[chunk] += note[0]  # not atomic: two threads in one chunk would show
        chunk = claim(operands)


@native_kernel
def count(operands, thread, threads):
    """Adds one to a word, with no regard to chunks: how many threads came by."""
    fetch_add(tensor(operands, 0), 1)


C_MIX = """
#include <stdint.h>
void mix(int64_t operands, int64_t thread, int64_t threads) {
    int64_t *table = (int64_t *)operands;
    int64_t *x = (int64_t *)table[2], *y = (int64_t *)table[3];
    int64_t before = *(int64_t *)table[4], after = *(int64_t *)table[5];
    for (;;) {
        int64_t chunk = __atomic_fetch_add((int64_t *)table[0], 1, __ATOMIC_SEQ_CST);
        if (chunk >= after) return;
        y[chunk] += x[(chunk * 7 + 3) % before] + chunk;
    }
}
"""


class Chain:
    """A table of ``mix`` rows with random chunk counts, each reading what the one before wrote."""

    def __init__(self, pool: WorkerPool, seed: int, rows: int = 50, kernels: tuple[int, ...] = ()) -> None:
        self.pool = pool
        kernels = kernels or (mix(),)
        self.sizes = np.random.default_rng(seed).integers(1, 24, rows + 1).astype(np.int64)
        self.buffers = [np.zeros(size, np.int64) for size in self.sizes]
        self.buffers[0][:] = np.arange(self.sizes[0])
        self.claims = np.zeros((rows, 8), np.int64)
        self.operands = np.zeros((rows, 6), np.int64)
        self.table = np.zeros((rows, 2), np.int64)
        for row in range(rows):
            dims = self.sizes.ctypes.data
            pointers = self.claims[row].ctypes.data, pool.scratch, self.buffers[row].ctypes.data
            self.operands[row] = *pointers, self.buffers[row + 1].ctypes.data, dims + 8 * row, dims + 8 * row + 8
            self.table[row] = kernels[row % len(kernels)], self.operands[row].ctypes.data
        self.expected = [self.buffers[0]]
        for size in self.sizes[1:]:
            x, chunk = self.expected[-1], np.arange(size)
            self.expected.append(x[(chunk * 7 + 3) % len(x)] + chunk)

    def check(self, runs: int) -> None:
        for _ in range(runs):
            for buffer in self.buffers[1:]:
                buffer.fill(0)
            self.pool.run(self.table)
            for got, wanted in zip(self.buffers, self.expected, strict=True):
                if not np.array_equal(got, wanted):
                    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_every_chunk_once_and_rows_in_order(threads: int) -> None:
    with WorkerPool(threads) as pool:
        for seed in range(10):
            Chain(pool, seed).check(runs=30)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_ten_thousand_runs(threads: int) -> None:
    with WorkerPool(threads) as pool:
        for seed in range(100):
            Chain(pool, seed).check(runs=100)


def worker_takes_part(pool: WorkerPool, most: int = 10_000) -> bool:
    """Runs until some row has been seen by two threads, or for ``most`` runs."""
    word, claims = np.zeros(1, np.int64), np.zeros(COUNTERS, np.int64)
    operands = np.array([claims.ctypes.data, pool.scratch, word.ctypes.data], np.int64)
    table = np.array([[count(), operands.ctypes.data]] * 1000, np.int64)
    runs = 0
    while word[0] <= 1000 * runs and runs < most:
        pool.run(table)
        runs += 1
    return bool(word[0] > 1000 * runs)


def cpu_while_idle(seconds: float = 0.3) -> float:
    """Processor time that this process uses in ``seconds`` of waiting, after a moment for workers to settle."""
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(seconds)
    return time.process_time() - before


def test_workers_take_part() -> None:
    with WorkerPool(2) as pool:
        assert worker_takes_part(pool)


def test_an_empty_table_and_reuse_after_a_pause() -> None:
    with WorkerPool(2) as pool:
        pool.run(np.empty((0, 2), np.int64))
        for _ in range(5):
            Chain(pool, 1).check(runs=2)
            time.sleep(0.02)  # the worker goes to sleep


def test_a_worker_may_fall_asleep_at_any_moment() -> None:
    """Around the time after which idle workers sleep: none of them misses a run, or the pool's end."""
    for pause in np.linspace(0, 2e-3, 40):
        with WorkerPool(3) as pool:
            chain = Chain(pool, 1)
            for _ in range(5):
                chain.check(runs=1)
                time.sleep(pause)
            assert worker_takes_part(pool)
            time.sleep(pause)


def test_idle_workers_burn_no_cpu() -> None:
    with WorkerPool(3) as pool:
        Chain(pool, 1).check(runs=10)
        assert cpu_while_idle() < 0.1  # one spinning thread would have used 0.3


@pytest.mark.parametrize("step", ["_start_workers", "_run"])
def test_a_pool_outlives_an_interrupt(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between any two steps of a run: idle workers sleep, and take part in the next one."""

    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with WorkerPool(2) as pool:
        if step != "_start_workers":
            Chain(pool, 1).check(runs=3)
            time.sleep(0.05)  # the worker goes to sleep
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pool, step, interrupted)
            pool.run(np.empty((0, 2), np.int64))
        assert cpu_while_idle() < 0.1
        assert worker_takes_part(pool)
        Chain(pool, 2).check(runs=3)


def test_workers_are_started_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt after one of them was started: the next run starts the others, not the first again."""
    with WorkerPool(3) as pool:

        def interrupted() -> None:
            raise KeyboardInterrupt

        before = threading.active_count()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pool._workers[1], "start", interrupted)
            Chain(pool, 1).check(runs=1)
        Chain(pool, 1).check(runs=20)
        assert threading.active_count() == before + 2


def test_a_closed_pool_says_so() -> None:
    pool = WorkerPool(2)
    Chain(pool, 1).check(runs=1)
    pool.close()
    with pytest.raises(PoolClosedError, match="the worker pool is closed") as caught:
        pool.run(np.empty((0, 2), np.int64))
    assert isinstance(caught.value, LlmcoreError)


def test_callers_share_a_pool_and_pools_exist_side_by_side() -> None:
    failures: list[BaseException] = []

    def call(pool: WorkerPool, seed: int) -> None:
        try:
            Chain(pool, seed).check(runs=100)
        except AssertionError as error:
            failures.append(error)

    with WorkerPool(2) as one, WorkerPool(3) as two:
        callers = [threading.Thread(target=call, args=(pool, seed)) for seed, pool in enumerate([one, one, two, two])]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not failures


def test_close_ends_the_threads() -> None:
    before = threading.active_count()
    pool = WorkerPool(3)
    Chain(pool, 1).check(runs=1)
    assert threading.active_count() == before + 2
    pool.close()
    pool.close()
    assert threading.active_count() == before


def test_a_forgotten_pool_ends_its_threads() -> None:
    before = threading.active_count()
    pool = WorkerPool(2)
    chain: Any = Chain(pool, 1)
    chain.check(runs=1)
    del pool, chain
    assert threading.active_count() == before


def test_a_forked_child_runs_programs() -> None:
    script = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
from test_pool import Chain, WorkerPool
pool = WorkerPool(2)
Chain(pool, 1).check(runs=3)
child = os.fork()
Chain(pool, 2).check(runs=3)
if child == 0:
    pool.close()
    os._exit(0)
failed = os.waitpid(child, 0)[1]
chain = Chain(pool, 3, rows=2000)
for step in range(8):  # while another thread runs a program, or is about to
    caller = threading.Thread(target=chain.check, args=(1,))
    caller.start()
    time.sleep(0.001 * step)
    child = os.fork()
    if child == 0:
        if step % 2:
            pool.close()
            os._exit(0)
        Chain(pool, 4).check(runs=3)
        sys.exit()  # the pool is closed on the way out
    failed |= os.waitpid(child, 0)[1]
    caller.join()
sys.exit(failed)
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")
@pytest.mark.parametrize("threads", [1, 3])
def test_numba_and_c_kernels_in_one_table(tmp_path: Path, threads: int) -> None:
    source, library = tmp_path / "mix.c", tmp_path / "mix.so"
    source.write_text(C_MIX)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    address = ctypes.cast(ctypes.CDLL(str(library)).mix, ctypes.c_void_p).value
    assert address is not None
    with WorkerPool(threads) as pool:
        Chain(pool, 7, kernels=(mix(), address)).check(runs=100)
