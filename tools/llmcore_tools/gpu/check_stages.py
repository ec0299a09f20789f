"""The stages of ``llmcore gpu-check``: each in a process of its own, within its share of the time.

A kernel that reads where it must not takes its process's CUDA context with it: the stages after it do not notice. What
a stage leaves is one file, written in one piece when it has ended, however it did: a run that is interrupted loses the
stage that ran, and the next one goes on behind those that have a file.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore.plugins import resolve
from llmcore_tools.gpu.check_context import BAD, Context, part_file, read_part, read_stage, stage_file

GRACE = 0.1  # of a stage's time: what is left to it for ending by itself
LEAST_S = 5.0  # no stage begins with less
TAIL = 2000  # characters of a failed stage's last words


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        target: import string of ``f(context: Context) -> None``.
        share: of the whole time, in 600ths; what a stage leaves over falls to all behind it.
    """

    name: str
    summary: str
    target: str
    share: int


_HERE = "llmcore_tools.gpu"
STAGES = (
    Stage("environment", "versions, device, bandwidth, matrix peaks", f"{_HERE}.check_environment:run", 20),
    Stage("kernels", "every check of the conformance kit on the device", f"{_HERE}.check_kernels:run", 110),
    Stage("models", "tiny models of every family against transformers", f"{_HERE}.check_models:run", 40),
    Stage("sanitizer", "kernels under compute-sanitizer", f"{_HERE}.check_sanitizer:run", 30),
    Stage("decode", "tokens per second against the memory's speed", f"{_HERE}.check_decode:run", 150),
    Stage("prefill", "a prompt of 4,096 tokens against the matrix units' speed", f"{_HERE}.check_prefill:run", 50),
    Stage("attention", "decode attention alone, at long contexts", f"{_HERE}.check_attention:run", 40),
    Stage("peers", "transformers, eager and compiled, on the same model", f"{_HERE}.peers:run", 150),
)
NAMES = tuple(stage.name for stage in STAGES)


def named(name: str) -> Stage:
    """The stage ``name``."""
    return STAGES[NAMES.index(name)]


def pending(out: Path, stages: Sequence[Stage], rehearse: bool) -> list[Stage]:
    """Those of ``stages`` that have not left a file of this kind of run."""
    left = {stage.name: read_stage(out, stage.name) for stage in stages}
    return [s for s in stages if (found := left[s.name]) is None or found["rehearsal"] != rehearse]


def run_all(out: Path, stages: Sequence[Stage], budget: float, rehearse: bool, say: Callable[[str], None]) -> list[str]:
    """Runs ``stages`` one after the other; returns the names of those for which no time was left."""
    end = time.monotonic() + budget
    missed = []
    for index, stage in enumerate(stages):
        left = end - time.monotonic()
        limit = left * stage.share / sum(each.share for each in stages[index:])
        if limit < LEAST_S:
            say(f"{stage.name}: not run, {max(left, 0):.0f} s are left for {len(stages) - index} stages")
            missed.append(stage.name)
            continue
        say(f"{stage.name}: {stage.summary} (up to {limit:.0f} s)")
        found = run_stage(out, stage, limit, rehearse)
        say(f"{stage.name}: {outcome(found)}")
    return missed


def outcome(found: Mapping[str, Any]) -> str:
    """A stage in a line."""
    counts: dict[str, int] = {}
    for finding in found["findings"]:
        counts[finding["verdict"]] = counts.get(finding["verdict"], 0) + 1
    words = ", ".join(f"{count} {verdict or 'measured'}" for verdict, count in counts.items()) or "nothing found"
    return f"{found['status']} after {found['seconds']:.0f} s: {words}"


def fails(found: Mapping[str, Any]) -> bool:
    """Whether a stage ended badly, or found something that does not hold."""
    return found["status"] != "done" or any(finding["verdict"] in BAD for finding in found["findings"])


def run_stage(out: Path, stage: Stage, limit: float, rehearse: bool) -> dict[str, Any]:
    """Runs one stage in a process, and writes what it has left."""
    part_file(out, stage.name).unlink(missing_ok=True)
    started = time.monotonic()
    log = out / f"{stage.name}.log"
    status = _run(Context(stage.name, out, rehearse, started + limit * (1 - GRACE)), stage, log, limit)
    facts, findings = read_part(out, stage.name)
    found = {
        "stage": stage.name,
        "rehearsal": rehearse,
        "status": status,
        "error": "" if status == "done" else log.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip(),
        "seconds": round(time.monotonic() - started, 2),
        "facts": facts,
        "findings": findings,
    }
    write_whole(stage_file(out, stage.name), json.dumps(found, ensure_ascii=False, indent=2) + "\n")
    part_file(out, stage.name).unlink(missing_ok=True)
    if status == "done":
        log.unlink()
    return found


def _run(context: Context, stage: Stage, log: Path, limit: float) -> str:
    """How a stage's process ended. It and all that it has started end within ``limit``.

    It is forked from this one, which has imported what all stages need, but has never touched the device.
    """
    process = multiprocessing.get_context("fork").Process(target=_work, args=(context, stage, log))
    process.start()
    assert process.pid is not None
    try:
        process.join(limit)
        late = process.is_alive()
    finally:
        process.kill()
        _end_group(process.pid)  # what it has started ends with it, also where this process is interrupted
        process.join()
    return "stopped, out of time" if late else "done" if process.exitcode == 0 else _ending(process.exitcode)


def _ending(code: int | None) -> str:
    return f"ended by signal {-code}" if code is not None and code < 0 else f"failed with exit code {code}"


def _end_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _work(context: Context, stage: Stage, log: Path) -> None:
    """The stage's process: a group of its own, whose words go to ``log``."""
    os.setsid()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resolve(stage.target)(context)


def environment(rehearse: bool) -> dict[str, str]:
    """What all stages see: Triton's interpreter in a rehearsal, and never on a GPU."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found |= {"HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # asking for a GPU must not set CUDA up
    return found | ({"TRITON_INTERPRET": "1"} if rehearse else {})


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
