"""The KV cache's memory, taken in the background: all of it, with what it holds, unless memory is short."""

from __future__ import annotations

import mmap
import resource
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

from llmcore.engine import preallocation
from llmcore.engine.load import EngineSettings
from llmcore.engine.preallocation import SLICE, Preallocation, spare_memory, take
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import ConfigError
from llmcore.llm import LLM

MIB = 1 << 20


def untouched(nbytes: int) -> np.ndarray:
    """Bytes that nobody has given memory to."""
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def faults(work: Callable[[], object]) -> int:
    """Of this thread, while it does ``work``."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def written(array: np.ndarray) -> int:
    """Page faults when every page of ``array`` is written."""
    return faults(lambda: array[:: mmap.PAGESIZE].fill(1))


@pytest.fixture
def able() -> None:
    if sys.platform != "linux" or not take(untouched(MIB), 0, MIB):
        pytest.skip("needs Linux 5.14")


def test_all_is_taken_and_nothing_changed(able):
    arrays = [untouched(8 * MIB), untouched(5 * MIB + 4096)]
    arrays[0][:100] = 7
    arrays[1][3 * MIB] = 9
    Preallocation(arrays).wait()
    assert arrays[0][:100].tolist() == [7] * 100
    assert arrays[1][3 * MIB] == 9
    assert not arrays[0][100:].any()
    assert written(untouched(8 * MIB)) > 1000, "else nothing is shown"
    assert written(arrays[0]) < 10
    assert written(arrays[1]) < 10


def test_bytes_that_share_a_page_with_others_are_left(able):
    array = untouched(MIB)[100:-100]
    assert take(array, 0, MIB)
    assert written(array) <= 2
    assert take(array[:50], 0, MIB)


def test_little_memory_is_left_to_others(able, monkeypatch):
    monkeypatch.setattr(preallocation, "spare_memory", lambda: preallocation.RESERVE - 1)
    array = untouched(8 * MIB)
    Preallocation([array]).wait()
    assert written(array) > 1000


def test_closing_ends_it(monkeypatch):
    begun, go, taken = threading.Event(), threading.Event(), []

    def slow(array, offset, nbytes):
        taken.append(offset)
        begun.set()
        assert go.wait(60)
        return True

    monkeypatch.setattr(preallocation, "take", slow)
    monkeypatch.setattr(preallocation, "spare_memory", lambda: 1 << 62)
    under_way = Preallocation([np.zeros(64 * SLICE, np.uint8)])
    assert begun.wait(60)
    under_way._closing = True
    go.set()
    under_way.close()
    assert taken == [0]


def test_where_the_system_cannot_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(preallocation.sys, "platform", "plan9")
    Preallocation([np.zeros(4 * SLICE, np.uint8)]).wait()
    Preallocation([]).wait()


def test_spare_memory():
    assert 0 < spare_memory() <= 1 << 62


def test_a_model_that_preallocates_answers_the_same(tiny_model):
    params, answers = SamplingParams(max_tokens=12, ignore_eos=True), []
    for preallocate in (False, True):
        settings = EngineSettings(kv_pages=64, preallocate=preallocate)
        llm = LLM(str(tiny_model("llama3").path), backend="numba", threads=2, engine=settings)
        answers.append(llm.generate([[5, 6, 7]], params)[0].token_ids)
        llm.close()
    assert answers[0] == answers[1]
    assert not any(thread.name == "llmcore-preallocation" for thread in threading.enumerate())


def test_setting_is_true_or_false():
    with pytest.raises(ConfigError, match=r"engine\.preallocate is 1\n.*true or false"):
        EngineSettings(preallocate=1)
