"""Random calls between forbidden pages: right kernels pass, and strays end a child process that says where."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmcore import ops
from llmcore.errors import LlmcoreError
from llmcore.testing import fences
from llmcore.testing.buffers import Guarded
from llmcore.testing.fuzz import KernelCrashed, RandomCalls
from llmcore.testing.operands import fits, make_values
from llmcore.testing.random_cases import MAKERS, random_case

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not fences.available(), reason="this system cannot forbid pages")


@pytest.fixture(autouse=True)
def helpers_in_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", ""))))


def test_right_kernels_pass() -> None:
    RandomCalls("helpers.wrong_native:RIGHT", 40).check()


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("READS_PAST", r"SIGSEGV at a\n"),
        ("READS_BEFORE", r"SIGSEGV at a\n"),
        ("ONE_ROW_TOO_MANY", r"SIGSEGV at a and b( and y)?\n"),  # unless y lies in one of them
        ("PAST_ITS_SCRATCH", r"SIGSEGV at scratch\n"),
    ],
)
def test_strays_are_named(backend: str, says: str) -> None:
    series = RandomCalls(f"helpers.wrong_native:{backend}", 60, seed=3)
    with pytest.raises(KernelCrashed, match=says) as caught:
        series.check()
    said = str(caught.value)
    assert "of seed 3, level " in said
    assert "add (helpers.wrong_native:add_" in said
    assert "add.native M" in said
    assert "again: python -m llmcore.testing.fuzz --backend helpers.wrong_native:" in said


def test_wrong_results_are_named() -> None:
    arguments = ["--backend", "helpers.wrong_native:DIVIDES", "--calls", "200"]
    command = [sys.executable, "-m", "llmcore.testing.fuzz", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.match(r"call \d+ of seed 0, level \w+, add.native M\d+,D\d+: add \(.*threads.*\): output y", done.stderr)


def test_calls_that_cannot_be_made_are_errors() -> None:
    for series, says in (
        (RandomCalls("helpers.wrong_native:RIGHT", 1, ops=("rope",)), "has no native kernel of that kind"),
        (RandomCalls("nmba", 1), "there is no backend 'nmba'"),
    ):
        with pytest.raises(LlmcoreError, match=says):
            series.check()


@pytest.mark.parametrize("fence", ["before", "behind"])
@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097])
def test_a_buffer_touches_its_forbidden_page(fence: fences.Fence, nbytes: int) -> None:
    guarded = Guarded("x", (nbytes,), np.dtype(np.uint8), fence=fence)
    guarded.check()
    guarded.array[...] = 1
    guarded.check()
    edge = guarded.address - 1 if fence == "before" else guarded.address + nbytes
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(edge, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


def test_memory_is_used_again_when_nobody_holds_it() -> None:
    pool = fences.Enclosures()
    first, second = pool.take(100), pool.take(100)
    places = {first.ctypes.data, second.ctypes.data}
    assert len(places) == 2
    part = second[10:20].view(np.int16)
    del first, second
    third, fourth = pool.take(100), pool.take(100)
    assert third.ctypes.data in places
    assert fourth.ctypes.data not in places
    del part
    assert pool.take(100).ctypes.data in places


@pytest.mark.parametrize("name", ops.OPS)
def test_random_cases_are_valid(name: str) -> None:
    spec = ops.get(name)
    formats = {param.name: "Q8_0" for param in spec.of("weight") if param.type == "any"}
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        case = random_case(spec, formats, rng)
        if name in MAKERS:
            assert fits(spec, case, formats)
            make_values(spec, case, formats, "float32", seed)
        seen.add(tuple(case.dims.values()))
    assert len(seen) > (30 if name in MAKERS else 1)
