"""Who of those that wait is let in next, and who gives pages back: our policies, and the base of a plugin's."""

from __future__ import annotations

import warnings
from bisect import insort
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
        uses_priority: whether it looks at a request's ``priority``; where it does not, none may be given.
    """

    patience = 64
    reserves = False
    uses_priority = False

    def key(self, request: Request) -> Any:
        """The smallest goes first."""
        return arrival(request)

    def choose(self, waiting: Sequence[Request]) -> Request:
        """One of ``waiting``, which is in order of arrival and not empty."""
        starved = (request for request in waiting if request.overtaken >= self.patience)
        return next(starved, None) or min(waiting, key=self.key)

    def standing(self, request: Request) -> Any:  # noqa: ARG002  # it knows nothing
        """Orders those that run: the largest gives its pages back when they run out, among equals the latest let in.

        Asked when ``request`` is let in. The smallest always gets on, so let none stay the largest for ever.
        """
        return 0

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

    uses_priority = True

    def key(self, request: Request) -> tuple[int, int]:
        """Priority, then arrival."""
        return request.priority, request.id

    def standing(self, request: Request) -> tuple[int, int, int]:
        """As :meth:`key`; but who was overtaken too often runs to its end before all that were not."""
        starved = request.overtaken >= self.patience
        return (0, 0, request.id) if starved else (1, *self.key(request))


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


class PolicyWarning(UserWarning):
    """A policy has failed; requests come first, served first, from then on."""


class Guarded:
    """A policy that cannot harm: once it raises, or answers what makes no sense, :class:`Fcfs` takes its place.

    No request is at fault for that, so none fails; a warning says once what went wrong.
    """

    def __init__(self, policy: Policy) -> None:
        """Takes ``policy`` over."""
        self.inner = policy
        # Kept when the policy is replaced: whoever gives a priority need not know what has failed since.
        self.uses_priority = bool(getattr(policy, "uses_priority", False))

    def choose(self, waiting: Sequence[Request]) -> Request:
        """One of ``waiting``."""
        try:
            chosen = self.inner.choose(list(waiting))  # its own, should it change it
            if any(chosen is request for request in waiting):
                return chosen
            raise ValueError(f"it chose {chosen!r:.80}, which does not wait")
        except Exception as error:
            self._replace(error)
            return waiting[0]

    def place(self, running: list[Request], request: Request) -> None:
        """Puts ``request`` where it stands among those that run."""
        try:
            insort(running, request, key=self.inner.standing)
        except Exception as error:
            self._replace(error)
            running.append(request)

    def remaining(self, request: Request) -> int:
        """How many tokens are likely to follow."""
        try:
            return int(self.inner.remaining(request))
        except Exception as error:
            self._replace(error)
            return 0

    def finished(self, request: Request) -> None:
        """Tells it."""
        try:
            self.inner.finished(request)
        except Exception as error:
            self._replace(error)

    @property
    def patience(self) -> float:
        """As the policy says."""
        try:
            return float(self.inner.patience)
        except Exception as error:
            self._replace(error)
            return Fcfs.patience

    @property
    def reserves(self) -> bool:
        """As the policy says."""
        try:
            return bool(self.inner.reserves)
        except Exception as error:
            self._replace(error)
            return Fcfs.reserves

    def _replace(self, error: Exception) -> None:
        name, kind = type(self.inner).__name__, type(error).__name__
        self.inner = Fcfs()
        try:
            what = f"{kind}: {error}"
        except Exception:  # of its own text
            what = kind
        warnings.warn(
            f"the policy {name} has failed ({what}): first come, first served from now on",
            PolicyWarning,
            stacklevel=2,
        )
