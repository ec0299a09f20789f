"""Flags of our own: taken off the command line before Hydra reads the rest, so that values arrive as they were."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from llmcore.errors import ConfigError

HYDRA_FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info"),
)


@dataclass(frozen=True)
class Flag:
    """One flag; ``metavar`` names its value, and a flag without one is a switch."""

    name: str
    help: str
    metavar: str = ""


PROMPT = (
    Flag("--prompt", "the prompt, literally; without it and --prompt-file, standard input", "TEXT"),
    Flag("--prompt-file", "read the prompt from a UTF-8 file (one newline at its end is left out)", "FILE"),
)
CHAT = (
    Flag("--chat", "wrap the prompt in the model's chat template (the default where it has one)"),
    Flag("--raw", "give the model the prompt as it is"),
)
SYSTEM = Flag("--system", "the system message of the chat", "TEXT")
JSON = Flag("--json", "print one JSON object instead of text")
NO_CACHE = Flag(
    "--no-cache",
    "leave nothing behind: fetch and compile into a folder that is removed at the end, keep no packed weights",
)
VERSION = Flag("--version", "print llmcore's version")
EXCLUSIVE = (("--prompt", "--prompt-file"), ("--chat", "--raw"), ("--system", "--raw"))


def extract(argv: Sequence[str], flags: Sequence[Flag]) -> tuple[dict[str, str], list[str]]:
    """Takes ``flags`` off ``argv``; returns the given ones with their values ("" for switches), and the rest.

    A value is the very next argument, whatever it looks like, or what follows ``=``.

    Raises:
        ConfigError: a value is missing or surplus, a flag is given twice, or is neither ours nor Hydra's.
    """
    known = {flag.name: flag for flag in flags}
    given: dict[str, str] = {}
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        flag = known.get(name)
        if flag is None:
            _refuse_unknown(name, known)
            rest.append(argument)
            continue
        if name in given:
            raise ConfigError(f"{name} is given twice", remedy="give it once")
        if flag.metavar and not equals:
            following = next(arguments, None)
            if following is None:
                raise ConfigError(f"{name} needs a value", remedy=f"write {name} {flag.metavar}")
            value = following
        elif equals and not flag.metavar:
            raise ConfigError(f"{name} takes no value, but got {value!r}", remedy=f"write {name} alone")
        given[name] = value
    for one, other in EXCLUSIVE:
        if one in given and other in given:
            raise ConfigError(f"{one} and {other} exclude each other", remedy="give one of them")
    return given, rest


def _refuse_unknown(name: str, known: dict[str, Flag]) -> None:
    """Hydra takes its long flags abbreviated; what is none of them is reported here, with near names."""
    if name.startswith("--") and not any(flag.startswith(name) for flag in HYDRA_FLAGS):
        close = difflib.get_close_matches(name, (*known, *HYDRA_FLAGS), n=2, cutoff=0.7)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(f"there is no flag {name}", remedy=f"{hint}--help and --hydra-help list them all")


def usage(flags: Sequence[Flag]) -> str:
    """The flags as ``--help`` lists them, one a line."""
    heads = [f"{flag.name} {flag.metavar}".strip() for flag in flags]
    width = max(map(len, heads), default=0)
    return "\n".join(f"  {head:<{width}}  {flag.help}" for head, flag in zip(heads, flags, strict=True))
