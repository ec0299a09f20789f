"""Stages that end in every way in which one can, for the tests of ``llmcore gpu-check``."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time

from llmcore_tools.gpu.check_context import Context, Finding

HERE = "helpers.gpu_stages"


def good(context: Context) -> None:
    """Finds two things, and a fact."""
    context.fact("read_gb_s", 4000.0)
    context.add(Finding("first", "holds", {"GB/s": 4000.0}))
    context.add(Finding("second", "", {"ms": 0.5}))


def short(context: Context) -> None:
    """Is slower than its goal."""
    context.add(Finding("slow", "short", {"GB/s": 1.0}))


def raising(context: Context) -> None:
    """Fails after its first finding."""
    context.add(Finding("before", "holds"))
    raise RuntimeError("nobody expected this")


def crashing(context: Context) -> None:
    """Takes its process with it, in the middle of writing a finding."""
    context.add(Finding("before", "holds"))
    with context.part.open("a", encoding="utf-8") as file:
        file.write('{"finding": {"what": "cut o')
    faulthandler.disable()  # pytest's would tell everybody
    os.kill(os.getpid(), signal.SIGSEGV)


def hanging(context: Context) -> None:
    """Never ends, and neither does what it has started; notes the id of that."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.fact("child", child.pid)
    context.add(Finding("before", "holds"))
    time.sleep(600)
