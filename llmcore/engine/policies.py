"""Who of those that wait is let in next: the built-in policies, and the base of those that a plugin offers."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from llmcore.engine.request import Request

FEW = 64  # requests that a mean looks back on
UNKNOWN_LENGTH = 128  # tokens of an answer, as long as none has ended

arrival = attrgetter("id")


class Policy:
    """Orders those that wait by :meth:`key`, within a bound: nobody is overtaken more than ``patience`` times.

    An instance belongs to one scheduler.

    Attributes:
        patience: whoever has been overtaken so often goes before all that came later.
        reserves: whether a request is let in only if the answers of all that run are likely to fit the pool with its
            own, by :meth:`remaining`.
    """

    patience = 64
    reserves = False

    def key(self, request: Request) -> Any:
        """The smallest goes first."""
        return arrival(request)

    def choose(self, waiting: Sequence[Request]) -> Request:
        """One of ``waiting``, which is in order of arrival and not empty."""
        starved = (request for request in waiting if request.overtaken >= self.patience)
        return next(starved, None) or min(waiting, key=self.key)

    def remaining(self, request: Request) -> int:  # noqa: ARG002  # it knows nothing
        """How many tokens are likely to follow those that ``request`` has."""
        return 0

    def finished(self, request: Request) -> None:
        """Told of each request that came to its own end."""


class Fcfs(Policy):
    """First come, first served."""

    def choose(self, waiting: Sequence[Request]) -> Request:
        """The first."""
        return waiting[0]


class Priority(Policy):
    """The smallest ``priority`` first; among equals the first to come."""

    def key(self, request: Request) -> tuple[int, int]:
        """Priority, then arrival."""
        return request.priority, request.id


class Shortest(Policy):
    """The shortest remaining answer first, as ``max_tokens`` says, or else the mean of the answers so far."""

    reserves = True

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.mean = float(UNKNOWN_LENGTH)
        self.seen = 0

    def key(self, request: Request) -> tuple[int, int]:
        """Tokens to come, then arrival."""
        return self.remaining(request), request.id

    def remaining(self, request: Request) -> int:
        """At least one: a request that waits has not ended."""
        limit = request.params.max_tokens
        return max(1, (round(self.mean) if limit is None else limit) - request.generated_count)

    def finished(self, request: Request) -> None:
        """Learns from its length."""
        self.seen = min(self.seen + 1, FEW)
        self.mean += (request.generated_count - self.mean) / self.seen
