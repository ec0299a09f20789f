"""What is asked: random words of mixed lengths, or the lines of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from llmcore.errors import ConfigError

TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work night point home water room mother area money story fact month lot
right study book eye job word business issue side kind head house service friend father power hour game line end member
law car city name team minute idea body back parent face level office door health person art war history party result
change morning reason research girl guy moment air teacher force education foot boy age policy music market sense nation
"""
WORDS = tuple(TEXT.split())  # frequent ones, most of them one token with the space before them


@dataclass(frozen=True)
class Span:
    """A length drawn between two, both included."""

    low: int
    high: int

    def draw(self, rng: Random) -> int:
        """One length."""
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" if self.low < self.high else str(self.low)


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        content: a text, or a conversation's messages.
        hang_up_after: chunks with text after which we break off; None for never.
    """

    content: str | Sequence[Any]
    max_tokens: int
    hang_up_after: int | None = None


@dataclass(frozen=True)
class PerWord:
    """How many tokens a server makes of a prompt: ``each`` for a word, ``fixed`` for all around (a chat's template)."""

    each: float
    fixed: float

    def words(self, tokens: int) -> int:
        """So many words that the prompt has about ``tokens``; one at least."""
        return max(1, round((tokens - self.fixed) / self.each))


def text(rng: Random, words: int) -> str:
    """So many words, drawn."""
    return " ".join(rng.choices(WORDS, k=words))


@dataclass(frozen=True)
class RandomWords:
    """Prompts of drawn words.

    Attributes:
        prompt: in words, or, with ``per_word``, in tokens.
        shared: words with which every prompt begins, beside its own.
        seed: draws the shared ones.
    """

    prompt: Span
    output: Span
    shared: int = 0
    per_word: PerWord | None = None
    seed: int = 0

    def draw(self, count: int, seed: int) -> list[Ask]:
        """``count`` requests: the same for the same seed."""
        prefix = text(Random(f"{self.seed} shared"), self.shared)
        rng = Random(f"{seed} own")
        found = []
        for _ in range(count):
            length = self.prompt.draw(rng)
            words = text(rng, self.per_word.words(length) if self.per_word else length)
            found.append(Ask(f"{prefix} {words}" if prefix else words, self.output.draw(rng)))
        return found


@dataclass(frozen=True)
class Lines:
    """The lines of a file, over and over; what says no length has a drawn one."""

    lines: Sequence[tuple[str | Sequence[Any], int | None]]
    output: Span

    def draw(self, count: int, seed: int) -> list[Ask]:
        """``count`` requests, in the file's order."""
        rng = Random(f"{seed} lengths")
        taken = [self.lines[index % len(self.lines)] for index in range(count)]
        return [Ask(content, tokens or self.output.draw(rng)) for content, tokens in taken]


Dataset = RandomWords | Lines


def read_lines(name: str, output: Span, *, chat: bool) -> Lines:
    """A file of JSON objects, one a line: ``prompt`` or ``messages``, perhaps ``max_tokens``.

    Raises:
        ConfigError: the file cannot be read, or a line is something else; it names the line.
    """
    path = Path(name).expanduser()
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {name}: {error}", remedy="name a UTF-8 file of JSON lines") from error
    rows = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not rows:
        raise ConfigError(f"--prompts {name}: it is empty", remedy='write {"prompt": "…", "max_tokens": 16} a line')
    return Lines([_line(f"--prompts {name}, line {number}", line, chat=chat) for number, line in rows], output)


def _line(where: str, line: str, *, chat: bool) -> tuple[str | Sequence[Any], int | None]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: no JSON: {error}", remedy="write one object a line") from error
    keys = {"prompt", "messages"} & set(found) if isinstance(found, dict) else set()
    if len(keys) != 1:
        raise ConfigError(f"{where}: neither prompt nor messages, or both", remedy="give one of them")
    content = found[keys.pop()]
    wanted = str if "prompt" in found else list
    if not isinstance(content, wanted) or not content:
        raise ConfigError(f"{where}: an empty prompt, or one of the wrong type", remedy="a text, or a list of messages")
    if isinstance(content, list) and not chat:
        raise ConfigError(f"{where}: messages are of chats", remedy="leave out --endpoint completions")
    tokens = found.get("max_tokens")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise ConfigError(f"{where}: max_tokens is {tokens!r}", remedy="it must be a number from 1")
    return content, tokens


def with_hang_ups(asks: Sequence[Ask], share: float, seed: int) -> list[Ask]:
    """Breaks off ``share`` of them, each after some chunk of its first half."""
    rng = Random(f"{seed} hang up")
    chosen = set(rng.sample(range(len(asks)), round(share * len(asks))))
    return [
        Ask(ask.content, ask.max_tokens, rng.randint(1, max(1, ask.max_tokens // 2))) if index in chosen else ask
        for index, ask in enumerate(asks)
    ]
