"""How every command ends: errors in a line with their remedy, quiet interrupts, exit codes; and plain tables."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llmcore.errors import LlmcoreError

REFUSED = 2  # what was asked for cannot be done as asked
INTERRUPTED = 130  # as shells report SIGINT
BROKEN_PIPE = 141  # and SIGPIPE


def guarded(action: Callable[[], int]) -> int:
    """Runs a command; returns its exit code, whatever happens on the way. Bugs keep their traceback."""
    if sys.stdout is None:  # closed before Python began
        print("error: cannot write to stdout: it is closed", file=sys.stderr)
        return REFUSED
    with plain_warnings(), lenient_stdout(), rare_collections():
        try:
            return _reported(action)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            _discard_stdout()
            return BROKEN_PIPE
        except OSError as error:
            if not _is_stdouts(error):
                raise
            _discard_stdout()
            print(f"error: cannot write to stdout: {error.strerror}", file=sys.stderr)
            return REFUSED


def _reported(action: Callable[[], int]) -> int:
    try:
        code = action()
        sys.stdout.flush()
        return code
    except LlmcoreError as error:
        return report(error)


def report(error: LlmcoreError) -> int:
    """Prints an error on stderr, with its traceback only where ``LLMCORE_TRACEBACK=1`` asks for it."""
    sys.stdout.flush()
    if os.environ.get("LLMCORE_TRACEBACK") == "1":
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)
    return REFUSED


@contextlib.contextmanager
def lenient_stdout() -> Iterator[None]:
    """What the encoding of stdout lacks becomes "?", unless ``PYTHONIOENCODING`` chose something else.

    stderr needs no such care: Python escapes what it cannot encode.
    """
    out: Any = sys.stdout
    before = getattr(out, "errors", None)
    if before not in ("strict", "surrogateescape") or not hasattr(out, "reconfigure"):
        yield
        return
    out.reconfigure(errors="replace")
    try:
        yield
    finally:
        out.reconfigure(errors=before)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Loading a model makes some 400,000 objects, nearly all of which stay: at its usual pace, Python's collector would
    look through them for garbage for 0.1 s."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings in one line each: where in our code they arose says nothing to the user."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {str(message).strip()}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _is_stdouts(error: OSError) -> bool:
    """Whether ``error`` came from writing to stdout: another attempt then fails in the same way."""
    try:
        print(flush=True)
    except OSError as again:
        return again.errno == error.errno
    return False


def _discard_stdout() -> None:
    """Nobody reads it any more: what is still buffered must not fail when Python ends."""
    with contextlib.suppress(OSError, ValueError):  # no file descriptor behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a head in columns as wide as they need to be; the last column is not padded."""
    texts = [[*map(str, row)] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    widths[-1] = 0
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in texts]
    return "\n".join([lines[0], "  ".join("─" * (width or len(head[-1])) for width in widths), *lines[1:]])


def number(value: float) -> str:
    """A number with thin groups of three digits."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
