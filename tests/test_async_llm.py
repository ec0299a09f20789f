"""AsyncLLM: answers as LLM gives them, many at once; what is dropped is aborted, what fails is told."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable

import pytest

from helpers.tiny import TinyModel
from llmcore.async_llm import COMPILED_AT_ONCE, MOST_AT_ONCE, MOST_TO_COMPILE, AsyncLLM, AsyncStream
from llmcore.engine.constraint import Constraint
from llmcore.engine.load import EngineSettings
from llmcore.engine.request import Delta
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import BusyError, GenerationError, RequestError
from llmcore.llm import LLM

MakeTiny = Callable[..., TinyModel]
PROMPTS = ["one", "two of them", "three and more", "four"]
PARAMS = SamplingParams(max_tokens=20, temperature=1.0, seed=5, ignore_eos=True)


@pytest.fixture
def llm(tiny_model: MakeTiny) -> LLM:
    return LLM(str(tiny_model("qwen2").path), backend="numba", threads=2, engine=EngineSettings(max_seqs=3))


def test_many_at_once_as_one_by_one(llm: LLM) -> None:
    alone = [llm.generate(prompt, PARAMS)[0] for prompt in PROMPTS]

    async def ask() -> None:
        async with AsyncLLM(llm) as both:
            answers = await asyncio.gather(*(both.generate(prompt, PARAMS) for prompt in PROMPTS))
            assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
            assert all(answer.finish_reason == "length" for answer in answers)
            pieces = [delta async for delta in both.stream(PROMPTS[0], PARAMS)]
            assert "".join(delta.text for delta in pieces) == alone[0].text
            assert both.unfinished == 0

    asyncio.run(ask())


def test_what_has_come_is_taken_at_once_but_not_too_much(llm: LLM) -> None:
    async def ask() -> None:
        async with AsyncLLM(llm) as both:
            request = llm.engine.request([1, 2, 3], PARAMS)
            stream = AsyncStream(both, request)
            words = [Delta(request.id, f"{i}", (i,)) for i in range(MOST_AT_ONCE + 3)]
            words.append(Delta(request.id, "", finish_reason="length"))
            for delta in words:
                stream.put(delta)
            assert await stream.take() == words[:MOST_AT_ONCE]
            assert await stream.take() == words[MOST_AT_ONCE:]
            assert await stream.take() == [] and [delta async for delta in stream] == []

    asyncio.run(ask())


def test_what_came_before_a_failure_is_taken_first(llm: LLM) -> None:
    async def ask() -> None:
        async with AsyncLLM(llm) as both:
            request = llm.engine.request([1, 2, 3], PARAMS)
            request.error = "the machine is on fire"
            stream = AsyncStream(both, request)
            words = [Delta(request.id, "a", (1,)), Delta(request.id, "b", (2,))]
            for delta in (*words, Delta(request.id, "", finish_reason="error")):
                stream.put(delta)
            assert await stream.take() == words
            with pytest.raises(GenerationError, match="on fire"):
                await stream.take()
            assert await stream.take() == []

    asyncio.run(ask())


def test_several_wait_for_one_stream(llm: LLM) -> None:
    async def ask() -> None:
        async with AsyncLLM(llm) as both:
            stream = both.stream(PROMPTS[0], PARAMS)

            async def read() -> int:
                return sum([len(delta.token_ids) async for delta in stream])

            readers = [asyncio.create_task(read()) for _ in range(3)]
            await asyncio.sleep(0)
            readers[0].cancel()
            assert sum(await asyncio.gather(*readers[1:])) == 20

    asyncio.run(ask())


def test_who_stops_reading_frees_the_pages(llm: LLM) -> None:
    pool = llm.engine.scheduler.pool
    free = pool.free

    async def ask() -> None:
        async with AsyncLLM(llm) as both:
            dropped, closed, left = (both.stream(prompt, PARAMS) for prompt in PROMPTS[:3])
            for stream in (dropped, closed, left):
                await anext(stream)
            del stream, dropped
            closed.close()
            assert [delta async for delta in closed] == []
            task = asyncio.create_task(both.generate("five", SamplingParams(max_tokens=40, ignore_eos=True)))
            await asyncio.sleep(0.01)
            task.cancel()
            rest = [delta async for delta in left]
            assert rest[-1].finish_reason == "length"
            while both.unfinished:
                await asyncio.sleep(0.001)
            assert pool.free == free

    asyncio.run(ask())


def test_a_wrong_request_is_refused_at_once(llm: LLM) -> None:
    async def ask() -> None:
        async with AsyncLLM(llm) as both:
            with pytest.raises(RequestError, match="no tokens"):
                await both.generate([])
            with pytest.raises(RequestError, match="vocabulary"):
                both.stream([10**9])
            with pytest.raises(RequestError, match="may have"):
                await both.generate([1] * 1000)
            assert (await both.generate("next", PARAMS)).finish_reason == "length"

    asyncio.run(ask())


def test_constraints_are_compiled_in_a_lane_of_their_own(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty that take for ever: all else goes on, who wants the same one waits with it, and the lane has an end."""
    gate, compiled = threading.Event(), list[str]()
    compile_one = llm.engine.constraints._compile

    def slowly(kind: str, text: str) -> object:
        compiled.append(text)
        gate.wait()
        return compile_one(kind, text)

    def asked(text: str) -> SamplingParams:
        return dataclasses.replace(PARAMS, max_tokens=4, constraint=Constraint("regex", text))

    async def ask() -> None:
        async with AsyncLLM(llm) as both:
            await both.generate("known", asked("[a-c]{8}"))
            monkeypatch.setattr(llm.engine.constraints, "_compile", slowly)
            hostile = [asyncio.create_task(both.generate("x", asked(f"[a-c]{{{n + 4}}}"))) for n in range(40)]
            same = [asyncio.create_task(both.generate("x", asked("[a-c]{5}"))) for _ in range(3)]
            await asyncio.wait(hostile, return_when=asyncio.FIRST_EXCEPTION)
            busy = [error for task in hostile if task.done() and (error := task.exception())]
            assert len(busy) == 40 - COMPILED_AT_ONCE - MOST_TO_COMPILE - 1  # one of them is the known one
            assert all(isinstance(error, BusyError) for error in busy)
            answers = await asyncio.gather(
                both.generate("free", PARAMS),
                both.generate("known", asked("[a-c]{8}")),
                both.chat_ids([{"role": "user", "content": "x"}]),
                both.encode("long " * 200),
            )
            assert answers[0].finish_reason == "length"
            gate.set()
            await asyncio.gather(*hostile, *same, return_exceptions=True)
            assert [task.exception() for task in same] == [None] * 3
            assert compiled.count("[a-c]{5}") == 1

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_an_engine_that_fails_tells_everybody(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with AsyncLLM(llm) as both:
            stream = both.stream(PROMPTS[0], PARAMS)
            await anext(stream)
            monkeypatch.setattr(llm.engine, "step", lambda: (_ for _ in ()).throw(ZeroDivisionError("a bug")))
            with pytest.raises(GenerationError, match="a bug"):
                async for _ in stream:
                    pass
            assert isinstance(both.failed, ZeroDivisionError)
            with pytest.raises(GenerationError):
                await both.generate("next", PARAMS)

    asyncio.run(ask())


def test_several_may_read_and_close(llm: LLM) -> None:
    async def ask() -> None:
        both = AsyncLLM(llm)
        stream = both.stream(PROMPTS[0], PARAMS)

        async def read() -> int:
            return sum([len(delta.token_ids) async for delta in stream])

        assert sum(await asyncio.gather(read(), read())) == 20
        stream = both.stream(PROMPTS[0], PARAMS)
        readers = [asyncio.create_task(read()) for _ in range(2)]
        await asyncio.sleep(0)
        stream.close()
        await asyncio.gather(*readers)
        await asyncio.to_thread(both.close)
        with pytest.raises(RequestError, match="closed"):
            both.stream(PROMPTS[0], PARAMS)

    asyncio.run(ask())


def test_closing_ends_what_is_under_way(llm: LLM) -> None:
    async def ask() -> None:
        both = AsyncLLM(llm)
        streams = [both.stream(prompt, PARAMS) for prompt in PROMPTS]
        await anext(streams[0])
        await asyncio.to_thread(both.close)
        for stream in streams:
            reasons = [delta.finish_reason async for delta in stream]
            assert reasons[-1] in ("abort", "length")

    asyncio.run(ask())
