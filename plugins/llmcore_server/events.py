"""Answers as server-sent events, each piece as its tokens come.

This runs for every token of every client, beside the engine's next step and on its processors: deltas become bytes by
plain calls, and only what has to wait is asynchronous.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import to_json

from llmcore.engine.request import Delta
from llmcore_server.answers import Places
from llmcore_server.call import Call, not_aborted
from llmcore_server.refusals import Refusal, refused

LOG = logging.getLogger("llmcore.server")
DONE = b"data: [DONE]\n\n"
MARK = "\0"  # stands for a piece's text


def _event(body: dict[str, Any] | None) -> bytes:
    return b"" if body is None else b"data: " + to_json(body) + b"\n\n"


class Choice:
    """One answer of a stream: from deltas to events."""

    def __init__(self, call: Call, index: int) -> None:
        """Args: ``index`` is the answer's place among those of the call."""
        self._call = call
        self._index = index
        self._writer = call.writer
        self._clock = call.clocks[index]
        self._scanner = None if call.scanner is None else call.scanner()
        self._places = Places(call.writer.tokenizer, len(call.echoes[index]))
        self._head = _event(call.writer.first_chunk(index, call.echoes[index]))
        piece = self._written(Delta(0, MARK))
        self._before, _, self._after = piece.rpartition(to_json(MARK))  # the text is the last of its strings
        self._tokens = 0

    def event(self, delta: Delta) -> bytes:
        """What is sent of a delta, if anything."""
        self._clock.note(delta)
        self._tokens += len(delta.token_ids)
        if self._scanner is not None:
            text = self._scanner.push(delta.text) + (self._scanner.finish() if delta.finish_reason else "")
            delta = delta._replace(text=text)
        if delta.finish_reason is None and not delta.logprobs:
            if not delta.text:
                return b""
            found = self._before + to_json(delta.text) + self._after
        elif delta.finish_reason == "abort":
            return b""
        elif delta.finish_reason and self._scanner is not None and self._scanner.calls:
            found = _event(self._writer.calls_chunk(self._index, delta.text, self._scanner.calls))
            found += self._written(delta._replace(text=""), called=True)
        else:
            found = self._written(delta)
        found, self._head = self._head + found, b""
        return found

    def _written(self, delta: Delta, *, called: bool = False) -> bytes:
        return _event(self._writer.chunk(self._index, delta, self._places, called=called))

    def count(self) -> None:
        """Adds the answer, which has ended well, to the call's usage."""
        self._call.usage.add(self._index, self._call.streams[self._index].request, self._tokens)


async def events(call: Call, wants_usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events of all answers, each as its deltas come."""
    try:
        async for piece in _pieces(call, 0) if len(call.streams) == 1 else _merged(call):
            yield piece
        if wants_usage:
            yield _event(call.writer.usage_chunk(call.usage))
        yield DONE
    except Exception as error:
        yield _event(_told(error).body)
    finally:
        call.close()


def _told(error: Exception) -> Refusal:
    try:
        return refused(error)
    except Exception as unforeseen:
        LOG.error("a stream failed", exc_info=unforeseen)
        return Refusal(500, "the server has made a mistake", code="internal_error")


async def _pieces(call: Call, index: int) -> AsyncIterator[bytes]:
    """The events of one answer: at once what a step has brought, a backlog in parts."""
    choice = Choice(call, index)
    try:
        while deltas := await call.streams[index].take():
            if piece := b"".join(map(choice.event, deltas)):
                yield piece
            not_aborted(deltas[-1])
            if len(deltas) > 1:  # the next ones may be there too, and others want their turn
                await asyncio.sleep(0)
    finally:
        call.clocks[index].end()
    choice.count()


async def _merged(call: Call) -> AsyncIterator[bytes]:
    """The events of several answers, in the order in which they come."""
    queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()

    async def feed(index: int) -> None:
        try:
            async for piece in _pieces(call, index):
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
                if not queue.empty():  # others want their turn
                    await asyncio.sleep(0)
    finally:
        for task in tasks:
            task.cancel()
