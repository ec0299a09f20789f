"""Compiling several kernels at once, in child processes: a compiler keeps one processor busy, and its memory after it.

The children write to the cache directory, from where this process links. What they cannot compile is left to
:meth:`llmcore.native.code.Loader.address`, which will raise what is wrong with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from llmcore.native.code import compile_kept, file_of, progress

FEWEST = 3  # to compile fewer takes no longer than it takes children to start
MOST = 8  # children: each takes some 250 MB
TIDY_S = 0.5  # that a child may take to end by itself
PATIENCE_S = 600  # then this process compiles what is left

CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import llmcore.native.build as b; b.serve()"


def missing(targets: Iterable[str]) -> list[str]:
    """Those of ``targets`` that the cache directory could have, but has not."""
    files = {target: file_of(target) for target in dict.fromkeys(targets)}
    return [target for target, file in files.items() if file is not None and not file.exists()]


def compile_missing(targets: Iterable[str], processes: int) -> int:
    """Compiles those of ``targets`` that the cache directory lacks, on ``processes`` at once.

    Returns how many it has compiled: none where there are few, or only one processor to use.
    """
    lacking = missing(targets)
    if len(lacking) < FEWEST or processes < 2 or not sys.executable:
        return 0
    waiting = deque(lacking)
    helpers: list[_Helper] = []
    with progress(f"{len(lacking)} kernels"):
        try:
            with suppress(OSError):  # no room for another process: those that there are do it
                for _ in range(min(processes, MOST, len(lacking))):
                    helpers.append(_Helper(waiting))
                    helpers[-1].start()
            for helper in helpers:
                helper.join(PATIENCE_S)
        finally:
            for helper in helpers:
                helper.stop()
    return sum(helper.done for helper in helpers)


class _Helper(threading.Thread):
    """Feeds one child process with targets, one after the other, while there are some.

    Attributes:
        done: how many the child has compiled.
    """

    def __init__(self, waiting: deque[str]) -> None:
        super().__init__(daemon=True)
        self._waiting, self.done, self._busy = waiting, 0, False
        path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])  # others mean nothing to Python
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        command = [sys.executable, "-P", "-c", CHILD, path]  # -P: a json.py where the user stands is none of ours
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True)

    def run(self) -> None:
        """Until nothing is left, or the child has ended."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            while self._waiting:
                print(self._waiting.popleft(), file=self._child.stdin, flush=True)
                self._busy = True
                answer = self._child.stdout.readline()
                self._busy = False
                if not answer:
                    return
                self.done += answer == "kept\n"
        except (IndexError, OSError, ValueError):  # another took the last one; the child has ended, or was stopped
            return

    def stop(self) -> None:
        """Ends the child; one that is at work may remove what it has begun to write."""
        if self._busy:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(TIDY_S)
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):  # what it did not read any more
                    pipe.close()


def serve() -> None:
    """The child's side: compiles what comes in, a target on each line, and answers each."""
    answers, sys.stdout = sys.stdout, sys.stderr  # a kernel's module may print
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent says when to end
    for line in sys.stdin:
        try:
            made = compile_kept(line.strip())
        except Exception:  # the parent will meet it too, and say what it is
            made = False
        print("kept" if made else "left", file=answers, flush=True)
