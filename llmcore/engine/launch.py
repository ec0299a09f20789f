"""Steps that are under way: begun here, their results waited for when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmcore.engine.accelerated import AcceleratedRunner
from llmcore.engine.batch import Work
from llmcore.engine.logprobs import LogprobReader, Reading
from llmcore.engine.request import Request
from llmcore.engine.runner import Runner
from llmcore.engine.sampler import Sampler
from llmcore.engine.scheduler import Scheduled

Results = tuple[list[int], Reading | None]


@dataclass(frozen=True)
class Launched:
    """A step that is under way.

    Attributes:
        results: waits for its tokens, one for each sequence whose end it reaches, below 0 where logits hold NaN; and
            their log-probabilities, where a request asks for them.
        tokens: the same on the accelerator that made them, where the next step may begin before they are known here.
        drawn: whether the sampler chose them.
    """

    plan: list[Scheduled]
    results: Callable[[], Results]
    tokens: Any = None
    drawn: bool = False


@dataclass
class Launcher:
    """Begins steps.

    On an accelerator a step whose tokens depend on logits and draws alone leaves them where the next step finds them:
    that one begins before the host has seen them, so the device never waits for the host.

    Attributes:
        ahead: the runner, where it is one that computes while the host goes on.
    """

    runner: Runner
    sampler: Sampler
    logprobs: LogprobReader
    ahead: AcceleratedRunner | None = field(init=False)

    def __post_init__(self) -> None:
        """Finds out who computes."""
        self.ahead = self.runner if isinstance(self.runner, AcceleratedRunner) else None

    def run(self, plan: list[Scheduled]) -> Results:
        """Runs the step that ``plan`` describes to its end."""
        work, ending, plain, _ = _work(plan)
        return (self.runner.greedy(work), None) if plain else self._chosen(work, ending)

    def begin(self, plan: list[Scheduled]) -> Launched:
        """Begins it on an accelerator."""
        work, ending, plain, free = _work(plan)
        if free and ending:
            return self._follow(plan, work, ending, drawn=not plain)
        results = self.run(plan)
        return Launched(plan, lambda: results)

    def begin_after(self, step: Launched, plan: list[Scheduled]) -> Launched:
        """Begins the step of ``plan``, one token for each sequence of ``step``, whose tokens nobody has seen yet."""
        starts = [request.computed + new for request, new, _ in step.plan]
        work: list[Work] = [((0,), start, plan[i][0].pages, (0,)) for i, start in enumerate(starts)]
        requests = [request for request, _, _ in plan]
        return self._follow(plan, work, requests, drawn=step.drawn, follows=step.tokens)

    def _follow(
        self, plan: list[Scheduled], work: list[Work], ending: list[Request], *, drawn: bool, follows: Any = None
    ) -> Launched:
        """Begins a step that others may follow."""
        runner = self.ahead
        assert runner is not None, "only an accelerator computes ahead"
        if not drawn:
            arriving, tokens = runner.start(work, follows=follows), runner.outputs["ids"]
        else:
            runner.run(work, follows=follows)
            arriving, tokens = self.sampler.start(ending, unseen=follows is not None), self.sampler.tokens
        return Launched(plan, lambda: (arriving(), None), tokens, drawn)

    def _chosen(self, work: list[Work], ending: list[Request]) -> Results:
        """Tokens that depend on more."""
        self.runner.run(work)
        wanted = any(request.params.logprobs is not None for request in ending)
        reading = self.logprobs.read(ending) if wanted else None
        return self.sampler.sample(ending), reading


def _work(plan: list[Scheduled]) -> tuple[list[Work], list[Request], bool, bool]:
    """What a plan's step computes, whose ends it reaches, and whether all of these are plain, or free (see
    :class:`llmcore.engine.sampling_params.SamplingParams`)."""
    work: list[Work] = []
    ending: list[Request] = []
    plain = free = True
    for request, new, complete in plan:
        start = request.computed
        work.append((request.tokens[start : start + new], start, request.pages, (new - 1,) if complete else ()))
        if complete:
            ending.append(request)
            plain = plain and request.params.plain
            free = free and request.params.free
    return work, ending, plain, free
