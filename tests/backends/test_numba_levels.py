"""The same kernels on every instruction level: run on those that this processor reaches, compiled for the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.errors import ConfigError
from llmcore.native.machine import LEVELS, SETTING, host, machine

ROOT = Path(__file__).parent
FILES = (
    ROOT.parent / "native" / "test_vector.py",
    *(ROOT / f"test_numba{name}.py" for name in ("", "_sizes", "_packed")),
)
CHOSEN = "vector or sizes or packed or int4 or int8 or linear.F16 or linear.Q4_1 or embedding.F16 or attention or norm"

COMPILED = """
import sys
import llmcore.native.machine as native
level = sys.argv[1]
flags = ",".join("+" + name for name in sorted(native.LEVELS[level]))
there = native.Machine(native.NAMES[level], native.LEVELS[level], flags, forced=True)
native.machine = lambda: there
import llvmlite.binding as llvm, numba
from llmcore.native.code import target_machine
from llmcore_numba.integer_linear import linear
for kernel in (linear.int4_min, linear.int8):
    text = numba.cfunc(kernel.signature, error_model="numpy")(kernel.function).inspect_llvm()
    print(target_machine().emit_assembly(llvm.parse_assembly(text)).count(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("level", LEVELS)
def test_kernels_of_a_level(level: str) -> None:
    if not host().features >= LEVELS[level]:
        pytest.skip(f"this processor does not reach {level}")
    chosen = ["-m", "slow or not slow", "-k", CHOSEN]  # all formats at odd sizes
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen, *map(str, FILES)]
    done = subprocess.run(command, env={**os.environ, SETTING: level}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(("level", "instruction"), [("avx512", "vpdpbusd"), ("avx2", "vpmaddubsw")])
def test_integer_kernels_use_the_instructions_of_their_level(level: str, instruction: str) -> None:
    """Eight of each in a group, for a tile of one token and one of four, whatever processor this is."""
    if "avx2" not in host().features:
        pytest.skip("LLVM here compiles for another architecture")
    command = [sys.executable, "-c", COMPILED, level, instruction]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(int(count) >= 8 * 5 for count in done.stdout.split())


def test_a_level_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = host()
    monkeypatch.setattr("llmcore.native.machine.host", lambda: type(plain)("old", frozenset(), ""))
    for wanted, said in (("avx2", "lacks avx, avx2"), ("avx1024", "avx1024")):
        monkeypatch.setenv(SETTING, wanted)
        with pytest.raises(ConfigError, match=said):
            machine.__wrapped__()
