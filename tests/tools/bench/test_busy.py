"""Decode beside other processes: that they compute, that they end, and what is reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore_tools.bench import busy

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


def stat(pid: int) -> list[str]:
    """State, parent, … of a process, from its state on; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def ticks(pid: int) -> int:
    """Processor time of a process in the system's unit."""
    return int(stat(pid)[11])


@linux
def test_others_compute_until_the_block_ends() -> None:
    with busy.others(2) as processes:
        before = [ticks(process.pid) for process in processes]
        deadline = time.monotonic() + 30
        while any(ticks(each.pid) < first + 5 for each, first in zip(processes, before, strict=True)):
            assert time.monotonic() < deadline, "they do not compute"
            time.sleep(0.01)
    assert all(process.returncode is not None for process in processes)


def test_others_end_when_the_block_is_interrupted() -> None:
    with pytest.raises(KeyboardInterrupt), busy.others(2) as processes:
        raise KeyboardInterrupt
    assert all(process.returncode is not None for process in processes)


@linux
def test_others_end_with_a_process_that_is_killed() -> None:
    script = """
import time
from llmcore_tools.bench import busy
with busy.others(1) as processes:
    print(processes[0].pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert stat(pid)[0] not in "ZX"
        os.kill(starter.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (stat(pid) or ["X"])[0] not in "ZX":
        assert time.monotonic() < deadline, "it outlives its starter"
        time.sleep(0.01)


def test_json(tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", str(tiny_model("llama3").path), "backend=numba", "threads=2", "--only", "busy", "--json"]
    assert main([*argv, "--tokens", "3", "--others", "1", "--repeats", "2"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert set(results) == {"repeats", "busy"}
    found = results["busy"]
    assert (found["test"], found["processes"]) == ("tg3", 1)
    assert len(found["busy"]["samples"]) == len(found["quiet"]["samples"]) == 2
    assert found["ratio"]["of_medians"] == found["busy"]["median"] / found["quiet"]["median"]


@pytest.mark.parametrize("count", ["0", "1025", "x"])
def test_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "model=/nowhere", "--only", "busy", "--others", count]) == 2
    assert f"--others is {count!r}" in capsys.readouterr().err
