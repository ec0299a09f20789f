"""The flags that the suites share, and numbers out of flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmcore.config.arguments import JSON, Flag
from llmcore.errors import ConfigError, near
from llmcore_tools.load.prompts import Span

REPEATS = Flag("--repeats", "samples of each figure (7 by default); shown are median, smallest and largest", "N")
MARKDOWN = Flag("--markdown", "print Markdown instead of text")
PLOT = Flag("--plot", "draw the roofline too; the name ends in .png or .svg", "FILE")
OUTPUT = (MARKDOWN, JSON)
PROMPTS = Flag("--prompts", "prefill: prompt lengths (128,512,2048 by default)", "N,N")
TOKENS = Flag("--tokens", "decode: tokens timed after each depth (64 by default)", "N")
DEPTHS = Flag("--depths", "decode: tokens in the cache before those that are timed (0,512,2048 by default)", "N,N")
BATCHES = Flag("--batches", "batched decode: sequences at a time (8,16,32 by default)", "N,N")
BATCH_DEPTH = Flag("--batch-depth", "batched decode: tokens in the cache of each sequence (128 by default)", "N")
LENGTHS = (PROMPTS, TOKENS, DEPTHS, BATCHES, BATCH_DEPTH)
ONLY = Flag("--only", "measure some of it: names of parts, with commas between", "PART,PART")
LARGEST = 1 << 20


def count(given: Mapping[str, str], flag: Flag, default: int, least: int = 1, most: int = LARGEST) -> int:
    """The number that a flag was given; raises :class:`ConfigError` where it is none, or out of range."""
    return _number(given[flag.name], flag, least, most) if flag.name in given else default


def counts(given: Mapping[str, str], flag: Flag, default: Sequence[int], least: int = 1) -> tuple[int, ...]:
    """The numbers that a flag was given with commas between them, each once, in ascending order."""
    if flag.name not in given:
        return tuple(default)
    return tuple(sorted({_number(part, flag, least) for part in given[flag.name].split(",")}))


def span(given: Mapping[str, str], flag: Flag, default: Span) -> Span:
    """``A..B``, or one length."""
    if flag.name not in given:
        return default
    low, dots, high = given[flag.name].partition("..")
    ends = [low.strip(), (high if dots else low).strip()]
    if not all(end.isdecimal() and int(end) <= LARGEST for end in ends) or not 1 <= int(ends[0]) <= int(ends[1]):
        raise ConfigError(f"{flag.name} is {given[flag.name]!r}", remedy="write A..B with 1 ≤ A ≤ B, or one number")
    return Span(int(ends[0]), int(ends[1]))


def _number(text: str, flag: Flag, least: int, most: int = LARGEST) -> int:
    text = text.strip()
    if not text.isdecimal() or not least <= int(text) <= most:
        several = ", or several with commas between" if "," in flag.metavar else ""
        raise ConfigError(f"{flag.name} is {text!r}", remedy=f"it must be a number from {least} to {most}{several}")
    return int(text)


def parts(given: Mapping[str, str], known: Sequence[str]) -> tuple[str, ...]:
    """What ``--only`` names, or all of ``known``; raises :class:`ConfigError` with near names."""
    if ONLY.name not in given:
        return tuple(known)
    asked = [name.strip() for name in given[ONLY.name].split(",")]
    for name in asked:
        if name not in known:
            raise ConfigError(f"--only: there is no part {name!r}", remedy=near(name, known))
    return tuple(name for name in known if name in asked)


def check_output(given: Mapping[str, str]) -> None:
    """Refuses flags that contradict each other."""
    if MARKDOWN.name in given and JSON.name in given:
        raise ConfigError("--markdown and --json exclude each other", remedy="give one of them")
