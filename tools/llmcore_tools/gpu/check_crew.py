"""A crew of processes that run jobs of many steps, and outlive none of their crashes: a step that takes its process
with it (an illegal address does: the CUDA context is gone) is written down, and a new process goes on behind it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any


@dataclass(frozen=True)
class Job:
    """Steps ``start`` … of something that the crew's function knows by ``key``."""

    key: tuple[Any, ...]
    start: int = 0


@dataclass(frozen=True)
class Step:
    """What came of one step.

    Attributes:
        outcome: ``ok``; ``skipped``, with the reason; or ``wrong``, with what is wrong.
    """

    key: tuple[Any, ...]
    name: str
    outcome: str
    note: str = ""


class Poisoned(Exception):
    """The process that raises it can run no more steps, though it lives; the step has been reported."""


Steps = Iterator[tuple[str, Callable[[], tuple[str, str]]]]
"""A job's steps by name, from its ``start`` on: each is called in turn, and returns its outcome and a note."""

Work = Callable[[Job], Steps]


@dataclass(eq=False)
class _Member:
    process: ForkProcess
    pipe: Connection
    job: Job | None = None
    step: tuple[int, str] | None = None  # that is under way


@dataclass
class Crew:
    """Processes, forked from one that has not touched the device.

    Attributes:
        work: called in a member's process for each of its jobs.
        until: when all must stop, by :func:`time.monotonic`.
    """

    work: Work
    size: int
    until: float
    _members: list[_Member] = field(default_factory=list)

    def run(self, jobs: Sequence[Job], tell: Callable[[Step], None]) -> list[Job]:
        """Does ``jobs``, the first ones first; returns those that were not ended in time, where they stand."""
        waiting = deque(jobs)
        try:
            self._members = [self._member() for _ in range(min(self.size, len(jobs)))]
            for member in self._members:
                self._give(member, waiting)
            while any(member.job for member in self._members) and time.monotonic() < self.until:
                for pipe in wait([m.pipe for m in self._members if m.job], timeout=0.5):
                    member = next(m for m in self._members if m.pipe is pipe)
                    self._hear(member, waiting, tell)
            return [_rest(member) for member in self._members if member.job] + list(waiting)
        finally:
            for member in self._members:
                member.process.kill()
                member.process.join()

    def _member(self) -> _Member:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.work), daemon=True)
        process.start()
        theirs.close()
        return _Member(process, ours)

    def _give(self, member: _Member, waiting: deque[Job]) -> None:
        member.step, member.job = None, waiting.popleft() if waiting else None
        if member.job:
            member.pipe.send(member.job)

    def _hear(self, member: _Member, waiting: deque[Job], tell: Callable[[Step], None]) -> None:
        """Takes one message of a member: a step begins, has ended, or the job has; or the member is gone."""
        try:
            kind, *rest = member.pipe.recv()
        except (EOFError, OSError):
            self._replace(member, waiting, tell)
            return
        assert member.job is not None
        if kind == "begin":
            member.step = rest[0], rest[1]
        elif kind == "end" and member.step:
            number, name = member.step
            tell(Step(member.job.key, name, *rest))
            member.job, member.step = replace(member.job, start=number + 1), None
        elif kind == "failed":
            tell(Step(member.job.key, "", "wrong", rest[0]))
            self._give(member, waiting)
        else:
            self._give(member, waiting)

    def _replace(self, member: _Member, waiting: deque[Job], tell: Callable[[Step], None]) -> None:
        """A new process in the place of one that is gone; it goes on behind the step that the old one was at."""
        member.process.join()
        assert member.job is not None
        rest = member.job
        if member.step:
            number, name = member.step
            tell(Step(rest.key, name, "wrong", f"its process ended with exit code {member.process.exitcode}"))
            rest = replace(rest, start=number + 1)
        elif member.process.exitcode != POISONED:
            tell(Step(rest.key, "", "wrong", f"its process ended with exit code {member.process.exitcode}"))
            rest = replace(rest, start=rest.start + 1)  # whatever it was, it is not tried for ever
        self._members[self._members.index(member)] = new = self._member()
        waiting.appendleft(rest)
        self._give(new, waiting)


def _rest(member: _Member) -> Job:
    """What a member has left of its job; the step that it is at has not ended."""
    assert member.job is not None
    return member.job


POISONED = 70  # exit code of a process that asks to be replaced


def _serve(pipe: Connection, work: Work) -> None:
    """A member's process: does the jobs that come through the pipe, and says how it goes."""
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            for number, (name, step) in enumerate(work(job), start=job.start):
                pipe.send(("begin", number, name))
                try:
                    outcome, note = step()
                except Poisoned as error:
                    pipe.send(("end", "wrong", str(error)))
                    raise SystemExit(POISONED) from None
                pipe.send(("end", outcome, note))
            pipe.send(("done",))
        except Exception as error:  # in what makes the steps
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
