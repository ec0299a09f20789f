"""How commands end: one line for an error, quiet interrupts and pipes, the exit codes of shells."""

from __future__ import annotations

import sys
import warnings

import pytest

from llmcore.cli.console import BROKEN_PIPE, INTERRUPTED, REFUSED, guarded, number, table
from llmcore.errors import ConfigError


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
