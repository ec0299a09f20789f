"""How commands end: one line for an error, quiet interrupts and pipes, the exit codes of shells."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcore.cli.console import BROKEN_PIPE, INTERRUPTED, REFUSED, guarded, number, report, table
from llmcore.errors import ConfigError, LlmcoreError


def raising(error: BaseException) -> int:
    raise error


def test_an_error_is_two_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: raising(ConfigError("threads is -1", remedy="0 takes all"))) == REFUSED
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: threads is -1\n  → 0 takes all\n")


def test_a_traceback_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCORE_TRACEBACK", "1")
    guarded(lambda: raising(ConfigError("threads is -1")))
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), INTERRUPTED), (BrokenPipeError(), BROKEN_PIPE)])
def test_quiet_ends(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: raising(error)) == code
    assert capsys.readouterr() == ("", "")


def test_stdout_that_is_closed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert guarded(lambda: 0) == REFUSED
    assert capsys.readouterr().err == "error: cannot write to stdout: it is closed\n"


def writes() -> int:
    print("x", flush=True)
    return 0


def much() -> int:
    sys.stdout.write("x" * 100_000)  # goes past the buffers
    return 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
@pytest.mark.parametrize(
    "action", [writes, lambda: print("x") or 0, lambda: print("x") or report(ConfigError("no")), much]
)
def test_stdout_that_is_full(
    action: Callable[[], int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert guarded(action) == REFUSED
    assert capsys.readouterr().err == f"error: cannot write to stdout: {os.strerror(errno.ENOSPC)}\n"


def test_another_file_that_cannot_be_written_is_a_bug() -> None:
    with pytest.raises(OSError, match="full"):
        guarded(lambda: raising(OSError(errno.ENOSPC, "full")))


@pytest.mark.parametrize(("errors", "shown"), [("strict", b"? ok"), ("backslashreplace", b"\\U0001f600 ok")])
def test_what_stdout_cannot_encode(errors: str, shown: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors=errors)
    monkeypatch.setattr(sys, "stdout", out)
    assert guarded(lambda: print("\U0001f600 ok", end="") or 0) == 0
    assert (out.buffer.getvalue(), out.errors) == (shown, errors)


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: raising(ZeroDivisionError()))


def test_warnings_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown = warnings.showwarning

    def warn() -> int:
        warnings.simplefilter("always")
        warnings.warn("plugin 'x' is ignored", UserWarning, stacklevel=1)
        return 0

    assert guarded(warn) == 0
    assert capsys.readouterr().err == "warning: plugin 'x' is ignored\n"
    assert warnings.showwarning is shown


def test_table() -> None:
    assert table(("a", "long head"), [("xyz", 1), ("", "é")]).splitlines() == [
        "a    long head",
        "───  ─────────",
        "xyz  1",
        "     é",
    ]
    assert table(("a",), []).splitlines() == ["a", "─"]


@pytest.mark.parametrize(("value", "text"), [(1234567, "1,234,567"), (2.5, "2.50"), (3.0, "3")])
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_stdout_is_still_ours_after_a_broken_pipe() -> None:
    guarded(lambda: raising(BrokenPipeError()))
    assert sys.stdout.writable()


def test_garbage_is_collected_more_rarely_while_a_command_runs() -> None:
    before, seen = gc.get_threshold(), []

    def action() -> int:
        seen.append(gc.get_threshold())
        raise LlmcoreError("no")

    assert guarded(action) == 2
    assert seen[0][0] > before[0] and gc.get_threshold() == before
