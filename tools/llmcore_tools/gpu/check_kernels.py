"""Stage ``kernels``: every check of the conformance kit for every backend that is made for GPUs, on the device."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from typing import Any

from llmcore.device import HOST, Device
from llmcore.device.accelerator import Accelerator
from llmcore.errors import LlmcoreError
from llmcore.hookspecs import BackendInfo
from llmcore.plugins import plugins
from llmcore.testing.buffers import KernelMismatch
from llmcore.testing.conformance import Check, checks, declaration_errors
from llmcore.testing.invoke import Machine
from llmcore_tools.gpu.check_context import Context, Finding, Verdict
from llmcore_tools.gpu.check_crew import Crew, Job, Poisoned, Step, Steps

BACKENDS = ("triton", "triton_w8a8", "triton_fp8")  # those of them that are there
SHOWN = 20  # failures of an op that are told one by one
RESERVE_S = 3.0  # for writing down what was found
REHEARSED = ("add", "rms_norm", "gather")  # ops of a rehearsal: the interpreter takes minutes for all
REHEARSED_CHECKS = 2  # of each kernel and type


def run(context: Context) -> None:
    """Gives the checks to a crew of processes, and adds up what they say, by op."""
    tallies: dict[tuple[str, str], Tally] = {}

    def tell(step: Step) -> None:
        tallies.setdefault(op_of(step.key), Tally()).add(step)

    jobs = list(jobs_of(context.rehearse))
    size = 1 if context.rehearse else max(min(os.cpu_count() or 1, 16) - 1, 1)
    crew = Crew(Checker(context.rehearse), size, context.deadline - RESERVE_S)
    rest = crew.run(jobs, tell)
    for job in rest:
        tally = tallies.setdefault(op_of(job.key), Tally())
        tally.missed += max(len(checks_of(job.key, context.rehearse)) - job.start, 0)
    for (backend, op), tally in sorted(tallies.items()):
        context.add(tally.finding(f"{op}, {backend}"))
    total = sum((tally.counts for tally in tallies.values()), Counter[str]())
    context.fact("kernel_checks", dict(total))
    if not total["ok"]:
        context.add(Finding("all kernels", "wrong", note="not one check has run: does the backend take this device?"))


@dataclass
class Tally:
    """What came of an op's checks. ``missed``: those for which there was no time."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[Step] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    missed: int = 0

    def add(self, step: Step) -> None:
        """Counts one."""
        self.counts[step.outcome] += 1
        if step.outcome == "wrong":
            self.wrong.append(step)
        if step.outcome == "skipped":
            self.reasons[step.note] += 1

    def finding(self, what: str) -> Finding:
        """As the report has it: counts, and what is wrong with the first that are."""
        values = {"checks": self.counts["ok"], "wrong": self.counts["wrong"], "refused": self.counts["skipped"]}
        if self.missed:
            values["not run"] = self.missed
        notes = [f"{step.name or step.key}: {step.note}" for step in self.wrong[:SHOWN]]
        if len(self.wrong) > SHOWN:
            notes.append(f"and {len(self.wrong) - SHOWN} more")
        if not self.counts["ok"]:
            notes += [f"refused: {reason}" for reason, _ in self.reasons.most_common(1)]
        verdict: Verdict = "wrong" if self.wrong else "holds" if self.counts["ok"] else "not run"
        return Finding(what, verdict, values, "; ".join(notes))


def op_of(key: tuple[Any, ...]) -> tuple[str, str]:
    """(backend, op) of a job."""
    backend, index, _ = key
    return backend, plugins().backend(backend).kernels[index].op


def jobs_of(rehearse: bool) -> Iterator[Job]:
    """A job for each kernel and type of activations, the ones with the most checks first."""
    found = []
    for name in BACKENDS:
        if name not in plugins().backends:
            continue
        for index, kernel in enumerate(plugins().backend(name).kernels):
            if not rehearse or kernel.op in REHEARSED:
                found += [(name, index, dtype) for dtype in (kernel.dtypes[-1:] if rehearse else kernel.dtypes)]
    sizes = {key: len(checks_of(key, rehearse)) for key in found}
    yield from (Job(key) for key in sorted(found, key=lambda key: -sizes[key]))


def checks_of(key: tuple[Any, ...], rehearse: bool, device: Device = HOST) -> list[Check]:
    """The checks of a job, in an order that is always the same; in a rehearsal some of them."""
    name, index, dtype = key
    backend: BackendInfo = plugins().backend(name)
    every = (check for check in checks(backend, backend.kernels[index], device) if check.dtype == dtype)
    return list(islice(every, REHEARSED_CHECKS) if rehearse else every)


@dataclass
class Checker:
    """What a member of the crew does with a job."""

    rehearse: bool

    def __call__(self, job: Job) -> Steps:
        """Steps: the kernel's declaration, with the first of its types; then its checks."""
        name, index, dtype = job.key
        backend, device = plugins().backend(name), _device("cpu" if self.rehearse else "cuda")
        kernel = backend.kernels[index]
        if job.start == 0 and dtype == kernel.dtypes[0]:
            errors = declaration_errors(kernel, backend)
            if errors:
                raise LlmcoreError("; ".join(errors))
        machine = Machine()
        for check in checks_of(job.key, self.rehearse, device)[job.start :]:
            yield check.id, partial(one, check, machine, device)


@cache
def _device(name: str) -> Accelerator:
    """One for a process: its pinned buffers serve all jobs."""
    return Accelerator(name)


def one(check: Check, machine: Machine, device: Accelerator) -> tuple[str, str]:
    """Runs a check; raises :class:`Poisoned` where the device has failed with it."""
    reason = check.unsupported()
    if reason:
        return "skipped", reason
    try:
        check.run(machine)
        return "ok", ""
    except KernelMismatch as error:
        message = str(error)
    try:
        settle(device)
    except RuntimeError as error:
        raise Poisoned(f"{message}; then {type(error).__name__}: {error}") from error
    return "wrong", message


def settle(device: Accelerator) -> None:
    """Waits for the device; raises ``RuntimeError`` where its context is lost."""
    if device.asynchronous:
        import torch

        torch.cuda.synchronize(device.device)
