"""Deltas to events: a backlog, of one answer or several, is sent in parts, and others have their turn between these."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore.async_llm import MOST_AT_ONCE, AsyncStream
from llmcore.engine.request import Delta
from llmcore.llm import LLM
from llmcore_server.answers import Usage, Writer
from llmcore_server.call import Call
from llmcore_server.events import MARK, events

BACKLOG = 10 * MOST_AT_ONCE


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., TinyModel]) -> Any:
    llm = LLM(str(tiny_model("llama3").path), backend="numba", threads=1)
    yield llm.tokenizer
    llm.close()


def waiting(tokenizer: Any, answers: list[list[Delta]], *, chat: bool = True, model: str = "m") -> Call:
    """A call whose deltas have all come."""
    owner = SimpleNamespace(forget=lambda _request: None)
    clock = SimpleNamespace(note=lambda _delta: None, end=lambda: None)
    call = Call(Writer(chat, model, tokenizer), Usage(len(answers)), [], [], [])
    for deltas in answers:
        stream = AsyncStream(owner, SimpleNamespace(id=0, prompt_ids=[1], cached=0))  # type: ignore[arg-type]
        for delta in deltas:
            stream.put(delta)
        call.streams.append(stream)
        call.echoes.append("")
        call.clocks.append(clock)  # type: ignore[arg-type]
    return call


def bodies(data: bytes) -> list[dict[str, Any]]:
    found = [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event]
    assert found.pop() == b"[DONE]"
    return [json.loads(event) for event in found]


@pytest.mark.parametrize("answers", [1, 3])
def test_others_have_their_turn(answers: int, tokenizer: Any) -> None:
    words = [*(Delta(0, f"{i} ", (5,)) for i in range(BACKLOG)), Delta(0, "", (), finish_reason="length")]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def send() -> None:
        counting = asyncio.create_task(count())
        await asyncio.sleep(0)
        pieces, seen = [], []
        async for piece in events(waiting(tokenizer, [words] * answers), wants_usage=False):
            pieces.append(piece)
            seen.append(turns)
        counting.cancel()
        assert seen[-1] - seen[0] >= len(pieces) - 4, "at the most the last ones come without"
        assert len(pieces) >= answers * BACKLOG // MOST_AT_ONCE
        for index in range(answers):
            choices = [body["choices"][0] for body in bodies(b"".join(pieces))]
            text = "".join(each["delta"].get("content", "") for each in choices if each["index"] == index)
            assert text == "".join(f"{i} " for i in range(BACKLOG))

    asyncio.run(send())


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("model", ["m", MARK, f'"{MARK}"', '\\u0000"}', '"content":"'])
@pytest.mark.parametrize("text", ["a", MARK, '"', "\\u0000", "{}[]", "é\u2028😀"])
def test_any_name_and_any_text(chat: bool, model: str, text: str, tokenizer: Any) -> None:
    async def send() -> bytes:
        words = [Delta(0, text, (5,)), Delta(0, "", (), finish_reason="stop")]
        return b"".join([piece async for piece in events(waiting(tokenizer, [words], chat=chat, model=model), True)])

    *said, end, usage = bodies(asyncio.run(send()))
    assert {body["model"] for body in (*said, end, usage)} == {model}
    choices = [body["choices"][0] for body in said]
    assert "".join(each["delta"]["content"] if chat else each["text"] for each in choices) == text
    assert end["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 1
