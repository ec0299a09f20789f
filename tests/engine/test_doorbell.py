"""The bell: every ring is answered in the loop, with or without eventfd; what it holds is given back."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from pathlib import Path

import pytest

from llmcore.engine.doorbell import Doorbell


@pytest.fixture(params=["eventfd", "without", "not let", "a loop that watches no files"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def refuse(*_: object) -> None:
        raise PermissionError if request.param == "not let" else NotImplementedError

    if request.param == "without":
        monkeypatch.delattr(os, "eventfd")
    elif request.param == "not let":
        monkeypatch.setattr(os, "eventfd", refuse)
    elif request.param != "eventfd":
        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_reader", refuse)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_rings_of_another_thread_are_answered_in_the_loop() -> None:
    heard: list[int] = []
    left: list[int] = []

    async def listen() -> None:
        here, bell = threading.get_ident(), Doorbell(lambda: heard.append(threading.get_ident()))

        def ring() -> None:
            for i in range(1000):
                left.append(i)
                bell.ring()

        thread = threading.Thread(target=ring)
        thread.start()
        await asyncio.to_thread(thread.join)
        while not heard:
            await asyncio.sleep(0.001)
        before = len(heard)
        bell.ring()
        while len(heard) == before:
            await asyncio.sleep(0.001)
        bell.close()
        await asyncio.sleep(0)
        assert set(heard) == {here} and len(left) == 1000

    asyncio.run(listen())


@pytest.mark.usefixtures("way")
def test_what_rang_before_it_was_taken_down_is_answered() -> None:
    letters: list[str] = []
    found: list[str] = []

    def answer() -> None:
        found.extend(letters)
        letters.clear()

    async def listen() -> None:
        bell = Doorbell(answer)
        letters.append("a")
        bell.ring()
        bell.close()
        bell.close()
        for _ in range(3):
            await asyncio.sleep(0)
        assert found == ["a"]
        letters.append("b")
        bell.ring()  # as those do who know nothing of it
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert found == ["a", "b"]

    asyncio.run(listen())


@pytest.mark.usefixtures("way")
def test_nobody_is_there_any_more() -> None:
    heard: list[str] = []

    async def hang() -> Doorbell:
        return Doorbell(lambda: heard.append("a ring"))

    bell = asyncio.run(hang())
    bell.ring()
    bell.close()
    bell.ring()
    assert not heard


def files() -> int:
    """How many this process has open, but for those of garbage."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_its_file_is_given_back() -> None:
    async def hang() -> None:
        before = files()
        bells = [Doorbell(lambda: None) for _ in range(20)]
        assert files() == before + 20
        for bell in bells:
            bell.close()
        await asyncio.sleep(0)
        assert files() == before

    asyncio.run(hang())


@pytest.mark.parametrize("close", [True, False])
def test_its_file_is_given_back_with_its_loop(close: bool) -> None:
    async def hang() -> Doorbell:
        return Doorbell(lambda: None)

    before = files()
    loop = asyncio.new_event_loop()
    bell = loop.run_until_complete(hang())
    if close:
        bell.close()
    loop.close()
    del bell, loop
    assert files() == before


def test_who_rings_keeps_the_gil() -> None:
    """The loop's thread, woken, waits for the GIL, and has it only once who rang lets go of it."""
    order: list[str] = []

    async def listen() -> None:
        done = asyncio.Event()

        def answer() -> None:
            order.append("answered")
            done.set()

        bell = Doorbell(answer)

        def ring() -> None:
            for _ in range(50):
                bell.ring()
            order.append("rung")

        await asyncio.to_thread(lambda: None)  # the thread that rings is there
        ringing = asyncio.get_running_loop().run_in_executor(None, ring)
        await done.wait()
        await ringing
        bell.close()

    before = sys.getswitchinterval()
    sys.setswitchinterval(10)
    try:
        asyncio.run(listen())
    finally:
        sys.setswitchinterval(before)
    assert order[0] == "rung"
