"""The prompt, from wherever it comes, exactly as it was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from llmcore.errors import ConfigError

REMEDY = "give --prompt TEXT, --prompt-file FILE, or text on standard input"


def read_prompt(given: Mapping[str, str], stdin: IO[Any] | None) -> str:
    """The prompt that the flags name, or what standard input holds where it is no terminal.

    Files lose one newline at their end: editors and ``echo`` add it.

    Raises:
        ConfigError: there is none, it is empty, it is not UTF-8, or its file cannot be read.
    """
    if "--prompt" in given:
        text = _argument("--prompt", given["--prompt"])
    elif "--prompt-file" in given:
        text = _decoded(_read(given["--prompt-file"]), given["--prompt-file"])
    elif stdin is not None and not stdin.isatty():
        raw = getattr(stdin, "buffer", stdin).read()
        text = _decoded(raw if isinstance(raw, bytes) else raw.encode("utf-8"), "standard input")
    else:
        raise ConfigError("there is no prompt", remedy=REMEDY)
    if not text:
        raise ConfigError("the prompt is empty", remedy=REMEDY)
    return text


def read_system(given: Mapping[str, str]) -> str | None:
    """The text of ``--system``; raises :class:`ConfigError` where it is not UTF-8."""
    return _argument("--system", given["--system"]) if "--system" in given else None


def _argument(name: str, value: str) -> str:
    """Python hides bytes that are not UTF-8 in lone surrogates; no tokenizer takes those."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name} is not UTF-8 at character {error.start}", remedy="encode it as UTF-8") from error
    return value


def _read(name: str) -> bytes:
    try:
        return Path(name).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~nobody
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--prompt-file {name}: {reason}", remedy="name a file that can be read") from error


def _decoded(raw: bytes, place: str) -> str:
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")  # the byte order mark that some editors put first
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} is not UTF-8 at byte {error.start}", remedy="convert it to UTF-8") from error
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")
