"""A bell that a thread rings for an event loop, and goes on at once.

asyncio's own, ``call_soon_threadsafe``, writes to a socket, for which Python lets go of the GIL. The loop's thread,
just woken, takes it, and who rang waits until that has nothing more to do: between two steps of an engine that is time
in which nothing is computed. Here the GIL is kept, and the loop's thread runs while the engine's next step does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

ONE = struct.pack("Q", 1)  # what a ring adds to an eventfd's counter


class Doorbell:
    """Wakes one event loop. Without Linux's eventfd it is ``call_soon_threadsafe`` after all."""

    def __init__(self, answer: Callable[[], None]) -> None:
        """Hangs it up in the running loop, which calls ``answer`` after one ring or several."""
        self._file = -1
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        with suppress(AttributeError, OSError):  # no Linux, or one that does not let us
            self._file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if self._file >= 0:
            try:
                self._loop.add_reader(self._file, self._rung)
            except NotImplementedError:  # a loop that watches no files
                self._forget()

    def ring(self) -> None:
        """From any thread, but not while another one closes it; nothing happens if the loop has ended."""
        if self._file >= 0:
            _write()(self._file, ONE, len(ONE))
        else:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._answer)

    def close(self) -> None:
        """Takes it down, from any thread; rings that were not answered are answered first."""
        if self._loop.is_running():
            with suppress(RuntimeError):  # it has ended meanwhile
                self._loop.call_soon_threadsafe(self._take_down)
        elif self._loop.is_closed():
            self._forget()
        else:
            self._take_down()

    def __del__(self) -> None:
        """Its loop has been closed without it being taken down."""
        self._forget()

    def _rung(self) -> None:
        os.eventfd_read(self._file)
        self._answer()

    def _take_down(self) -> None:
        if self._file >= 0:
            self._loop.remove_reader(self._file)
        self._forget()
        self._answer()

    def _forget(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


@cache
def _write() -> Any:
    """The C library's ``write``, called with the GIL."""
    function = ctypes.PyDLL(None).write
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    function.restype = ctypes.c_ssize_t
    return function
