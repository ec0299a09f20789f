"""The engine: requests in, deltas out, one step at a time."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from threading import RLock
from typing import Any

from llmcore.cache.pages import PagePool
from llmcore.cache.prefix import PrefixIndex
from llmcore.engine.launch import Launched, Launcher
from llmcore.engine.logit_rules import LogitRules
from llmcore.engine.logprobs import LogprobReader
from llmcore.engine.policies import Policy
from llmcore.engine.request import Delta, FinishReason, Request, TokenLogprobs, check_standing, checked_ids
from llmcore.engine.runner import Runner
from llmcore.engine.sampler import Sampler
from llmcore.engine.sampling_params import SamplingParams
from llmcore.engine.scheduler import Scheduler
from llmcore.engine.stats import Counters, Stats
from llmcore.errors import GenerationError, RequestError
from llmcore.text.constraint import ConstraintCompiler
from llmcore.text.detokenizer import Detokenizer, StopStrings
from llmcore.text.tokenizer import Tokenizer


@dataclass(eq=False)
class Live:
    """A request in the engine, with the state of its text.

    Attributes:
        stops: None where no text ends the answer.
        ends: the tokens that end it.
        limit: tokens that the sequence may have.
    """

    request: Request
    detokenizer: Detokenizer
    stops: StopStrings | None
    ends: frozenset[int]
    limit: int


class Engine:
    """Runs any number of requests over one model.

    Every :meth:`step` computes one ragged batch, prompts in chunks beside running sequences, and samples a token for
    each sequence that reached its end. What goes wrong in a step ends the requests that it goes wrong for, with
    ``error``; the engine goes on with the others.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        eos_ids: Sequence[int],
        *,
        policy: Policy | None = None,
        prefix_cache: bool = True,
    ) -> None:
        """Prepares for requests.

        Args:
            eos_ids: they end an answer unless the request ignores them.
            policy: who is let in first; first come, first served by default.
            prefix_cache: share the pages of sequences that begin alike.
        """
        sizes = runner.sizes
        self.runner = runner
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids)
        logits = runner.outputs["logits"]
        sampler = Sampler(logits, runner.registry, runner.pool, runner.place)
        self.launcher = Launcher(runner, sampler, LogprobReader(logits, runner.registry, runner.pool, runner.place))
        pool = PagePool(sizes.pages, PrefixIndex(sizes.page_size) if prefix_cache else None)
        self.scheduler = Scheduler(pool, sizes.page_size, sizes.seqs, sizes.tokens, sizes.context, policy)
        self.constraints = ConstraintCompiler(tokenizer, runner.vocab)
        self.counters = Counters()
        self.live: dict[int, Live] = {}
        self._ahead: Launched | None = None
        self._ids = count()
        self.lock = RLock()  # one step, or one change of what the next one holds, at a time

    def add(self, prompt_ids: Sequence[int], params: SamplingParams, **how: Any) -> Request:
        """Queues a request; arguments and errors as for :meth:`request`."""
        request = self.request(prompt_ids, params, **how)
        self.enqueue(request)
        return request

    def request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        continues: bool = True,
        priority: int = 0,
        salt: str = "",
    ) -> Request:
        """A request that can be queued. Waits for no step that is under way, as :meth:`enqueue` does.

        Args:
            continues: whether the answer goes on in the prompt's text, so that a space at its beginning counts.
            priority: the smaller, the sooner; other than 0 under a policy that looks at it alone.
            salt: keys and values are shared only with requests that have the same one.

        Raises:
            RequestError: an empty prompt, a token outside of the vocabulary, a prompt longer than the context, or a
                constraint that cannot be followed.
        """
        if not isinstance(params, SamplingParams):
            raise RequestError(
                f"the parameters are a {type(params).__name__}", field="params", remedy="give SamplingParams(…)"
            )
        check_standing(priority, salt, used=self.scheduler.policy.uses_priority)
        self.scheduler.check_length(len(prompt_ids))
        ids = checked_ids(prompt_ids, self.runner.vocab)
        for token in params.stop_token_ids:
            if token >= self.runner.vocab:
                raise RequestError(f"stop_token_ids has {token}, which is no token", field="stop_token_ids")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        rules = self._rules(params) if params.ruled else None  # a new constraint may take seconds: steps go on
        return Request(
            next(self._ids), ids, params, seed, continues=continues, rules=rules, priority=int(priority), salt=salt
        )

    def enqueue(self, request: Request) -> None:
        """Queues what :meth:`request` has made."""
        with self.lock:
            self.scheduler.add(request)
            self.live[request.id] = self._live(request)

    def _live(self, request: Request) -> Live:
        params, limit = request.params, self.scheduler.max_context
        if params.max_tokens is not None:
            limit = min(limit, len(request.prompt_ids) + params.max_tokens)
        stops = StopStrings(params.stop) if params.stop else None
        continues = request.continues or params.constraint is not None  # what the constraint has seen is what is shown
        return Live(request, Detokenizer(self.tokenizer, continues=continues), stops, self._ends(params), limit)

    def _ends(self, params: SamplingParams) -> frozenset[int]:
        return self.eos_ids.difference(self.eos_ids if params.ignore_eos else ()).union(params.stop_token_ids)

    def _rules(self, params: SamplingParams) -> LogitRules:
        form = params.constraint
        matcher = None if form is None else self.constraints.matcher(form.kind, form.text)
        return LogitRules(params, self._ends(params), self.runner.vocab, matcher)

    def abort(self, request: Request) -> None:
        """Ends ``request`` now and frees its pages; nothing happens if it has ended."""
        with self.lock:
            if self.live.pop(request.id, None) is not None:
                request.finish_reason = "abort"
                self.counters.end("error" if request.error else "abort", request.generated_count)
                self.scheduler.finish(request)

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return self.scheduler.busy

    def stats(self) -> Stats:
        """Where the engine stands; taken without waiting for the step that may be under way."""
        scheduler, done = self.scheduler, self.counters
        pool, prefixes = scheduler.pool, scheduler.pool.prefixes
        return Stats(
            len(scheduler.running),
            len(scheduler.waiting),
            scheduler.preemptions,
            len(pool.references),
            pool.free,
            prefixes.queried if prefixes else 0,
            prefixes.hit if prefixes else 0,
            done.generated,
            done.computed,
            done.steps,
            dict(done.ended),
            dict(done.ended_tokens),
        )

    def verify(self) -> None:
        """Raises :class:`InternalError` where the pages of the KV cache and their holders do not agree."""
        with self.lock:
            self.scheduler.verify()

    def step(self, waiting: Request | None = None) -> None:
        """Computes one batch; each request that got a token has a delta more.

        Args:
            waiting: the request that the caller waits for: nothing is run if it got a delta, or ended, meanwhile.
        """
        with self.lock:
            if waiting is None or not (waiting.deltas or waiting.finish_reason):
                self._step()

    def _step(self) -> None:
        step, self._ahead = self._ahead, None
        plan = step.plan if step else self.scheduler.schedule()
        if not plan:
            return
        ahead: Launched | None = None
        try:
            if self.launcher.ahead is None:
                tokens, reading = self.launcher.run(plan)
            else:
                with self.runner.place.device.scope():
                    launched = step or self.launcher.begin(plan)
                    ahead = self._begin_after(launched)
                    tokens, reading = launched.results()
        except Exception as error:  # whatever a kernel raises
            for request, _, _ in plan:
                if request.id in self.live:
                    self._fail(request, error, doubtful=True)
            return
        self.counters.steps += 1
        row = 0
        for request, new, complete in plan:
            if step is not None and request.id not in self.live:  # it ended when this step was under way
                row += complete
                continue
            self.counters.computed += new
            if complete:
                try:
                    token, wanted = tokens[row], request.params.logprobs
                    if token < 0:
                        raise GenerationError("the model computed logits that are not numbers (NaN)")
                    if request.error:
                        raise GenerationError(request.error)
                    extra = () if wanted is None or reading is None else (reading.of(row, token, wanted),)
                    delta = self._accept(self.live[request.id], new, token, extra)
                    request.deltas.append(delta)
                    if delta.finish_reason is not None:
                        self._end(request, delta.finish_reason)
                    elif new > 1 or len(request.tokens) == request.unproven + 1:
                        self.scheduler.keep(request)  # full pages, or proven ones: of numbers, as is known now
                except Exception as error:  # in what is this request's own
                    self._fail(request, error, doubtful=tokens[row] < 0)
                row += 1
            else:
                request.computed += new
                self.scheduler.keep(request)
        self._ahead = ahead  # not before: after an interrupt, what was not accepted is computed again

    def close(self) -> None:
        """Gives memory of an accelerator back; no step can follow."""
        if self.launcher.ahead is None:
            return
        with self.lock:
            self._ahead = None
            self.launcher.sampler.programs.clear()
            self.launcher.logprobs.programs.clear()
            self.runner.release()

    def _begin_after(self, step: Launched) -> Launched | None:
        """Begins the step after ``step`` before the host knows what that brings, where that cannot matter.

        A sequence that ``step`` turns out to end has a token too many then, which nobody looks at.
        """
        if step.tokens is None:
            return None
        for request, _, _ in step.plan:
            live = self.live.get(request.id)
            if live is None or len(request.tokens) + 1 >= live.limit:
                return None
        plan = self.scheduler.schedule_after(step.plan)
        return self.launcher.begin_after(step, plan) if plan else None

    def _accept(self, live: Live, new: int, token: int, extra: tuple[TokenLogprobs, ...]) -> Delta:
        """Appends ``token``, made of ``new`` computed ones, to a request and sees whether that ends it."""
        request = live.request
        request.tokens.append(token)
        request.computed += new  # after it: should an interrupt come between, they are computed again
        self.counters.generated += 1
        reason: FinishReason | None = None
        if token in live.ends:
            reason, text = "stop", ""  # the token that ends an answer is not part of it
        else:
            reason = "length" if len(request.tokens) >= live.limit else None
            text = live.detokenizer.push(token)
            if request.rules is not None:
                reason = self._follow(request, request.rules, token) or reason
        if reason is not None:
            text += live.detokenizer.finish()
        if live.stops is not None and request.generated_count >= request.params.min_tokens:
            text = live.stops.push(text)
            if live.stops.stopped:
                reason = "stop"
            elif reason is not None:
                text += live.stops.finish()
        return Delta(request.id, text, (token,), extra, reason)

    def _follow(self, request: Request, rules: LogitRules, token: int) -> FinishReason | None:
        """Takes note of ``token`` in the request's constraint; why that ends it, if it does."""
        if rules.matcher is None:
            return None
        rules.matcher.advance(token)
        if rules.matcher.error:
            request.error = f"the constraint can be followed no further: {rules.matcher.error}"
            return "error"
        return "stop" if rules.matcher.complete else None

    def _end(self, request: Request, reason: FinishReason, *, doubtful: bool = False) -> None:
        """Lets go of a request whose last delta is there: who sees that it has ended finds all of them."""
        request.finish_reason = reason
        self.counters.end(reason, request.generated_count)
        self.scheduler.finish(request, doubtful=doubtful)
        self.live.pop(request.id, None)

    def _fail(self, request: Request, error: Exception, *, doubtful: bool) -> None:
        """Ends ``request`` with what went wrong; what ``doubtful`` pages of it hold is shared with nobody."""
        request.error = error.message if isinstance(error, GenerationError) else f"{type(error).__name__}: {error}"
        request.cause = error
        request.deltas.append(Delta(request.id, "", finish_reason="error"))
        self._end(request, "error", doubtful=doubtful)
