"""Which sequences get how many tokens in the next step, within budget and page pool; who is let in, a policy says."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from llmcore.cache.pages import PagePool
from llmcore.engine.policies import Fcfs, Guarded, Policy, arrival
from llmcore.engine.request import Request
from llmcore.errors import InternalError, RequestError

Scheduled = tuple[Request, int, bool]
"""How many tokens of a request, from its first one that is not in the cache; and whether the step reaches the
sequence's end, so that a new token follows. Bare, as one is made for each sequence in every step.
"""


class Scheduler:
    """Iteration-level scheduling (Yu et al. 2022, Orca): sequences join and leave between steps.

    Running sequences come first, in the order in which they were let in, or stand by their policy; what is left of the
    budget goes to waiting ones, a long prompt in chunks. When pages run out, the last of them gives its pages back and
    waits, so the first one always gets on; what of the tokens the prefix cache has lost by then is computed again.

    Attributes:
        waiting: in order of arrival; they hold no pages.
        running: those that a policy lets go first come last.
    """

    def __init__(
        self,
        pool: PagePool,
        page_size: int,
        max_seqs: int,
        max_tokens: int,
        max_context: int,
        policy: Policy | None = None,
    ) -> None:
        """Args: ``max_seqs`` and ``max_tokens`` bound one step, ``max_context`` one sequence."""
        self.pool = pool
        self.page_size = page_size
        self.max_seqs = max_seqs
        self.max_tokens = max_tokens
        self.max_context = min(max_context, len(pool.references) * page_size)
        self.policy = Guarded(policy or Fcfs())
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0
        self._coming: set[bytes] = set()  # digests of pages that running sequences have yet to compute

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.waiting or self.running)

    def check_length(self, tokens: int) -> None:
        """Raises :class:`RequestError` if a prompt of so many tokens could never run."""
        room = self.max_context - tokens
        if room < 1:
            raise RequestError(
                f"the prompt has {tokens} tokens; prompt and answer may have {self.max_context}",
                field="prompt",
                remedy="shorten it, or raise engine.max_context (and engine.kv_pages)",
            )

    def add(self, request: Request) -> None:
        """Queues ``request``; raises :class:`RequestError` if it could never run."""
        self.check_length(len(request.prompt_ids))
        self.waiting.append(request)

    def schedule(self) -> list[Scheduled]:
        """The next step's work, with pages allocated for it; empty when nothing is left to do."""
        budget = self.max_tokens
        plan: list[Scheduled] = []
        preempted = False
        while budget > 0 and len(plan) < len(self.running):  # the last ones may leave meanwhile
            request = self.running[len(plan)]
            pending = len(request.tokens) - request.computed
            count = pending if pending < budget else budget
            if request.computed + count > len(request.pages) * self.page_size:
                preempted |= self._make_room(request, count)
                if len(plan) == len(self.running):  # it was the last itself
                    break
            plan.append((request, count, count == pending))
            budget -= count
        if self.waiting and not preempted and len(self.running) < self.max_seqs:
            plan += self._admit(budget)
        return plan

    def schedule_after(self, plan: Sequence[Scheduled]) -> list[Scheduled]:
        """The step after one that is under way and brings a token for all that run, with pages allocated for it.

        Empty where that step does not, where others could be let in, or where somebody would have to make room.
        """
        room = self.waiting and len(self.running) < self.max_seqs
        if room or len(plan) != len(self.running) or not all(complete for _, _, complete in plan):
            return []
        missing = [max(self._missing(request, new + 1), 0) for request, new, _ in plan]
        if not self.pool.can_allocate(sum(missing)):
            return []
        for (request, _, _), count in zip(plan, missing, strict=True):
            if count:
                self.keep(request)
                request.pages += self.pool.allocate(count)
        return [(request, 1, True) for request, _, _ in plan]

    def _admit(self, budget: int) -> list[Scheduled]:
        """Lets waiting requests in, as the policy orders them, while the budget lasts and the pool holds each one.

        Passed over is whose next page a running sequence is about to compute: a later step shares it. Where the policy
        does not let it be overtaken any more, all wait with it.
        """
        plan: list[Scheduled] = []
        candidates = list(self.waiting)
        passed: list[Request] = []
        while candidates and budget > 0 and len(self.running) < self.max_seqs:
            request = self.policy.choose(candidates)
            candidates.remove(request)
            found = self._find(request)
            if len(found) < len(request.digests) and request.digests[len(found)] in self._coming:
                passed.append(request)
                continue
            if any(other.id < request.id and other.overtaken >= self.policy.patience for other in passed):
                break
            if not self._fits(request, found):
                break
            self._let_in(request, found)
            pending = request.pending
            count = min(pending, budget)
            plan.append((request, count, count == pending))
            budget -= count
        return plan

    def _find(self, request: Request) -> list[int]:
        """Pages that hold the beginning of ``request``, all but one token of it at most: that one gives logits."""
        prefixes = self.pool.prefixes
        if prefixes is None:
            return []
        full = (len(request.tokens) - 1) // self.page_size
        prefixes.extend(request.digests, request.tokens, full, request.salt)
        return prefixes.find(request.digests[:full])

    def _fits(self, request: Request, found: list[int]) -> bool:
        """Whether the pool has room for ``request``, of which it holds ``found``."""
        references = self.pool.references
        needed = self._pages_of(len(request.tokens)) - sum(references[page] > 0 for page in found)
        if self.policy.reserves and self.running:  # whoever is alone may have all there is
            needed += sum(map(self._growth, (request, *self.running)))
        return self.pool.can_allocate(needed)

    def _growth(self, request: Request) -> int:
        """Pages that ``request`` is likely to ask for beside those of its tokens so far."""
        length = min(len(request.tokens) + self.policy.remaining(request), self.max_context)
        return max(0, self._pages_of(length) - max(len(request.pages), self._pages_of(len(request.tokens))))

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _let_in(self, request: Request, found: list[int]) -> None:
        self.waiting.remove(request)
        for other in self.waiting:
            if other.id > request.id:
                break
            other.overtaken += 1
        self.policy.place(self.running, request)
        self.pool.share(found)
        request.pages = [*found, *self.pool.allocate(self._pages_of(len(request.tokens)) - len(found))]
        request.entered = len(found)
        request.unproven = len(request.tokens)
        request.computed = len(found) * self.page_size
        self._coming.update(request.digests[len(found) :])
        if not request.admitted and self.pool.prefixes is not None:
            request.cached = request.computed
            self.pool.prefixes.queried += len(request.prompt_ids)
            self.pool.prefixes.hit += request.cached
        request.admitted = True

    def keep(self, request: Request) -> None:
        """Puts the pages that ``request`` has filled into the prefix cache; they must be computed, not just planned.

        And proven: logits that are numbers have followed them, so all that they were made of are numbers. The pages
        of a prompt wait for the first token, however many chunks it takes: a page that holds NaN is found by nobody.
        Called where a step computed several tokens, where a page more is needed, and at the end: a step of one token
        costs nothing.
        """
        prefixes, full = self.pool.prefixes, request.computed // self.page_size
        if prefixes is None or full <= request.entered or len(request.tokens) <= request.unproven:
            return
        prefixes.extend(request.digests, request.tokens, full, request.salt)
        for i in range(request.entered, full):
            prefixes.enter(request.digests[i], request.pages[i])
            self._coming.discard(request.digests[i])
        request.entered = full

    def finish(self, request: Request, *, doubtful: bool = False) -> None:
        """Takes ``request`` out, wherever it is, and frees its pages; ``doubtful`` ones are found by nobody then."""
        if request in self.running:
            self.running.remove(request)
            if doubtful:
                self.pool.forget(request.pages)
                request.computed = 0
            self._free(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        if request.finish_reason in ("stop", "length"):
            self.policy.finished(request)

    def verify(self) -> None:
        """Raises :class:`InternalError` where pages, their counts and the requests that hold them do not agree."""
        for request in self.waiting:
            if request.pages:
                raise InternalError(f"page {request.pages[0]} is held by request {request.id}, which waits")
        self.pool.verify(request.pages for request in self.running)

    def _missing(self, request: Request, count: int) -> int:
        """Pages that ``request`` still needs to hold ``count`` more tokens."""
        return self._pages_of(request.computed + count) - len(request.pages)

    def _make_room(self, request: Request, count: int) -> bool:
        """Gives ``request`` the pages for ``count`` tokens; says whether the last that run had to give theirs back.

        ``request`` may be the last itself; it waits then.
        """
        self.keep(request)
        missing = self._missing(request, count)
        preempted = False
        while not self.pool.can_allocate(missing):
            victim = self.running.pop()
            self._free(victim)
            insort(self.waiting, victim, key=arrival)
            preempted = True
            self.preemptions += 1
            if victim is request:
                return True
        request.pages += self.pool.allocate(missing)
        return preempted

    def _free(self, request: Request) -> None:
        self.keep(request)
        self._coming.difference_update(request.digests[request.entered :])
        self.pool.release(reversed(request.pages))  # a page is of no use without those before it: it goes first
        request.pages = []
        request.computed = request.entered = 0
