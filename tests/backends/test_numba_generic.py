"""The same kernels, compiled for a processor with nothing beyond the base of its architecture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
FILES = (ROOT.parent / "native" / "test_vector.py", ROOT / "test_numba_sizes.py", ROOT / "test_numba.py")


@pytest.mark.slow
def test_on_a_plain_processor(tmp_path: Path) -> None:
    plain = {"LLMCORE_CPU": "generic", "LLMCORE_CACHE": str(tmp_path)}
    chosen = "vector or sizes or linear.F16 or linear.Q4_1 or embedding.F16 or attention or rope or norm"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *map(str, FILES)]
    done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
