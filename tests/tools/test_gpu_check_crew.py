"""The crew of ``llmcore gpu-check``: every step of every job is told once, whatever becomes of the processes."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from llmcore_tools.gpu import check_kernels, check_sanitizer
from llmcore_tools.gpu.check_context import Context, read_part
from llmcore_tools.gpu.check_crew import Crew, Job, Poisoned, Step, Steps
from llmcore_tools.gpu.check_kernels import RESERVE_S, Tally
from llmcore_tools.gpu.check_sanitizer import RAN, Sanitized

STEPS = 5


def work(job: Job) -> Steps:
    """Jobs of five steps; the third does what the job is called."""
    if job.key[0] == "unmakeable":
        raise ValueError("no such job")
    for number in range(job.start, STEPS):
        yield f"step {number}", partial(_step, job.key[0] if number == 2 else "fine")


def _step(what: str) -> tuple[str, str]:
    if what == "crash":
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "poison":
        raise Poisoned("the device is gone")
    if what == "hang":
        time.sleep(600)
    return ("wrong", "off by one") if what == "wrong" else ("ok", str(os.getpid()))


def told(names: list[str], size: int = 2, limit: float = 60) -> tuple[dict[str, list[Step]], list[Job]]:
    """What a crew tells of the jobs ``names``, by job, and what it leaves undone."""
    found: dict[str, list[Step]] = {name: [] for name in names}
    crew = Crew(work, size, time.monotonic() + limit)
    rest = crew.run([Job((name,)) for name in names], lambda step: found[step.key[0]].append(step))
    return found, rest


def outcomes(steps: list[Step]) -> list[str]:
    return [step.outcome for step in steps]


@pytest.mark.parametrize("size", [1, 3])
def test_every_step_is_told_once(size: int) -> None:
    found, rest = told(["a", "b", "c", "wrong"], size)
    assert not rest
    assert {name: outcomes(steps) for name, steps in found.items()} == {
        **dict.fromkeys("abc", ["ok"] * 5),
        "wrong": ["ok", "ok", "wrong", "ok", "ok"],
    }
    assert [step.name for step in found["a"]] == [f"step {number}" for number in range(5)]
    assert found["wrong"][2].note == "off by one"
    assert 1 <= len({step.note for steps in found.values() for step in steps if step.outcome == "ok"}) <= size


@pytest.mark.parametrize(
    ("what", "said"), [("crash", "its process ended with exit code -11"), ("poison", "the device is gone")]
)
def test_a_job_goes_on_behind_a_step_that_takes_its_process_with_it(what: str, said: str) -> None:
    found, rest = told([what, "after"], size=1)
    assert not rest and outcomes(found[what]) == ["ok", "ok", "wrong", "ok", "ok"]
    assert found[what][2].name == "step 2" and found[what][2].note == said
    assert found[what][1].note != found[what][3].note  # another process
    assert outcomes(found["after"]) == ["ok"] * 5


def test_a_job_that_cannot_be_made_is_told(tmp_path: object) -> None:
    found, rest = told(["unmakeable", "after"], size=1)
    assert not rest and [step.note for step in found["unmakeable"]] == ["ValueError: no such job"]
    assert outcomes(found["after"]) == ["ok"] * 5


def test_what_hangs_is_left_behind_in_time() -> None:
    started = time.monotonic()
    found, rest = told(["hang", "after"], size=1, limit=1.5)
    assert time.monotonic() - started < 15
    assert rest == [Job(("hang",), 2), Job(("after",), 0)]
    assert outcomes(found["hang"]) == ["ok", "ok"] and not found["after"]


# -- what the kernels' stage makes of it


def tally(*steps: tuple[str, str], missed: int = 0) -> Tally:
    made = Tally(missed=missed)
    for outcome, note in steps:
        made.add(Step(("triton", 0, "float32"), "a check", outcome, note))
    return made


def test_tallies() -> None:
    fine = tally(("ok", ""), ("ok", ""), ("skipped", "too wide")).finding("add")
    assert (fine.verdict, fine.values, fine.note) == ("holds", {"checks": 2, "wrong": 0, "refused": 1}, "")
    refused = tally(("skipped", "too wide")).finding("add")
    assert (refused.verdict, refused.note) == ("not run", "refused: too wide")
    wrong = tally(("ok", ""), *[("wrong", f"element {i}") for i in range(25)], missed=3).finding("add")
    assert wrong.verdict == "wrong" and wrong.values["wrong"] == 25 and wrong.values["not run"] == 3
    assert "a check: element 0; " in wrong.note and wrong.note.endswith("; and 5 more")


@pytest.fixture
def stage(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, object]]]:
    """The kernels' stage over two checks of one kernel, with what becomes of them."""

    def run(outcome: str, limit: float = 60) -> list[dict[str, object]]:
        monkeypatch.setattr(check_kernels, "REHEARSED", ("add",))
        monkeypatch.setattr(check_kernels, "one", lambda check, *_: _step(outcome))
        context = Context("kernels", tmp_path, True, time.monotonic() + limit)  # type: ignore[arg-type]
        context.part.unlink(missing_ok=True)
        check_kernels.run(context)
        return read_part(context.out, "kernels")[1]

    return run


