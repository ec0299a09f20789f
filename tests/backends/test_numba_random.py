"""Random calls of every kernel between pages that nobody may touch: a stray read or write ends the child process."""

from __future__ import annotations

import pytest

from llmcore.native.machine import LEVELS, SETTING, host
from llmcore.testing import fences
from llmcore.testing.fuzz import RandomCalls

pytestmark = pytest.mark.skipif(not fences.available(), reason="this system cannot forbid pages")


def test_kernels_stay_in_their_buffers() -> None:
    RandomCalls("numba", 400, formats=("F32", "Q8_0", "Q4_1")).check()  # what the other tests compile too


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("level", LEVELS)
def test_a_hundred_thousand_calls(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not host().features >= LEVELS[level]:
        pytest.skip(f"this processor does not reach {level}")
    monkeypatch.setenv(SETTING, level)
    RandomCalls("numba", 100_000, seed=1).check()
