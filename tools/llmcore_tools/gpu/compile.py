"""``llmcore gpu-compile``: every kernel of the Triton backend, compiled for several GPUs, with no GPU there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmcore.cli.flags import parse
from llmcore.config.arguments import JSON, Flag
from llmcore.errors import ConfigError, LlmcoreError
from llmcore_tools.gpu import options
from llmcore_tools.gpu.report import Found, as_json, as_markdown, as_text, differences
from llmcore_tools.gpu.verdicts import Compiled
from llmcore_tools.gpu.workload import Workload
from llmcore_triton.device import KNOWN

BACKENDS = "llmcore_triton.plugin:llmcore_backends"
TARGETS = Flag("--targets", f"to compile for ({', '.join(KNOWN)}), all by default", "NAME,NAME")
JOBS = Flag("--jobs", "processes that compile at a time (as many as there are processors by default)", "N")
WRITE = Flag("--write", "keep the table as a page", "FILE.md")
CHECK = Flag("--check", "compare with such a page; the exit code is 1 where they differ", "FILE.md")
FLAGS = (TARGETS, *options.WORKLOAD, JOBS, WRITE, CHECK, JSON)
USAGE = "usage: llmcore gpu-compile [--targets NAME,NAME] [--models NAME,NAME] [--write FILE.md | --check FILE.md]"


class GpuToolError(LlmcoreError):
    """A process that compiles has failed, or something that it needs is not installed."""


def main(argv: Sequence[str]) -> int:
    """Prints what was found; returns the exit code: 1 where a page differs, a launcher fails or a rule is broken."""
    given, _ = parse(argv, FLAGS, USAGE)
    if given is None:
        return 0
    targets = options.names(given, TARGETS, KNOWN, tuple(KNOWN))
    page = Path(given[CHECK.name]) if CHECK.name in given else None
    if page is not None and not page.is_file():
        raise ConfigError(f"there is no file {page}", remedy=f"make it: {WRITE.name} {page}")
    found = compiled(targets, options.workload(given), options.count(given, JOBS, os.cpu_count() or 1))
    print(json.dumps(as_json(found), ensure_ascii=False, indent=2) if JSON.name in given else as_text(found))
    if WRITE.name in given:
        Path(given[WRITE.name]).write_text(as_markdown(found), encoding="utf-8")
    if page is None:
        return int(bool(found.faults or found.problems))
    wrong = differences(page.read_text(encoding="utf-8"), found)
    for line in wrong:
        print(f"{page}: {line}", file=sys.stderr)
    return int(bool(wrong))


def compiled(
    targets: Sequence[str], workload: Workload, jobs: int, *, backends: str = BACKENDS, compile: bool = True
) -> Found:
    """The workload's kernels, compiled for every target by processes of their own.

    Args:
        backends: import string of the hook that offers them.
        compile: False only records what would be compiled.

    Raises:
        GpuToolError: Triton is not installed, or a process fails.
    """
    try:
        triton = version("triton")
    except PackageNotFoundError as error:
        raise GpuToolError("compiling GPU kernels needs Triton", remedy="pip install 'llmcore[gpu]'") from error
    steps = [(step.tokens, step.seqs) for step in workload.steps]
    asked = {"backends": backends, "compile": compile, "workload": {**asdict(workload), "steps": steps}}
    answers = []
    for target in targets:
        print(f"compiling for {target} …", file=sys.stderr, flush=True)
        answers.append(_child(target, asked, jobs))
    return Found(
        triton,
        _words(workload),
        [Compiled.of(answer["target"], each) for answer in answers for each in answer["variants"]],
        [(where, what) for answer in answers for where, what in answer["problems"]],
        {op: why for answer in answers for op, why in answer["missing"].items()},
        sorted(set.intersection(*({*answer["uncalled"]} for answer in answers))),
    )


def _words(workload: Workload) -> str:
    steps = ", ".join(step.name for step in workload.steps)
    models, formats = ", ".join(workload.models), ", ".join(workload.formats)
    caches = ", ".join(workload.kv_dtypes)
    return f"Models {models}; matrices {formats}; activations {workload.dtype}; KV cache {caches}; {steps}."


def _child(target: str, asked: dict[str, Any], jobs: int) -> dict[str, Any]:
    """The answer of one process."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # it finds what we find
    with TemporaryDirectory(prefix="llmcore-gpu-") as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-m", "llmcore_tools.gpu.child", target, str(jobs), str(file)]
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode != 0:
            said = " / ".join(done.stderr.strip().splitlines()[-3:]) or "it says nothing"
            raise GpuToolError(f"compiling for {target} ended with exit code {done.returncode}: {said}")
        answer: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return answer
