"""Which sequences get how many tokens in the next step: first come, first served, within budget and page pool."""

from __future__ import annotations

from collections import deque

from llmcore.cache.pages import PagePool
from llmcore.engine.request import Request
from llmcore.errors import RequestError

Scheduled = tuple[Request, int, bool]
"""How many tokens of a request, from its first one that is not in the cache; and whether the step reaches the
sequence's end, so that a new token follows. Bare, as one is made for each sequence in every step.
"""


class Scheduler:
    """Iteration-level scheduling (Yu et al. 2022, Orca): sequences join and leave between steps.

    Running sequences come first, in order of arrival; what is left of the budget goes to waiting ones, a long prompt
    in chunks. When pages run out, the latest arrival gives its pages back and waits; its tokens are computed again
    later.
    """

    def __init__(self, pool: PagePool, page_size: int, max_seqs: int, max_tokens: int, max_context: int) -> None:
        """Args: ``max_seqs`` and ``max_tokens`` bound one step, ``max_context`` one sequence."""
        self.pool = pool
        self.page_size = page_size
        self.max_seqs = max_seqs
        self.max_tokens = max_tokens
        self.max_context = min(max_context, len(pool.references) * page_size)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.waiting or self.running)

    def check(self, request: Request) -> None:
        """Raises :class:`RequestError` if ``request`` could never run."""
        room = self.max_context - len(request.prompt_ids)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(request.prompt_ids)} tokens; prompt and answer may have {self.max_context}",
                field="prompt",
                remedy="shorten it, or raise engine.max_context (and engine.kv_pages)",
            )

    def add(self, request: Request) -> None:
        """Queues ``request``; raises :class:`RequestError` if it could never run."""
        self.check(request)
        self.waiting.append(request)

    def schedule(self) -> list[Scheduled]:
        """The next step's work, with pages allocated for it; empty when nothing is left to do."""
        budget = self.max_tokens
        plan: list[Scheduled] = []
        preempted = False
        while budget > 0 and len(plan) < len(self.running):  # the latest ones may leave meanwhile
            request = self.running[len(plan)]
            pending = len(request.tokens) - request.computed
            count = pending if pending < budget else budget
            if request.computed + count > len(request.pages) * self.page_size:
                preempted |= self._make_room(request, count)
                if len(plan) == len(self.running):  # it was the latest itself
                    break
            plan.append((request, count, count == pending))
            budget -= count
        if self.waiting and not preempted:
            plan += self._admit(budget)
        return plan

    def _admit(self, budget: int) -> list[Scheduled]:
        """Lets waiting requests in, in order, while the budget lasts and the pool holds each one's tokens so far."""
        plan: list[Scheduled] = []
        while self.waiting and budget > 0 and len(self.running) < self.max_seqs:
            request = self.waiting[0]
            pending = request.pending
            missing = self._missing(request, pending)
            if not self.pool.can_allocate(missing):
                break
            self.waiting.popleft()
            self.running.append(request)
            request.pages += self.pool.allocate(missing)
            count = min(pending, budget)
            plan.append((request, count, count == pending))
            budget -= count
        return plan

    def finish(self, request: Request) -> None:
        """Takes ``request`` out, wherever it is, and frees its pages."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self._free(request)

    def _missing(self, request: Request, count: int) -> int:
        """Pages that ``request`` still needs to hold ``count`` more tokens."""
        return -(-(request.computed + count) // self.page_size) - len(request.pages)

    def _make_room(self, request: Request, count: int) -> bool:
        """Gives ``request`` the pages for ``count`` tokens; says whether the latest arrivals had to give theirs back.

        ``request`` may be the latest itself; it waits then.
        """
        missing = self._missing(request, count)
        preempted = False
        while not self.pool.can_allocate(missing):
            victim = self.running.pop()
            self._free(victim)
            self.waiting.appendleft(victim)
            preempted = True
            self.preemptions += 1
            if victim is request:
                return True
        request.pages += self.pool.allocate(missing)
        return preempted

    def _free(self, request: Request) -> None:
        self.pool.release(request.pages)
        request.pages = []
        request.computed = 0
