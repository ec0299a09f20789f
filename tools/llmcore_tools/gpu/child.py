"""Compiles a workload for one target: ``child TARGET JOBS FILE``, with the workload on standard input.

A process of its own, as Triton decides when it is imported whether it interprets or compiles. Launches are recorded
first, which takes seconds; the binaries are then made by processes that are forked with all that was recorded.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmcore.plugins import resolve
from llmcore_tools.gpu.machine_code import Reading
from llmcore_tools.gpu.recording import Variant, gpu_target, recording
from llmcore_tools.gpu.workload import Step, Workload, calls_of

_work: list[Variant] = []  # what forked processes find


def main() -> int:
    """Writes what was found to the file as JSON."""
    name, jobs, file = sys.argv[1:]
    asked = json.load(sys.stdin)
    Path(file).write_text(json.dumps(compile_all(name, int(jobs), asked)), encoding="utf-8")
    return 0


def compile_all(target: str, jobs: int, asked: dict[str, Any]) -> dict[str, Any]:
    """What ``asked`` describes, compiled for ``target``: a list of variants, and what is wrong.

    ``asked``: the ``backends`` (import string of their hook) and the fields of a :class:`Workload`; without
    ``compile``, launches are recorded only.
    """
    backends = resolve(asked["backends"])()
    steps = tuple(Step(*step) for step in asked["workload"]["steps"])
    lists = {key: tuple(value) for key, value in asked["workload"].items() if isinstance(value, list)}
    with recording(target) as recorder:  # backends are asked for their kernels there: what they offer depends on it
        calls = calls_of(backends, Workload(**{**asked["workload"], **lists, "steps": steps}))
        for call, places in calls.places.items():
            recorder.call(call, places)
    variants = [recorder.variants[key] for key in sorted(recorder.variants)]
    found = readings(variants, target, jobs) if asked["compile"] else iter([None] * len(variants))
    called = {call.kernel.target for call in calls.places}
    return {
        "target": target,
        "variants": [_described(each, reading) for each, reading in zip(variants, found, strict=True)],
        "problems": recorder.problems,
        "missing": calls.missing,
        "uncalled": sorted({kernel.target for backend in backends for kernel in backend.kernels} - called),
    }


def readings(variants: list[Variant], target: str, jobs: int) -> Iterator[Reading | str]:
    """Every variant compiled and read, in order; what the compiler says where it fails."""
    _work[:] = variants
    work = [(target, i) for i in range(len(variants))]
    if jobs == 1:
        yield from map(_compiled, work)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(_compiled, work)


def _compiled(work: tuple[str, int]) -> Reading | str:
    target, index = work
    try:
        return _work[index].compiled(gpu_target(target))
    except Exception as error:  # whatever the compiler raises belongs to this variant
        said = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
        return f"{type(error).__name__}: {said[-1] if said else 'without a word'}"


def _renumbered(tensors: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Memory numbered from 0 on, whatever its addresses were in this process."""
    numbers = {memory: i for i, memory in enumerate(dict.fromkeys(memory for memory, _ in tensors.values()))}
    return {argument: (numbers[memory], nbytes) for argument, (memory, nbytes) in tensors.items()}


def _described(variant: Variant, reading: Reading | str | None) -> dict[str, Any]:
    return {
        "kernel": variant.kernel,
        "types": variant.types,
        "constants": variant.constants,
        "options": variant.options,
        "grid": variant.grid,
        "tensors": _renumbered(variant.tensors),
        "ops": sorted(variant.ops),
        "places": variant.places,
        "reading": reading.as_json() if isinstance(reading, Reading) else None,
        "error": reading if isinstance(reading, str) else "",
    }


if __name__ == "__main__":
    sys.exit(main())
