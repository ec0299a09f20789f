"""Requests in time: so many at once, or as many per second as come by chance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from llmcore_tools.load.client import Client
from llmcore_tools.load.prompts import Ask
from llmcore_tools.load.records import Record


@dataclass(frozen=True)
class Pace:
    """``concurrency`` requests at any time (closed loop), or ``rate`` a second by a Poisson process (open loop)."""

    concurrency: int = 8
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is None:
            return f"{self.concurrency} at a time"
        return f"{self.rate:g} a second, Poisson"

    def dues(self, count: int, seed: int) -> list[float]:
        """When each request of an open loop is due, in seconds from the first."""
        assert self.rate is not None
        rng = Random(f"{seed} arrivals")
        gaps = (rng.expovariate(self.rate) for _ in range(count - 1))
        return list(accumulate(gaps, initial=0.0))


async def drive(client: Client, asks: Sequence[Ask], pace: Pace, seed: int) -> list[Record]:
    """Sends every request in its time; the records are in the order of ``asks``."""
    if pace.rate is None:
        return await _closed(client, asks, pace.concurrency)
    start = time.perf_counter()
    return await _open(client, asks, [start + due for due in pace.dues(len(asks), seed)])


async def _closed(client: Client, asks: Sequence[Ask], concurrency: int) -> list[Record]:
    found: dict[int, Record] = {}
    left: Iterator[tuple[int, Ask]] = iter(enumerate(asks))

    async def worker() -> None:
        for index, ask in left:
            found[index] = await client.ask(ask)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(asks))):
            group.create_task(worker())
    return [found[index] for index in range(len(asks))]


async def _open(client: Client, asks: Sequence[Ask], dues: Sequence[float]) -> list[Record]:
    tasks: list[asyncio.Task[Record]] = []
    async with asyncio.TaskGroup() as group:
        for ask, due in zip(asks, dues, strict=True):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(group.create_task(client.ask(ask, due)))
    return [task.result() for task in tasks]
