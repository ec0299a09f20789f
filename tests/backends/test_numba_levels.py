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
    *(ROOT / f"test_numba{name}.py" for name in ("", "_sizes", "_packed", "_floats")),
)
CHOSEN = "vector or sizes or packed or floats or int4 or int8 or linear.Q4_1 or embedding.F16 or attention or norm"

COMPILED = """
import sys
import llmcore.native.machine as native
level, _, more = sys.argv[1].partition("+")
features = native.LEVELS[level] | set(more.split())
flags = ",".join("+" + name for name in sorted(features))
there = native.Machine(native.NAMES[level], features, flags, forced=True)
native.machine = lambda: there
import llvmlite.binding as llvm, numba
from llmcore.native.code import target_machine
from llmcore_numba import float_linear, integer_linear
file = float_linear if sys.argv[3][0].isupper() else integer_linear
for kernel in (getattr(file.linear, name) for name in sys.argv[3:]):
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


@pytest.mark.parametrize(
    ("level", "instruction", "kernels", "least"),
    [
        ("avx512", "vpdpbusd", ("int4_min", "int8"), 8 * 5),  # eight in a group, for tiles of one token and of four
        ("avx2", "vpmaddubsw", ("int4_min", "int8"), 8 * 5),
        ("avx512+avx512bf16", "vdpbf16ps", ("BF16_pairs",), 24 + 12 + 2),  # tiles of 6 x 4, 3 x 4 and 1 x 2
        ("avx512", "vfmadd", ("F32", "BF16"), 24 + 12 + 2),
    ],
)
def test_kernels_use_the_instructions_of_their_level(
    level: str, instruction: str, kernels: tuple[str, ...], least: int
) -> None:
    """Whatever processor this is."""
    if "avx2" not in host().features:
        pytest.skip("LLVM here compiles for another architecture")
    command = [sys.executable, "-c", COMPILED, level, instruction, *kernels]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counts = [int(count) for count in done.stdout.split()]
    assert len(counts) == len(kernels)
    assert min(counts) >= least


def test_a_level_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = host()
    monkeypatch.setattr("llmcore.native.machine.host", lambda: type(plain)("old", frozenset(), ""))
    for wanted, said in (("avx2", "lacks avx, avx2"), ("avx1024", "avx1024")):
        monkeypatch.setenv(SETTING, wanted)
        with pytest.raises(ConfigError, match=said):
            machine.__wrapped__()
