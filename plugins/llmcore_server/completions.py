"""``/v1/chat/completions`` and ``/v1/completions``: one call's answers, whole or in a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from llmcore.async_llm import AsyncLLM, AsyncStream
from llmcore.engine.constraint import Constraint
from llmcore.engine.request import Delta
from llmcore.engine.results import Collector, Completion
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import GenerationError, RequestError
from llmcore_server.answers import Places, Usage, Writer
from llmcore_server.connections import EVENTS
from llmcore_server.fields import ChatFields, CompletionFields
from llmcore_server.metrics import Clock
from llmcore_server.refusals import Refusal, refused
from llmcore_server.service import Service
from llmcore_server.tools import Scanner, ToolCall, Writing, writing_of

LOG = logging.getLogger("llmcore.server")
DONE = b"data: [DONE]\n\n"


@dataclass
class Call:
    """A call that was admitted.

    Attributes:
        streams: one for every answer, prompt by prompt.
        echoes: the text before each.
    """

    writer: Writer
    usage: Usage
    streams: list[AsyncStream]
    echoes: list[str]
    clocks: list[Clock]
    scanner: Callable[[], Scanner] | None = None  # of calls of functions, where the model was told of some

    def close(self) -> None:
        """Aborts what has not ended."""
        for stream in self.streams:
            stream.close()


async def chat(service: Service, fields: ChatFields, http: Request) -> Response:
    """Answers a conversation."""
    params, functions = fields.sampling(), fields.functions()
    writing = _writing(service) if functions else None
    names, several = frozenset(function["name"] for function in functions), fields.parallel_tool_calls is not False
    scanner = None if writing is None else partial(Scanner, writing, names, several=several)
    if writing is not None and fields.must_call():
        params = replace(params, constraint=Constraint(*writing.grammar(fields.must_call())))
    tools = [{"type": "function", "function": function} for function in functions] or None

    async def prompts(llm: AsyncLLM) -> list[Sequence[int]]:
        return [await llm.chat_ids([message.plain() for message in fields.messages], tools=tools)]

    return await _answer(service, fields, http, params, prompts, 1, scanner)


def _writing(service: Service) -> Writing:
    """How the model writes calls; raises :class:`RequestError` where it was not made for them."""
    writing = writing_of(service.llm.llm.checkpoint.tokenizer.chat_template or "")
    if writing is None:
        raise RequestError("the model's chat template knows of no tools", field="tools", remedy="take another model")
    return writing


async def complete(service: Service, fields: CompletionFields, http: Request) -> Response:
    """Continues texts."""
    params = fields.sampling()
    if fields.echo and fields.logprobs is not None:
        raise RequestError("echo with logprobs is not supported", field="echo", remedy="ask for one of them")

    async def prompts(llm: AsyncLLM) -> list[Sequence[int]]:
        return [await llm.encode(prompt) for prompt in fields.prompts]

    return await _answer(service, fields, http, params, prompts, len(fields.prompts))


async def _answer(
    service: Service,
    fields: ChatFields | CompletionFields,
    http: Request,
    params: SamplingParams,
    prompts: Callable[[AsyncLLM], Awaitable[list[Sequence[int]]]],
    count: int,
    scanner: Callable[[], Scanner] | None = None,
) -> Response:
    service.check_model(fields.model)
    with service.admitted(count * fields.choices) as llm:
        found = await prompts(llm)
        call = await _submitted(service, llm, fields, params, found)
        call.scanner = scanner
    if fields.stream:
        http.scope.setdefault("state", {})[EVENTS] = True
        wants_usage = fields.stream_options is not None and bool(fields.stream_options.include_usage)
        return StreamingResponse(
            _events(call, wants_usage), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
    return await _whole(call, http)


async def _submitted(
    service: Service,
    llm: AsyncLLM,
    fields: ChatFields | CompletionFields,
    params: SamplingParams,
    prompts: list[Sequence[int]],
) -> Call:
    """Hands every answer to the engine; all of them or, where one is refused, none."""
    is_chat = isinstance(fields, ChatFields)
    writer, usage = Writer(is_chat, fields.model, llm.llm.tokenizer), Usage(fields.choices)
    echo = isinstance(fields, CompletionFields) and bool(fields.echo)
    call = Call(writer, usage, [], [], [])
    try:
        for ids in prompts:
            text = llm.llm.tokenizer.decode(ids) if echo else ""
            for own in fields.drawn(params):
                call.streams.append(await llm.begin(ids, own, continues=not is_chat, **fields.standing()))
                call.echoes.append(text)
                call.clocks.append(Clock(service.metrics))
    except BaseException:
        call.close()
        raise
    return call


# --- whole answers ---


async def _whole(call: Call, http: Request) -> Response:
    task = asyncio.gather(*(_collected(call, i) for i in range(len(call.streams))))
    watcher = asyncio.create_task(_disconnected(http))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return Response(status_code=499)  # nobody is there to read it
        answers = task.result()
    finally:
        watcher.cancel()
        task.cancel()
        call.close()
        with suppress(asyncio.CancelledError, Exception):
            await task
    for index, (stream, answer) in enumerate(zip(call.streams, answers, strict=True)):
        call.usage.add(index, stream.request, len(answer.token_ids))
    calls: list[list[ToolCall]] = [[] for _ in answers]
    if call.scanner is not None:
        answers = [_without_calls(call.scanner(), answer, found) for answer, found in zip(answers, calls, strict=True)]
    return JSONResponse(call.writer.whole(answers, call.usage, call.echoes, calls))


def _without_calls(scanner: Scanner, answer: Completion, calls: list[ToolCall]) -> Completion:
    """``answer`` without the calls in it, which go to ``calls``."""
    text = scanner.push(answer.text) + scanner.finish()
    calls += scanner.calls
    return replace(answer, text=text) if calls else answer


async def _collected(call: Call, index: int) -> Completion:
    collector = Collector(call.streams[index].request, 0.0)
    async for delta in _timed(call, index):
        collector.add(delta)
    return collector.completion()


async def _timed(call: Call, index: int) -> AsyncIterator[Delta]:
    """The deltas of an answer, noted by its clock."""
    clock = call.clocks[index]
    try:
        async for delta in call.streams[index]:
            if delta.token_ids:
                clock.token()
            if delta.finish_reason == "abort":  # nobody who still reads has asked for it
                raise GenerationError("the server is shutting down")
            yield delta
    finally:
        clock.end()


async def _disconnected(http: Request) -> None:
    """Until the client has gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


