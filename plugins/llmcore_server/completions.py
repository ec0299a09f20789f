"""``/v1/chat/completions`` and ``/v1/completions``: one call's answers, whole or in a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from llmcore.async_llm import AsyncLLM
from llmcore.engine.constraint import Constraint
from llmcore.engine.results import Collector, Completion
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import RequestError
from llmcore_server.answers import Usage, Writer
from llmcore_server.call import Call, not_aborted
from llmcore_server.connections import EVENTS
from llmcore_server.events import events
from llmcore_server.fields import ChatFields, CompletionFields
from llmcore_server.metrics import Clock
from llmcore_server.service import Service
from llmcore_server.tools import Scanner, ToolCall, Writing, writing_of


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
            events(call, wants_usage), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
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
        either: set[asyncio.Future[Any]] = {task, watcher}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
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
    collector, clock = Collector(call.streams[index].request, 0.0), call.clocks[index]
    try:
        while deltas := await call.streams[index].take():
            for delta in deltas:
                clock.note(delta)
                collector.add(delta)
            not_aborted(deltas[-1])
    finally:
        clock.end()
    return collector.completion()


async def _disconnected(http: Request) -> None:
    """Until the client has gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
