"""A soak of one server: many clients for long, some of which hang up; then a queue that is full; then a signal.

Nothing is judged here: see :mod:`llmcore_tools.load.accounts`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmcore_tools.load.child_server import ChildServer, Gauge, Memory
from llmcore_tools.load.client import Api, Client
from llmcore_tools.load.mixture import TEXT, Call, Mixture
from llmcore_tools.load.records import Record
from llmcore_tools.load.tally import Tally

FULL = "429"
MOST_CHOICES = 16  # that one call may ask for
MOST_CALLS, SPARE_CALLS = 512, 8  # that hold the queue full
WARM_SEED = 1 << 30
WARM_CALLS = 32
SAMPLES = 200  # of the server's memory
SETTLE_S = 60.0
POLL_S = 0.05
LET_IN_S = 1.0  # that a refusal may take, at most
PATIENCE_S = 120.0  # until the queue is full, and until a told server has ended


@dataclass(frozen=True)
class Plan:
    """One soak.

    Attributes:
        room: answers that the server lets wait, at most.
        interval: seconds between two questions for the server's health.
        timeout: seconds that a request may take.
    """

    mixture: Mixture
    clients: int
    requests: int
    room: int
    seed: int = 0
    interval: float = 0.05
    timeout: float = 600.0


@dataclass(frozen=True)
class Exchange:
    """A call, and what came of it."""

    call: Call
    record: Record
    tally: Tally


@dataclass(frozen=True)
class Sample:
    """The server's memory when this share of the requests had ended."""

    share: float
    memory: Memory


@dataclass
class Found:
    """What a soak saw.

    Attributes:
        exchanges: of the load, each call's last: what was refused for a full queue is asked again.
        refusals: of calls of the load, for a full queue.
        rejections: what came of calls while the queue was held full.
        before, after, end: the server's numbers before the load, after it, and after the full queue.
        descriptors: before the load, and when all was over.
        health: milliseconds and status, of each question.
        seconds: that the load took.
        said: lines that the server wrote once it was ready.
        exit_code: when it was told to stop; None where it did not.
    """

    before: Gauge
    descriptors: tuple[int, int]
    exchanges: list[Exchange] = field(default_factory=list)
    refusals: list[Record] = field(default_factory=list)
    rejections: list[Record] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    health: list[tuple[float, int]] = field(default_factory=list)
    after: Gauge | None = None
    end: Gauge | None = None
    seconds: float = 0.0
    said: tuple[str, ...] = ()
    exit_code: int | None = None


def soak(plan: Plan, server: ChildServer) -> Found:
    """All of it, to the server's end.

    Raises:
        ServerError: the server is gone, or does not tell its numbers.
    """
    spoken = len(server.said)
    asyncio.run(_load(plan, server, plan.mixture.draw(WARM_CALLS, WARM_SEED + plan.seed), []))
    found = Found(settled(server), (server.descriptors, 0))
    with _asking_health(plan, server) as found.health:
        start = time.perf_counter()
        calls = plan.mixture.draw(plan.requests, plan.seed)
        found.exchanges = asyncio.run(_load(plan, server, calls, found.refusals, found.samples))
        found.seconds = time.perf_counter() - start
        found.after = settled(server)
        found.rejections = asyncio.run(_full(plan, server))
    found.end = settled(server)
    found.descriptors = (found.descriptors[0], _descriptors(server, found.descriptors[0]))
    found.exit_code = server.stop(PATIENCE_S)
    found.said = tuple(server.said)[spoken:]
    return found


def settled(server: ChildServer) -> Gauge:
    """The server's numbers once nothing is under way and all pages are back, or when that has taken too long."""
    end = time.monotonic() + SETTLE_S
    while True:
        gauge = server.metrics()
        back = gauge.idle and gauge.count("kv_pages_free") == gauge.count("kv_pages")
        if back or time.monotonic() > end:
            return gauge
        time.sleep(POLL_S)


def _descriptors(server: ChildServer, before: int) -> int:
    """How many there are once they are back, or when that has taken too long."""
    end = time.monotonic() + SETTLE_S
    while (now := server.descriptors) > before and time.monotonic() < end:
        time.sleep(POLL_S)
    return now


