"""What the flags of ``llmcore bench serve`` ask for, checked before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from llmcore.config.arguments import Flag
from llmcore.errors import ConfigError, near
from llmcore_tools.bench import options
from llmcore_tools.load.client import Api
from llmcore_tools.load.drive import Pace
from llmcore_tools.load.http import Target
from llmcore_tools.load.metrics import Slo
from llmcore_tools.load.prompts import Dataset, Lines, RandomWords, Span, read_lines

URL = Flag("--url", "the server: http://HOST:PORT", "URL")
AGAINST = Flag("--against", "another server: the same load on both in turns, and the ratios", "URL")
MODEL = Flag("--model", "the model's name there (the first that the server lists by default)", "NAME")
KEY = Flag("--api-key-env", "the environment variable that holds the API key", "VAR")
REQUESTS = Flag("--requests", "how many (64 by default; with a file, as many as it has lines)", "N")
CONCURRENCY = Flag("--concurrency", "requests at a time (8 by default)", "N")
RATE = Flag("--rate", "or requests per second, which come by chance (Poisson), however many are under way", "R")
WARMUP = Flag("--warmup", "requests before those that count (as many as at a time, at most 8, by default)", "N")
DATASET = Flag("--dataset", "random (the default): words of mixed lengths; file: --prompts", "random|file")
PROMPTS = Flag("--prompts", 'JSON lines: {"prompt": …} or {"messages": …}, perhaps with "max_tokens"', "FILE")
WORDS = Flag("--prompt-words", "random: words of a prompt (32..128 by default)", "A..B")
TOKENS = Flag("--prompt-tokens", "random: its tokens instead, as the server counts them in two requests before", "A..B")
OUTPUT = Flag("--output-tokens", "tokens of an answer, at most (16..128 by default)", "A..B")
SHARED = Flag("--shared-prefix", "random: words with which all prompts begin", "WORDS")
SEED = Flag("--seed", "of lengths, words and arrivals (0 by default)", "N")
ENDPOINT = Flag("--endpoint", "chat (the default) or completions", "NAME")
STREAM = Flag("--stream", "on (the default) or off", "on|off")
IGNORE_EOS = Flag("--ignore-eos", "ask that end tokens end nothing (llmcore, llama.cpp, vLLM), so that lengths hold")
DISCONNECT = Flag(
    "--disconnect", "hang up on this share of the requests, amid their answers (0 by default)", "FRACTION"
)
TIMEOUT = Flag("--timeout", "seconds that one request may take (600 by default)", "S")
SLO_TTFT = Flag("--slo-ttft", "goodput: milliseconds to the first token that a good answer may take", "MS")
SLO_TPOT = Flag("--slo-tpot", "goodput: milliseconds per token after it", "MS")
JSON_FILE = Flag("--json", "write everything, each request too, to a file", "FILE")
PLOT = Flag("--plot", "draw latencies over time and their distribution; the name ends in .png or .svg", "FILE")
REPEATS = Flag("--repeats", "with --against: runs of each (3 by default)", "K")
FLAGS = (
    *(URL, AGAINST, REPEATS, MODEL, KEY, REQUESTS, CONCURRENCY, RATE, WARMUP, TIMEOUT, DATASET, PROMPTS, WORDS),
    *(TOKENS, OUTPUT, SHARED, SEED, ENDPOINT, STREAM, IGNORE_EOS, DISCONNECT, SLO_TTFT, SLO_TPOT),
    *(options.MARKDOWN, JSON_FILE, PLOT),
)
EXCLUSIVE = ((CONCURRENCY, RATE), (WORDS, TOKENS), (AGAINST, PLOT))


@dataclass(frozen=True)
class Plan:
    """One load.

    Attributes:
        api: how requests are put; the model is the one asked for, perhaps none yet.
        prompt_tokens: the prompts' lengths in tokens, where these were asked for.
        hang_up: share of the requests that are broken off.
    """

    target: Target
    against: Target | None
    repeats: int
    api: Api
    dataset: Dataset
    prompt_tokens: bool
    requests: int
    warmup: int
    pace: Pace
    seed: int
    hang_up: float
    slo: Slo


def plan(given: Mapping[str, str]) -> Plan:
    """From the flags; raises :class:`ConfigError`."""
    if URL.name not in given:
        raise ConfigError("which server?", remedy=f"write {URL.name} http://HOST:PORT")
    for one, other in EXCLUSIVE:
        if one.name in given and other.name in given:
            raise ConfigError(f"{one.name} and {other.name} exclude each other", remedy="give one of them")
    if REPEATS.name in given and AGAINST.name not in given:
        raise ConfigError(f"{REPEATS.name} is of {AGAINST.name}", remedy=f"leave it out, or give {AGAINST.name} URL")
    api = _api(given)
    dataset = _dataset(given, chat=api.chat)
    lines = len(dataset.lines) if isinstance(dataset, Lines) else 64
    rate = real(given, RATE, 1e-6, 1e6) if RATE.name in given else None
    pace = Pace(options.count(given, CONCURRENCY, 8), rate)
    against = given.get(AGAINST.name)
    return Plan(
        target=Target.of(given[URL.name], URL.name),
        against=Target.of(against, AGAINST.name) if against is not None else None,
        repeats=options.count(given, REPEATS, 3),
        api=api,
        dataset=dataset,
        prompt_tokens=TOKENS.name in given,
        requests=options.count(given, REQUESTS, lines),
        warmup=options.count(given, WARMUP, min(8, pace.concurrency), least=0),
        pace=pace,
        seed=options.count(given, SEED, 0, least=0),
        hang_up=_hang_up(given, stream=api.stream),
        slo=_slo(given, stream=api.stream),
    )


def _api(given: Mapping[str, str]) -> Api:
    endpoint = _choice(given, ENDPOINT, ("chat", "completions"))
    variable = given.get(KEY.name)
    if variable is not None and not os.environ.get(variable):
        raise ConfigError(f"{KEY.name}: {variable} is not set", remedy=f"export {variable}=…")
    return Api(
        model=given.get(MODEL.name, ""),
        chat=endpoint == "chat",
        stream=_choice(given, STREAM, ("on", "off")) == "on",
        ignore_eos=IGNORE_EOS.name in given,
        key=os.environ[variable] if variable is not None else "",
        timeout=real(given, TIMEOUT, 0.001, 1e6) if TIMEOUT.name in given else 600.0,
    )


def _dataset(given: Mapping[str, str], *, chat: bool) -> Dataset:
    output = options.span(given, OUTPUT, Span(16, 128))
    kind = _choice(given, DATASET, ("random", "file")) if DATASET.name in given or PROMPTS.name not in given else "file"
    if kind == "file":
        for flag in (WORDS, TOKENS, SHARED):
            if flag.name in given:
                raise ConfigError(f"{flag.name} is of random prompts", remedy="leave it out, or the file")
        if PROMPTS.name not in given:
            raise ConfigError("which file?", remedy=f"write {PROMPTS.name} {PROMPTS.metavar}")
        return read_lines(given[PROMPTS.name], output, chat=chat)
    if PROMPTS.name in given:
        raise ConfigError(f"{PROMPTS.name} is not of random prompts", remedy=f"leave it out, or {DATASET.name} random")
    prompt = options.span(given, TOKENS if TOKENS.name in given else WORDS, Span(32, 128))
    shared = options.count(given, SHARED, 0, least=0)
    return RandomWords(prompt, output, shared, seed=options.count(given, SEED, 0, least=0))


def _slo(given: Mapping[str, str], *, stream: bool) -> Slo:
    limits = [real(given, flag, 0.0, 1e9) / 1e3 if flag.name in given else None for flag in (SLO_TTFT, SLO_TPOT)]
    if limits != [None, None] and not stream:
        raise ConfigError("without a stream there is no first token to see", remedy="leave out the limits, or --stream")
    return Slo(*limits)


def _hang_up(given: Mapping[str, str], *, stream: bool) -> float:
    share = real(given, DISCONNECT, 0.0, 1.0) if DISCONNECT.name in given else 0.0
    if share and not stream:
        raise ConfigError(f"{DISCONNECT.name} needs a stream to hang up on", remedy=f"leave out {STREAM.name} off")
    return share


def real(given: Mapping[str, str], flag: Flag, low: float, high: float) -> float:
    """The number that ``flag`` was given; raises :class:`ConfigError`."""
    try:
        value = float(given[flag.name])
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ConfigError(f"{flag.name} is {given[flag.name]!r}", remedy=f"it must be from {low:g} to {high:g}")
    return value


def _choice(given: Mapping[str, str], flag: Flag, known: tuple[str, ...]) -> str:
    """One of ``known``, of which the first is the default."""
    value = given.get(flag.name, known[0])
    if value not in known:
        raise ConfigError(f"{flag.name} is {value!r}", remedy=near(value, known))
    return value
