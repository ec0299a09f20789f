"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from llmcore.weights.progress import TerminalProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_plain_line_each_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        for done in range(0, 98_000_000, 9_800_000):
            progress("downloading x", done, 98_000_000)
        progress("waiting", 0, 0)
    assert stream.getvalue() == "downloading x (98 MB)\nwaiting …\n"


def test_bars_on_a_terminal_are_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with TerminalProgress(stream) as progress:
        progress("downloading x", 0, 0)
        progress("downloading x", 5_000_000, 10_000_000)
        progress("extracting y", 10_000_000, 10_000_000)
    shown = stream.getvalue()
    assert "downloading x" in shown and "5.0/10.0 MB" in shown and "extracting y" in shown
    assert shown.endswith("\x1b[2K")  # the last thing it does is to clear the lines


def test_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    TerminalProgress()("loading", 0, 0)
    assert capsys.readouterr() == ("", "loading …\n")
