"""What ``llmcore bench batch`` runs: requests that arrive, and the ways to put them into batches.

All ways are the same calls of the engine: requests are added, and it steps. They differ in when a request is added, and
in when a batch has ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import GenerationError
from llmcore_tools.load.prompts import Span

if TYPE_CHECKING:
    from llmcore.engine.engine import Engine
    from llmcore.engine.request import Request


@dataclass(frozen=True)
class Ask:
    """A request's lengths, in tokens, and when it arrives, in seconds; end tokens end nothing."""

    prompt: int
    new: int
    at: float = 0.0


@dataclass(frozen=True)
class Way:
    """A way to put requests into batches.

    Attributes:
        title: for people.
        at_a_time: how many are added together: ``all`` that have arrived, before every step; a ``batch``, or ``one``,
            when all before have ended.
        to_longest: every sequence of a batch is computed until the longest one has ended.
    """

    title: str
    at_a_time: Literal["all", "batch", "one"]
    to_longest: bool = False


WAYS = {
    "continuous": Way("continuous batching", "all"),
    "static_to_longest": Way("static batching", "batch", to_longest=True),
    "static_rows_out": Way("static batching, ended rows taken out", "batch"),
    "single": Way("one by one", "one"),
}


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        seconds: from the first request's arrival to the last one's end.
        tokens: that were asked for and came; others do not count.
        used: for each step, how many sequences that have not all of their tokens yet got work in it, a token or a part
            of their prompt.
        waited: for each step, whether a request that has arrived was in no batch when the step was scheduled.
    """

    seconds: float
    tokens: int
    used: tuple[int, ...]
    waited: tuple[bool, ...]

    @property
    def steps(self) -> int:
        """Of the engine."""
        return len(self.used)

    def slots_used(self, batch: int) -> float:
        """Share of all steps' slots, ``batch`` each, that were used."""
        return sum(self.used) / (len(self.used) * batch)

    def slots_used_while_waiting(self, batch: int) -> float | None:
        """The same over those steps alone that were scheduled while requests waited; None where nobody ever did."""
        used = [used for used, waited in zip(self.used, self.waited, strict=True) if waited]
        return sum(used) / (len(used) * batch) if used else None


def eighths() -> list[Ask]:
    """32 requests at once, every eighth for 100 tokens, the others for 10."""
    return [Ask(16, 10 if index % 8 else 100) for index in range(32)]


PROMPT, NEW = Span(8, 128), Span(4, 64)


def mixed(rate: float, prompt: Span = PROMPT, new: Span = NEW) -> list[Ask]:
    """128 requests of drawn lengths that arrive as a Poisson process of ``rate`` a second; always the same ones."""
    rng = Random(0)
    lengths = [(prompt.draw(rng), new.draw(rng)) for _ in range(128)]
    gaps = [0.0, *(rng.expovariate(rate) for _ in lengths[1:])]
    return [Ask(*each, at=sum(gaps[: index + 1])) for index, each in enumerate(lengths)]


def drive(engine: Engine, work: Sequence[Ask], prompts: Sequence[Sequence[int]], way: Way, batch: int) -> Sample:
    """Runs ``work``, in order of arrival, one way, with at most ``batch`` sequences at a time.

    Raises:
        GenerationError: a request failed, or ended before it had its tokens.
    """
    engine.scheduler.max_seqs = batch
    return _Run(engine, work, prompts, way, batch).sample()


class _Run:
    def __init__(
        self, engine: Engine, work: Sequence[Ask], prompts: Sequence[Sequence[int]], way: Way, batch: int
    ) -> None:
        self.engine = engine
        self.way = way
        self.size = {"all": None, "batch": batch, "one": 1}[way.at_a_time]
        self.coming = deque(zip(work, prompts, strict=True))
        self.open: list[tuple[Request, Ask]] = []
        self.used: list[int] = []
        self.waited: list[bool] = []
        self.tokens = 0

    def sample(self) -> Sample:
        start = time.perf_counter()
        try:
            while self.coming or self.open:
                now = time.perf_counter() - start
                self._add(now)
                if self.open:
                    self._step(now)
                    self._end()
                else:
                    time.sleep(max(0.0, self.coming[0][0].at - now))
            seconds = time.perf_counter() - start
        finally:
            self._abort()
        return Sample(seconds, self.tokens, tuple(self.used), tuple(self.waited))

    def _add(self, now: float) -> None:
        """Adds who has arrived, where the way lets them."""
        if self.size is not None and self.open:
            return
        while self.coming and self.coming[0][0].at <= now and len(self.open) != self.size:
            ask, prompt = self.coming.popleft()
            params = SamplingParams(max_tokens=None if self.way.to_longest else ask.new, ignore_eos=True)
            self.open.append((self.engine.add(prompt, params), ask))

    def _step(self, now: float) -> None:
        """One step; notes who got work in it."""
        self.waited.append(bool(self.engine.scheduler.waiting or (self.coming and self.coming[0][0].at <= now)))
        before = [(request.generated_count, request.computed) for request, _ in self.open]
        self.engine.step()
        self.used.append(
            sum(
                generated < ask.new and (request.generated_count > generated or request.computed > computed)
                for (request, ask), (generated, computed) in zip(self.open, before, strict=True)
            )
        )

    def _end(self) -> None:
        """Lets go of who has ended: with ``to_longest`` a whole batch, when all have what they asked for."""
        for request, ask in self.open:
            if request.finish_reason is not None and request.generated_count < ask.new:
                why = request.error or f"it ended after {request.generated_count} of {ask.new} tokens"
                raise GenerationError(why) from request.cause
        if self.way.to_longest:
            if all(request.generated_count >= ask.new for request, ask in self.open):
                self.tokens += sum(ask.new for _, ask in self.open)
                self._abort()
            return
        self.tokens += sum(ask.new for request, ask in self.open if request.finish_reason is not None)
        self.open = [(request, ask) for request, ask in self.open if request.finish_reason is None]

    def _abort(self) -> None:
        for request, _ in self.open:
            self.engine.abort(request)
        self.open = []