def test_the_stage_counts_by_op(stage: Callable[..., list[dict[str, object]]]) -> None:
    (add,) = stage("fine")
    assert (add["what"], add["verdict"]) == ("add, triton", "holds")
    assert add["values"] == {"checks": 2, "wrong": 0, "refused": 0}
    add, every = stage("crash")
    assert add["verdict"] == every["verdict"] == "wrong" and "exit code -11" in str(add["note"])
    add, every = stage("hang", RESERVE_S + 1)
    assert add["verdict"] == "not run" and add["values"]["not run"] == 2  # type: ignore[index]
    assert every["note"] == "not one check has run: does the backend take this device?"


def test_all_kernels_of_the_backends_are_jobs() -> None:
    """Each with each of its types, largest first; and the checks of all jobs are those of the kit."""
    from llmcore.plugins import plugins
    from llmcore.testing.conformance import checks

    jobs = list(check_kernels.jobs_of(False))
    backends = [plugins().backends[name] for name in check_kernels.BACKENDS if name in plugins().backends]
    assert len(jobs) == sum(len(kernel.dtypes) for backend in backends for kernel in backend.kernels)
    counts = [len(check_kernels.checks_of(job.key, False)) for job in jobs]
    assert counts == sorted(counts, reverse=True)
    every = Counter(check.id for backend in backends for kernel in backend.kernels for check in checks(backend, kernel))
    assert every == Counter(check.id for job in jobs for check in check_kernels.checks_of(job.key, False))


# -- the sanitizer


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Sanitized(0, 3, ""), "holds"),
        (Sanitized(0, 0, ""), "wrong"),  # it has looked at nothing
        (Sanitized(check_sanitizer.FOUND, 3, "Invalid __global__ read"), "wrong"),
        (Sanitized(None, 3, ""), "holds"),
        (Sanitized(None, 0, ""), "not run"),
        (Sanitized(None, 3, "========= Invalid __global__ read of size 4 bytes"), "wrong"),
        (Sanitized(None, 3, "========= Error: Race reported between Write access"), "wrong"),
    ],
)
def test_what_the_sanitizer_says(found: Sanitized, verdict: str, tmp_path: object) -> None:
    context = Context("sanitizer", tmp_path, False, 0)  # type: ignore[arg-type]
    check_sanitizer._record(context, "memcheck", found)
    assert [each["verdict"] for each in read_part(context.out, "sanitizer")[1]] == [verdict]


def test_words_and_checks_of_a_sanitized_process() -> None:
    script = f"echo '{RAN}one'; echo Invalid; echo '{RAN}two'; exit {check_sanitizer.FOUND}"
    assert Sanitized.of(["sh", "-c", script], 20) == Sanitized(check_sanitizer.FOUND, 2, "Invalid")
    assert Sanitized.of(["sh", "-c", f"echo '{RAN}one'; exec sleep 60"], 0.7) == Sanitized(None, 1, "")


def test_without_a_sanitizer_that_is_said(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_sanitizer.shutil, "which", lambda *_, **__: None)
    context = Context("sanitizer", tmp_path, False, 0)  # type: ignore[arg-type]
    check_sanitizer.run(context)
    assert [f["verdict"] for f in read_part(context.out, "sanitizer")[1]] == ["not run", "not run"]
