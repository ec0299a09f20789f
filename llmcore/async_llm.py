"""The Python API for asyncio: many requests of one event loop, answered in continuous batches.

async with AsyncLLM(LLM("smollm2")) as llm:
    async for delta in llm.stream("The capital of France is"):
        print(delta.text, end="")
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from llmcore.engine.background import Background, Outcome
from llmcore.engine.constraint import Constraint
from llmcore.engine.doorbell import Doorbell
from llmcore.engine.embedding import Array, Embedding, Pooling
from llmcore.engine.request import Delta, Request
from llmcore.engine.results import Collector, Completion
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import BusyError, GenerationError, LlmcoreError, RequestError
from llmcore.llm import LLM, Prompt

if TYPE_CHECKING:
    from llmcore.text.chat import Message

LONG = 4096  # characters: a longer text is encoded in another thread, so that the event loop goes on
MOST_AT_ONCE = 16  # deltas that one take gives
COMPILED_AT_ONCE = 2  # constraints, each in a process of its own first, for up to 2 s
MOST_TO_COMPILE = 16  # new constraints that wait for these: what comes then is told to come again


class AsyncStream(AsyncIterator[Delta]):
    """Deltas of one request as they come. One that is closed or dropped aborts its request."""

    def __init__(self, llm: AsyncLLM, request: Request) -> None:
        """``request`` has been submitted."""
        self.request = request
        self._llm = llm
        self._deltas: deque[Delta] = deque()
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, delta: Delta) -> None:
        """Adds a delta, in the event loop."""
        self._deltas.append(delta)
        self._changed.set()

    async def __anext__(self) -> Delta:
        """The next delta.

        Raises:
            GenerationError: the request has failed; what has come before it stays.
        """
        if not await self._come():
            raise StopAsyncIteration
        return self._next()

    async def take(self) -> list[Delta]:
        """The deltas that have come, at least one, at most ``MOST_AT_ONCE``; none once the answer has ended.

        It waits only where none has come: who reads a backlog should let others have a turn. Raises what iteration
        raises.
        """
        if not await self._come():
            return []
        found = [self._next()]
        while self._deltas and len(found) < MOST_AT_ONCE and self._deltas[0].finish_reason != "error":
            found.append(self._next())
        return found

    async def _come(self) -> bool:
        """Waits for a delta, several may; False where there will be none."""
        while not self._deltas:
            if self._ended:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def _next(self) -> Delta:
        delta = self._deltas.popleft()
        if delta.finish_reason is not None:
            self._ended = True
            self._changed.set()  # others may wait
            if delta.finish_reason == "error":
                raise self.request.failure
        return delta

    def close(self) -> None:
        """Aborts the request if it has not ended; nothing more comes."""
        if not self._ended:
            self._ended = True
            self._llm.forget(self.request)
        self._deltas.clear()
        self._changed.set()

    async def aclose(self) -> None:
        """As :meth:`close`."""
        self.close()

    def __del__(self) -> None:
        """A dropped stream leaves nothing behind in the engine."""
        self.close()


class AsyncLLM:
    """One model for the requests of one event loop; its engine steps in a thread of its own."""

    def __init__(self, llm: LLM) -> None:
        """Takes ``llm`` over, from within the event loop: nobody else runs its engine until it is closed."""
        self.llm = llm
        self._closed = False
        self._streams: WeakValueDictionary[int, AsyncStream] = WeakValueDictionary()  # a dropped one aborts
        self._compilers = ThreadPoolExecutor(COMPILED_AT_ONCE, thread_name_prefix="llmcore-constraint")
        self._compiling: dict[Constraint, asyncio.Future[Any]] = {}
        self._outcomes: deque[Outcome] = deque()
        self._bell = Doorbell(self._hand_out)
        self._background = Background(llm.engine, self._deliver)

    @property
    def unfinished(self) -> int:
        """Requests that have not ended."""
        return self._background.unfinished

    @property
    def failed(self) -> BaseException | None:
        """What ended the engine, if anything has: nothing is answered any more."""
        return self._background.failed

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **how: Any) -> AsyncStream:
        """Deltas of one answer as they come.

        Args:
            how: ``continues``, ``priority`` and ``salt``, as :meth:`llmcore.engine.engine.Engine.request` takes them.

        Raises:
            RequestError: a prompt or parameter that cannot be served.
        """
        return self._submitted(self.llm.engine.request(self.llm.encode(prompt), params or SamplingParams(), **how))

    async def begin(self, prompt: Prompt, params: SamplingParams | None = None, **how: Any) -> AsyncStream:
        """As :meth:`stream`; what takes long, to encode a long text or to compile a constraint, holds nobody up.

        Raises:
            BusyError: the constraint is new, and too many new ones wait to be compiled.
        """
        ids, wanted = await self.encode(prompt), params or SamplingParams()
        if wanted.constraint is not None:
            await self._compiled(wanted.constraint)
        return self.stream(ids, wanted, **how)

    async def _compiled(self, form: Constraint) -> None:
        """Until the engine knows ``form``; those who want the same wait together. Raises what compiling it raises."""
        known = self.llm.engine.constraints
        while not known.knows(form.kind, form.text):
            under_way = self._compiling.get(form)
            if under_way is None:
                if len(self._compiling) >= COMPILED_AT_ONCE + MOST_TO_COMPILE:
                    raise BusyError(
                        f"{len(self._compiling)} new forms of answers are being compiled or wait for it",
                        remedy="ask again later, or without response_format",
                    )
                loop = asyncio.get_running_loop()
                under_way = loop.run_in_executor(self._compilers, known.matcher, form.kind, form.text)
                self._compiling[form] = under_way
                under_way.add_done_callback(partial(self._no_longer_compiling, form))
            await asyncio.shield(under_way)

    def _no_longer_compiling(self, form: Constraint, future: asyncio.Future[Any]) -> None:
        del self._compiling[form]
        if not future.cancelled():
            future.exception()  # whoever still waits is told; perhaps nobody does

    def _submitted(self, request: Request) -> AsyncStream:
        if self._closed:
            raise RequestError("the model is closed", remedy="load it again")
        stream = AsyncStream(self, request)
        self._streams[request.id] = stream
        self._background.submit(request)
        return stream

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None, **how: Any) -> Completion:
        """A whole answer; takes what :meth:`stream` takes, and raises what it and its deltas raise."""
        started = time.perf_counter()
        stream = await self.begin(prompt, params, **how)
        collector = Collector(stream.request, started)
        try:
            async for delta in stream:
                collector.add(delta)
        finally:
            stream.close()
        return collector.completion()

    async def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """The assistant's answer to a conversation, by the model's chat template."""
        return await self.generate(await self.chat_ids(messages), params, continues=False)

    async def embed(self, prompt: Prompt, pooling: Pooling = "mean") -> tuple[Array, int]:
        """A text's vector, float32 ``[hidden]`` of length 1, and how many tokens it has.

        Raises:
            RequestError: a text that is empty, or longer than the context.
            GenerationError: it could not be computed.
        """
        job = Embedding(self.llm.engine, await self.encode(prompt), pooling)
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def ended(error: Exception | None) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(_settle, ready, error)

        self._background.embed(job, ended)
        await ready
        assert job.vector is not None
        return job.vector, len(job.ids)

    async def encode(self, prompt: Prompt) -> Sequence[int]:
        """A prompt's token ids."""
        if isinstance(prompt, str):
            self.check_size(prompt)
        if isinstance(prompt, str) and len(prompt) > LONG:
            return await asyncio.to_thread(self.llm.encode, prompt)
        return self.llm.encode(prompt)

    async def chat_ids(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """A conversation's token ids; the template is run in another thread, since a model's may take long."""
        self.check_size(*(content for each in messages if isinstance(content := each.get("content"), str)))
        return await asyncio.to_thread(self.llm.chat_ids, messages, **variables)

    def check_size(self, *texts: str) -> None:
        """Raises :class:`RequestError` for texts that no context could hold: to encode them would take long."""
        context = self.llm.engine.scheduler.max_context
        size, most = sum(map(len, texts)), 2 * context * self.llm.longest_token
        if size > most:
            raise RequestError(
                f"the text has {size} characters; prompt and answer may have {context} tokens",
                field="prompt",
                remedy="shorten it",
            )

    def forget(self, request: Request) -> None:
        """Ends a request; its stream gets nothing more."""
        self._streams.pop(request.id, None)
        self._background.abort(request)

    def fail_all(self, why: str) -> None:
        """Ends all requests with an error."""
        for stream in list(self._streams.values()):
            stream.request.error = why
            self._background.abort(stream.request)

    def close(self) -> None:
        """Ends every request, the engine's thread and the model."""
        self._closed = True
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._background.close()
        self._bell.close()
        self.llm.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _deliver(self, outcome: Outcome) -> None:
        """From the engine's thread to the event loop, once for all that a step brought."""
        self._outcomes.append(outcome)
        self._bell.ring()

    def _hand_out(self) -> None:
        while self._outcomes:
            for request, delta in self._outcomes.popleft():
                stream = self._streams.get(request.id)
                if stream is not None:
                    stream.put(delta)
                    if delta.finish_reason is not None:
                        self._streams.pop(request.id, None)


def _settle(ready: asyncio.Future[None], error: Exception | None) -> None:
    if ready.done():  # cancelled
        return
    if error is None:
        ready.set_result(None)
    else:
        ready.set_exception(error if isinstance(error, LlmcoreError) else GenerationError(f"{error}"))
