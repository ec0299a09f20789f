"""Decode beside other processes that compute: how much of its speed is left when the processors are shared."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from llmcore_tools.bench import workloads
from llmcore_tools.bench.measure import Ratio, Series, in_turns
from llmcore_tools.bench.report import Table

if TYPE_CHECKING:
    from llmcore.llm import LLM
    from llmcore_tools.bench.trials import Trial

MOST = 1024  # processes
SETTLE_S = 0.2  # until the operating system has spread them over the processors

# It ends when its input does, that is, with whoever started it, however that one ends.
COMPUTE = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print(flush=True)
while True:
    pass
"""


@contextmanager
def others(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """``count`` processes that do nothing but compute, until the block ends or this process does."""
    command = [sys.executable, "-S", "-c", COMPUTE]
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            stack.enter_context(process)  # closes its pipes and waits for it
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it runs
        time.sleep(SETTLE_S)
        yield started


def compare(llm: LLM, trial: Trial, count: int, repeats: int, seed: int) -> Ratio:
    """Tokens per second of ``trial`` beside ``count`` other processes (ours), and alone (theirs), in turns."""

    def beside(count: int) -> float:
        with others(count):
            return trial.rate([workloads.run(llm, trial.work, seed)]).median

    workloads.run(llm, trial.work, seed)
    taken = in_turns({"busy": partial(beside, count), "quiet": partial(beside, 0)}, repeats)
    return Ratio(Series(tuple(taken["busy"])), Series(tuple(taken["quiet"])))


def as_json(trial: Trial, count: int, found: Ratio) -> Mapping[str, Any]:
    """As plain data."""
    values = found.as_json()
    speeds = {"busy": values["ours"], "quiet": values["theirs"], "ratio": values["ratio"]}
    return {"test": trial.name, "processes": count, **speeds}


def table(trial: Trial, count: int, found: Ratio, repeats: int) -> Table:
    """Both speeds and their ratio for people."""
    row = (trial.name, str(found.theirs), str(found.ours), str(found))
    note = (
        f"Tokens per second, median (min–max) of {repeats} samples taken in turns: alone, and beside {count}\n"
        "processes that compute without end. What a fair operating system leaves to one of many is less than all."
    )
    return Table("On a busy machine", ("test", "alone", f"beside {count}", "ratio"), (row,), note)
