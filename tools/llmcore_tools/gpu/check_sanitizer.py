"""Stage ``sanitizer``: the smallest check of every kernel under NVIDIA's compute-sanitizer, which sees accesses out of
bounds that hit memory of somebody else's, and races in shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

from llmcore.device.accelerator import Accelerator
from llmcore.testing.buffers import KernelMismatch
from llmcore.testing.conformance import Check
from llmcore.testing.invoke import Machine
from llmcore_tools.gpu.check_context import Context, Finding
from llmcore_tools.gpu.check_kernels import checks_of, jobs_of, settle

TOOLS = ("memcheck", "racecheck")
COMMAND = "compute-sanitizer"
FOUND = 86  # exit code that it is told to use where it has found something
RAN = "checked: "
KEPT = 1500  # characters of what it says


def run(context: Context) -> None:
    """Both tools at the same time; in a rehearsal the same process without a tool around it."""
    if context.rehearse:
        _record(context, "no tool", Sanitized.of([*_child(True)], context.left))
        return
    path = shutil.which(COMMAND) or shutil.which(COMMAND, path="/usr/local/cuda/bin")
    if path is None:
        for tool in TOOLS:
            context.add(Finding(tool, "not run", note=f"{COMMAND} is not on the path"))
        return
    commands = [[path, "--tool", tool, "--error-exitcode", str(FOUND), *_child(False)] for tool in TOOLS]
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        for tool, found in zip(TOOLS, pool.map(lambda c: Sanitized.of(c, context.left - 1), commands), strict=True):
            _record(context, tool, found)


def _child(rehearse: bool) -> Sequence[str]:
    return sys.executable, "-m", "llmcore_tools.gpu.check_sanitizer", *(["rehearse"] if rehearse else [])


@dataclass(frozen=True)
class Sanitized:
    """How a process under the sanitizer ended; ``code`` None: it was stopped for the time."""

    code: int | None
    checks: int
    words: str

    @classmethod
    def of(cls, command: Sequence[str], limit: float) -> Sanitized:
        """Runs it. Every tensor has memory of its own: what torch keeps for later would hide accesses out of bounds."""
        environ = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, timeout=limit, check=False
            )
            code, said = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            code, said = None, error.stdout or b""
        text = said.decode(errors="replace")
        words = [line for line in text.splitlines() if not line.startswith(RAN)]
        return cls(code, text.count(RAN), "\n".join(words)[:KEPT])


def _record(context: Context, tool: str, found: Sanitized) -> None:
    values = {"checks": found.checks}
    if found.code == 0 and found.checks:
        context.add(Finding(tool, "holds", values))
    elif found.code is None and "ERROR" not in found.words:
        note = "stopped, out of time; until then it had found nothing"
        context.add(Finding(tool, "holds" if found.checks else "not run", values, note))
    else:
        context.add(Finding(tool, "wrong", values, f"exit code {found.code}: {found.words}"))


def main(argv: Sequence[str]) -> int:
    """The process that is looked at; returns 0 if every check was run: what each of them finds is known already."""
    device = Accelerator("cpu" if argv else "cuda")
    machine = Machine()
    for check in smallest(bool(argv), device):
        try:
            check.run(machine)
        except KernelMismatch as error:
            print(f"{check.id}: {error}")
        settle(device)
        print(f"{RAN}{check.id}")
    return 0


def smallest(rehearse: bool, device: Accelerator) -> Iterator[Check]:
    """Of each kernel the smallest check with work in it that it takes, in its first type."""
    seen = set()
    for job in sorted(jobs_of(rehearse), key=lambda job: job.key):
        name, index, _ = job.key
        if (name, index) in seen:
            continue
        seen.add((name, index))
        fitting = [c for c in checks_of(job.key, rehearse, device) if all(c.case.dims.values()) and not c.unsupported()]
        if fitting:
            yield min(fitting, key=lambda check: prod(check.case.dims.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