# --- streams ---


def _told(error: Exception) -> Refusal:
    try:
        return refused(error)
    except Exception as unforeseen:
        LOG.error("a stream failed", exc_info=unforeseen)
        return Refusal(500, "the server has made a mistake", code="internal_error")


def _event(body: dict[str, Any] | None) -> bytes:
    return b"" if body is None else b"data: " + to_json(body) + b"\n\n"


async def _events(call: Call, wants_usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events of all answers, each as its deltas come."""
    try:
        pieces = _choice(call, 0) if len(call.streams) == 1 else _merged(call)
        async for piece in pieces:
            yield piece
            await asyncio.sleep(0)  # neither the deltas nor the socket need make us wait, and others want their turn
        if wants_usage:
            yield _event(call.writer.usage_chunk(call.usage))
        yield DONE
    except Exception as error:
        yield _event(_told(error).body)
    finally:
        call.close()


async def _choice(call: Call, index: int) -> AsyncIterator[bytes]:
    places, tokens, calls = Places(call.writer.tokenizer, len(call.echoes[index])), 0, list[ToolCall]()
    head = _event(call.writer.first_chunk(index, call.echoes[index]))
    async for delta in _without_marks(call, index, calls):
        tokens += len(delta.token_ids)
        if delta.finish_reason and calls:
            head += _event(call.writer.calls_chunk(index, delta.text, calls))
            yield head + _event(call.writer.chunk(index, delta._replace(text=""), places, called=True))
        elif delta.text or delta.logprobs or delta.finish_reason:
            yield head + _event(call.writer.chunk(index, delta, places))
            head = b""
    call.usage.add(index, call.streams[index].request, tokens)


async def _without_marks(call: Call, index: int, calls: list[ToolCall]) -> AsyncIterator[Delta]:
    """The deltas of an answer without calls of functions, which go to ``calls`` before the last of them."""
    scanner = None if call.scanner is None else call.scanner()
    async for delta in _timed(call, index):
        if scanner is None:
            yield delta
        else:
            text = scanner.push(delta.text) + (scanner.finish() if delta.finish_reason else "")
            calls[:] = scanner.calls
            yield delta._replace(text=text)


async def _merged(call: Call) -> AsyncIterator[bytes]:
    """The events of several answers, in the order in which they come."""
    queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()

    async def feed(index: int) -> None:
        try:
            async for piece in _choice(call, index):
                queue.put_nowait(piece)
            queue.put_nowait(None)
        except BaseException as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(feed(index)) for index in range(len(call.streams))]
    try:
        left = len(tasks)
        while left:
            piece = await queue.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                left -= 1
            else:
                yield piece
    finally:
        for task in tasks:
            task.cancel()
