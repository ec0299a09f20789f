"""Steps that are under way: begun here, their results waited for when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmcore.device import HOST
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
        followed: whether the next step may begin before they are known.
    """

    plan: list[Scheduled]
    results: Callable[[], Results]
    followed: bool = False


@dataclass
class Launcher:
    """Begins steps.

    On an accelerator a greedy step chooses its tokens there, and leaves them where the next step finds them: that one
    begins before the host has seen them, so the device never waits for the host.
    """

    runner: Runner
    sampler: Sampler
    logprobs: LogprobReader

    def begin(self, plan: list[Scheduled]) -> Launched:
        """Begins the step that ``plan`` describes."""
        work: list[Work] = []
        ending: list[Request] = []
        plain = True
        for request, new, complete in plan:
            start = request.computed
            work.append((request.tokens[start : start + new], start, request.pages, (new - 1,) if complete else ()))
            if complete:
                ending.append(request)
                plain = plain and request.params.plain
        if plain and self.runner.place.device is not HOST:
            return self._greedy(plan, work, follows=False)
        results = (self.runner.greedy(work), None) if plain else self._chosen(work, ending)
        return Launched(plan, lambda: results)

    def begin_after(self, step: Launched, plan: list[Scheduled]) -> Launched:
        """Begins the step of ``plan``, one token for each sequence of ``step``, whose tokens nobody has seen yet."""
        starts = [request.computed + new for request, new, _ in step.plan]
        work: list[Work] = [((0,), start, plan[i][0].pages, (0,)) for i, start in enumerate(starts)]
        return self._greedy(plan, work, follows=True)

    def _greedy(self, plan: list[Scheduled], work: list[Work], *, follows: bool) -> Launched:
        arriving = self.runner.start(work, follows=follows)
        return Launched(plan, lambda: (arriving(), None), followed=True)

    def _chosen(self, work: list[Work], ending: list[Request]) -> Results:
        """Tokens that depend on more than the largest logit."""
        self.runner.run(work)
        wanted = any(request.params.logprobs is not None for request in ending)
        reading = self.logprobs.read(ending) if wanted else None
        return self.sampler.sample(ending), reading
