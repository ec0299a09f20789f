"""The KV cache's memory, taken in the background: all of it, with what it holds, unless memory is short."""

from __future__ import annotations

import gc
import mmap
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmcore.engine import preallocation
from llmcore.engine.load import EngineSettings
from llmcore.engine.preallocation import BLOCK, RESERVE, SLICE, Preallocation, spare_memory, take
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import ConfigError
from llmcore.llm import LLM

MIB = 1 << 20


def untouched(nbytes: int) -> np.ndarray:
    """Bytes that nobody has given memory to, in small pages."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def faults(work: Callable[[], object]) -> int:
    """Of this thread, while it does ``work``."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def written(array: np.ndarray) -> float:
    """Page faults when every page of ``array`` is written, for each."""
    return faults(lambda: array[:: mmap.PAGESIZE].fill(1)) * mmap.PAGESIZE / array.nbytes


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux" or not take(untouched(MIB), 0, MIB):
        pytest.skip("needs Linux 5.14")
    monkeypatch.setattr(preallocation, "spare_memory", lambda: 1 << 62)


def test_all_is_taken_and_nothing_changed(able):
    arrays = [untouched(8 * MIB), untouched(5 * MIB + 2 * mmap.PAGESIZE)]
    arrays[0][:100] = 7
    arrays[1][3 * MIB] = 9
    Preallocation(arrays).wait()
    assert arrays[0][:100].tolist() == [7] * 100
    assert arrays[1][3 * MIB] == 9
    assert not arrays[0][100:].any()
    assert written(untouched(8 * MIB)) > 0.5, "else nothing is shown"
    assert written(arrays[0]) < 0.01
    assert written(arrays[1]) < 0.01


def test_bytes_that_share_a_page_with_others_are_left(able):
    array = untouched(MIB)[100:-100]
    assert take(array, 0, MIB)
    assert faults(lambda: array[:: mmap.PAGESIZE].fill(1)) <= 2
    assert take(array[:50], 0, MIB)


def test_little_memory_is_left_to_others(able, monkeypatch):
    left = [RESERVE, RESERVE - 1]
    monkeypatch.setattr(preallocation, "spare_memory", lambda: left.pop(0))
    first, second = untouched(2 * BLOCK), untouched(2 * BLOCK)
    Preallocation([first, second]).wait()
    assert not left
    assert written(first[:BLOCK]) < 0.01
    assert written(first[BLOCK:]) > 0.5
    assert written(second) > 0.5


class Slow:
    """A system that takes its time for the first slice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.taken: list[int] = []
        monkeypatch.setattr(preallocation, "take", self._take)
        monkeypatch.setattr(preallocation, "spare_memory", lambda: 1 << 62)

    def _take(self, _array: np.ndarray, offset: int, _nbytes: int) -> bool:
        self.taken.append(offset)
        self.begun.set()
        assert self.go.wait(60)
        return True


def test_closing_ends_it(monkeypatch):
    system = Slow(monkeypatch)
    under_way = Preallocation([np.zeros(64 * SLICE, np.uint8)])
    assert system.begun.wait(60)
    under_way.close()
    system.go.set()
    under_way.wait()
    assert system.taken == [0]
    under_way.close()


def test_dropping_it_ends_it(monkeypatch):
    system = Slow(monkeypatch)
    under_way = Preallocation([np.zeros(64 * SLICE, np.uint8)])
    thread = under_way._thread
    assert system.begun.wait(60)
    del under_way
    gc.collect()
    system.go.set()
    thread.join(60)
    assert not thread.is_alive()
    assert system.taken == [0]


def test_a_system_that_cannot_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(preallocation, "take", lambda *args: asked.append(args) is not None)
    monkeypatch.setattr(preallocation, "spare_memory", lambda: 1 << 62)
    Preallocation([np.zeros(4 * BLOCK, np.uint8)] * 2).wait()
    assert len(asked) == 1


def test_elsewhere_nothing_is_taken(monkeypatch):
    monkeypatch.setattr(preallocation.sys, "platform", "plan9")
    assert not take(np.zeros(MIB, np.uint8), 0, MIB)


def test_no_threads_left_is_no_fault(monkeypatch):
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    under_way = Preallocation([np.zeros(MIB, np.uint8)])
    under_way.wait()
    under_way.close()
    assert not under_way._thread.is_alive()


def say(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"}
V2 = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/memory.max": "4000000\n",
    "sys/fs/cgroup/a/memory.current": "3000000\n",
    "sys/fs/cgroup/a/memory.stat": "anon 2000000\nactive_file 300\ninactive_file 4000\n",
    "sys/fs/cgroup/a/b/memory.max": "max\n",
    "sys/fs/cgroup/a/b/memory.current": "3000000\n",
    "sys/fs/cgroup/a/b/memory.stat": "anon 1\n",
}
V1 = {
    "proc/self/cgroup": "5:freezer:/\n4:cpu,memory:/x\n0::/\n",
    "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2000000\n",
    "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1500000\n",
    "sys/fs/cgroup/memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 20\n",
}


@pytest.mark.parametrize(
    ("files", "spare"),
    [
        ({}, 1 << 62),
        (MEMINFO, 5000 << 10),
        (MEMINFO | V2, 1_004_300),
        (MEMINFO | V1, 500_120),
        (MEMINFO | V2 | {"sys/fs/cgroup/a/memory.max": "max\n"}, 5000 << 10),
        ({"proc/meminfo": "nonsense", "proc/self/cgroup": "nonsense"}, 1 << 62),
    ],
)
def test_spare_memory(tmp_path, monkeypatch, files, spare):
    say(tmp_path, files)
    monkeypatch.setattr(preallocation, "FILES", tmp_path)
    assert spare_memory() == spare


def test_a_model_preallocates_its_kv_cache_if_asked(tiny_model, monkeypatch):
    made: list[Recorder] = []

    class Recorder:
        def __init__(self, arrays: list[np.ndarray]) -> None:
            self.arrays, self.closed = arrays, False
            made.append(self)

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("llmcore.llm.Preallocation", Recorder)
    params, answers = SamplingParams(max_tokens=12, ignore_eos=True), []
    for preallocate in (False, True):
        settings = EngineSettings(kv_pages=64, preallocate=preallocate)
        llm = LLM(str(tiny_model("llama3").path), backend="numba", threads=2, engine=settings)
        answers.append(llm.generate([[5, 6, 7]], params)[0].token_ids)
        assert len(made) == preallocate
        states = list(llm.runner.states.values())
        llm.close()
    assert answers[0] == answers[1]
    assert made[0].closed
    assert [id(array) for array in made[0].arrays] == [id(array) for array in states]


def test_setting_is_true_or_false():
    with pytest.raises(ConfigError, match=r"engine\.preallocate is 1\n.*true or false"):
        EngineSettings(preallocate=1)
