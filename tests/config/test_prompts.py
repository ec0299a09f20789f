"""The prompt arrives as it was given, from each of its three sources."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from llmcore.config.prompts import read_prompt, read_system
from llmcore.errors import ConfigError


class Terminal(io.StringIO):
    """A standard input that nobody has piped anything into."""

    def isatty(self) -> bool:
        return True


def piped(raw: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(raw), encoding="ascii")  # its encoding must not matter


def test_the_flag_wins_over_standard_input() -> None:
    assert read_prompt({"--prompt": " a\n"}, piped(b"other")) == " a\n"


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"a", "a"), (b"a\n", "a"), (b"a\n\n", "a\n"), (b"a\r\n", "a"), (b"a\r", "a\r"), ("é мир\n".encode(), "é мир")],
)
def test_files_and_pipes_lose_one_newline(tmp_path: Path, raw: bytes, text: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(raw)
    assert read_prompt({"--prompt-file": str(file)}, None) == text
    assert read_prompt({}, piped(raw)) == text
    assert read_prompt({}, io.StringIO(raw.decode())) == text


@pytest.mark.parametrize("stdin", [None, Terminal("never read")])
def test_without_any_it_says_how(stdin: io.StringIO | None) -> None:
    with pytest.raises(ConfigError, match="--prompt TEXT"):
        read_prompt({}, stdin)


@pytest.mark.parametrize("raw", [b"", b"\n"])
def test_empty_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError, match="empty"):
        read_prompt({}, piped(raw))


def test_a_byte_order_mark_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfhi \xef\xbb\xbf\n")
    assert read_prompt({"--prompt-file": str(file)}, None) == "hi \ufeff"


def test_bytes_that_are_not_utf8_are_placed(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"abc\xff")
    with pytest.raises(ConfigError, match=r"prompt\.txt is not UTF-8 at byte 3"):
        read_prompt({"--prompt-file": str(file)}, None)
    with pytest.raises(ConfigError, match="standard input is not UTF-8 at byte 0"):
        read_prompt({}, piped(b"\xff"))
    lone = b"ab\xff".decode("utf-8", "surrogateescape")  # as Python hands over such an argument
    with pytest.raises(ConfigError, match="--prompt is not UTF-8 at character 2"):
        read_prompt({"--prompt": lone}, None)
    with pytest.raises(ConfigError, match="--system is not UTF-8"):
        read_system({"--system": lone})


@pytest.mark.parametrize("name", ["missing.txt", ".", "nul\0"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--prompt-file"):
        read_prompt({"--prompt-file": f"{tmp_path}/{name}"}, sys.stdin)


def test_system_message() -> None:
    assert read_system({"--system": " be brief "}) == " be brief "
    assert read_system({}) is None
