"""A load on one server, from the first look at it to the records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from llmcore.errors import ConfigError, LlmcoreError
from llmcore_tools.load.client import Api, Client
from llmcore_tools.load.drive import drive
from llmcore_tools.load.http import Target
from llmcore_tools.load.metrics import Summary, summarize
from llmcore_tools.load.plan import TOKENS, WORDS, Plan
from llmcore_tools.load.prompts import Ask, PerWord, RandomWords, text, with_hang_ups
from llmcore_tools.load.records import OK, Record

PROBES = (16, 144)  # words, to see how many tokens a server makes of them
WARM_SEED = 1 << 30  # beyond the seeds of runs


class LoadError(LlmcoreError):
    """A server cannot be measured: it is not there, or does not answer."""


@dataclass(frozen=True)
class Server:
    """A server as it was found; ``per_word`` where prompts are measured in tokens."""

    target: Target
    api: Api
    per_word: PerWord | None = None


@dataclass(frozen=True)
class Run:
    """One run of a load on a server."""

    server: Server
    records: Sequence[Record]
    summary: Summary
    connections: int


def look(plan: Plan, target: Target) -> Server:
    """Finds out the model's name, and what a prompt's words cost where that matters.

    Raises:
        LoadError: nobody answers, or the server does not count tokens where it must.
    """
    return asyncio.run(_look(plan, target))


async def _look(plan: Plan, target: Target) -> Server:
    api = plan.api
    client = Client(target, replace(api, timeout=min(api.timeout, 10.0)))
    try:
        if not api.model:
            api = replace(api, model=_first(await client.get("/v1/models"), target))
        client.api = replace(api, stream=False)
        per_word = await _per_word(client) if plan.prompt_tokens else None
    except OSError as error:
        raise LoadError(f"{target}: {error}", remedy="start the server, or give another --url") from error
    finally:
        client.close()
    return Server(target, api, per_word)


def _first(listed: Any, target: Target) -> str:
    try:
        name = listed["data"][0]["id"]
    except (TypeError, KeyError, IndexError):
        name = None
    if not isinstance(name, str):
        raise ConfigError(f"{target} lists no models", remedy="name one: --model NAME")
    return name


async def _per_word(client: Client) -> PerWord:
    """A server's own count of the tokens of two prompts, as a line."""
    counts = []
    for words in PROBES:
        record = await client.ask(Ask(text(Random(words), words), 1))
        if record.outcome != OK or record.prompt_tokens is None:
            why = f"{record.outcome}: {record.detail}" if record.outcome != OK else "its answers have no usage"
            raise LoadError(
                f"{client.target} does not say how many tokens a prompt has: {why}", remedy=f"give {WORDS.name} A..B"
            )
        counts.append(record.prompt_tokens)
    each = (counts[1] - counts[0]) / (PROBES[1] - PROBES[0])
    if each <= 0:
        raise LoadError(f"{client.target} counts {counts} tokens for {PROBES} words", remedy=f"give {WORDS.name} A..B")
    return PerWord(each, counts[0] - each * PROBES[0])


def load(plan: Plan, server: Server, number: int = 0, *, warm: bool = True) -> Run:
    """The load on one server; ``number``: which of several runs, each with prompts of its own.

    Raises:
        LoadError: not one of the requests to warm up was answered.
    """
    return asyncio.run(_load(plan, server, number, warm=warm))


async def _load(plan: Plan, server: Server, number: int, *, warm: bool) -> Run:
    dataset, seed = plan.dataset, plan.seed + number
    if isinstance(dataset, RandomWords) and server.per_word is not None:
        dataset = replace(dataset, per_word=server.per_word)
        _check_tokens(dataset, server.per_word)
    client = Client(server.target, server.api)
    try:
        if warm and plan.warmup:
            _check_warm(server, await drive(client, dataset.draw(plan.warmup, WARM_SEED + seed), plan.pace, seed))
        asks = with_hang_ups(dataset.draw(plan.requests, seed), plan.hang_up, seed)
        before = time.process_time()
        records = await drive(client, asks, plan.pace, seed)
        busy = time.process_time() - before
    finally:
        client.close()
    return Run(server, records, summarize(records, plan.slo, busy), client.opened)


def _check_tokens(dataset: RandomWords, per_word: PerWord) -> None:
    least = per_word.fixed + per_word.each
    if dataset.prompt.low < least:
        raise ConfigError(
            f"{TOKENS.name} {dataset.prompt}: a prompt of one word has {least:.0f} tokens here",
            remedy="ask for longer ones, or give --endpoint completions",
        )


def _check_warm(server: Server, records: Sequence[Record]) -> None:
    """A load that nobody answers is not worth sending."""
    if any(record.outcome == OK for record in records):
        return
    first = records[0]
    raise LoadError(
        f"{server.target} answered none of {len(records)} requests to warm up: {first.outcome}: {first.detail}",
        remedy="see to the server, or give --warmup 0 to measure it all the same",
    )