@contextmanager
def _asking_health(plan: Plan, server: ChildServer) -> Iterator[list[tuple[float, int]]]:
    """Fills its list at the end; see :mod:`llmcore_tools.load.health`."""
    where = [server.target.host, str(server.target.port), str(plan.interval)]
    command = [sys.executable, "-m", "llmcore_tools.load.health", *where]
    found: list[tuple[float, int]] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield found
            told, _ = process.communicate(timeout=PATIENCE_S)
            found += [(ms, status) for ms, status in json.loads(told)]
        finally:
            process.kill()


def _api(plan: Plan) -> Api:
    return Api(plan.mixture.model, timeout=plan.timeout)


async def _load(
    plan: Plan,
    server: ChildServer,
    calls: Sequence[Call],
    refusals: list[Record],
    samples: list[Sample] | None = None,
) -> list[Exchange]:
    """Each client takes the next call as soon as it is done with its last one."""
    left, found = iter(calls), list[Exchange]()

    async def client() -> None:
        connections = Client(server.target, _api(plan))
        try:
            for call in left:
                found.append(await _insist(connections, call, refusals))
                share = len(found) / len(calls)
                if samples is not None and (not samples or share - samples[-1].share >= 1 / SAMPLES):
                    samples.append(Sample(share, server.memory))
        finally:
            connections.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(plan.clients, len(calls))):
            group.create_task(client())
    return found


async def _insist(client: Client, call: Call, refusals: list[Record]) -> Exchange:
    """Asks until the queue has room, after the pauses that the server asks for."""
    while True:
        exchange = await _ask(client, call)
        if exchange.record.outcome != FULL:
            return exchange
        refusals.append(exchange.record)
        pause = exchange.record.retry_after
        await asyncio.sleep(min(float(pause), 10.0) if pause.isdecimal() else 1.0)


async def _ask(client: Client, call: Call) -> Exchange:
    tally = Tally(call.hang_up_chunks)
    return Exchange(call, await client.send(call.path, call.data, tally, hang_up_s=call.hang_up_s), tally)


async def _full(plan: Plan, server: ChildServer) -> list[Record]:
    """Holds the queue full with long answers, and records what calls of others come to meanwhile.

    Nothing, where there still is room after a long time.
    """
    client = Client(server.target, _api(plan))
    holding = [asyncio.create_task(_hold(client, plan, count)) for count in _shares(plan.room)]
    one = _endless(plan, 1)
    try:
        end = time.monotonic() + PATIENCE_S
        while (await _first_word(client, one)).outcome != FULL:
            if time.monotonic() > end:
                return []
            await asyncio.sleep(5 * POLL_S)  # it was let in, perhaps before the last of those that hold: they go first
        rejections: list[Record] = []
        left = iter(range(max(20, min(plan.requests // 20, 500))))

        async def ask() -> None:
            others = Client(server.target, _api(plan))
            for _ in left:
                rejections.append(await _first_word(others, one))
            others.close()

        await asyncio.gather(*(ask() for _ in range(min(plan.clients, 8))))
        return rejections
    finally:
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
        client.close()


def _shares(room: int) -> list[int]:
    """Choices of each of the calls that fill the room: some too many, which get in as soon as an answer has ended."""
    each = min(-(-room // MOST_CALLS), MOST_CHOICES)
    return [each] * (-(-room // each) + SPARE_CALLS)


def _endless(plan: Plan, answers: int) -> Call:
    """A call whose answer ends where the context does."""
    tokens = plan.mixture.context - 32
    body = {"model": plan.mixture.model, "prompt": "on and on", "max_tokens": tokens, "ignore_eos": True}
    return Call(TEXT, {**body, "n": answers, "stream": True, "temperature": 1}, answers)


async def _hold(client: Client, plan: Plan, answers: int) -> None:
    while True:
        await _ask(client, _endless(plan, answers))
        await asyncio.sleep(POLL_S)  # refused, if somebody else was sooner


async def _first_word(client: Client, call: Call) -> Record:
    """A call that is let in hangs up soon: it may wait long for its first token."""
    return await client.send(call.path, call.data, Tally(hang_up_after=1), hang_up_s=LET_IN_S)
