"""Tokens to text as they come, and the strings that end an answer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from llmcore.errors import RequestError
from llmcore.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns one sequence of ids into text, piece by piece.

    All pieces together are what :meth:`Tokenizer.decode` makes of all ids at once, for any ids: bytes of an unfinished
    character are held back until they are complete, or known never to be.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, *, continues: bool = False) -> None:
        """Args: ``continues`` keeps a leading space: the text goes on after another, and does not begin one."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._held = b""
        self._strip = tokenizer.strips_space and not continues

    def push(self, token: int) -> str:
        """The text that is certain after ``token``."""
        if not (self._held or self._strip):
            text = self._tokenizer.token_text(token)
            if text is not None:
                return text
        if token in self._skipped:
            return ""
        return self._decode(self._tokenizer.token_bytes(token), last=False)

    def finish(self) -> str:
        """What was held back: U+FFFD for a character that never became complete."""
        return self._decode(b"", last=True)

    def _decode(self, new: bytes, *, last: bool) -> str:
        data = self._held + new
        text, used = codecs.utf_8_decode(data, "replace", last)
        self._held = data[used:]
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class StopStrings:
    """Ends a text where one of several strings appears, and never shows a part of one.

    The text ends as soon as any string is complete, the longest of those that are complete at once; so it does not
    matter in which pieces the text arrives.

    Attributes:
        stopped: whether the end was found.
        matched: the string that ended the text.
        position: how many characters of the text were let through.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises :class:`RequestError` where a stop string is empty."""
        if any(not stop for stop in stops):
            raise RequestError("a stop string is empty", field="stop", remedy="leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        self.matched: str | None = None
        self.position = 0

    def push(self, text: str) -> str:
        """The part of the text so far that is new and cannot belong to a stop string."""
        if self.stopped or not text:
            return ""
        if not self._stops:
            self.position += len(text)
            return text
        self._held += text
        found = self._earliest()
        if found is not None:
            start, self.matched = found
            self.stopped = True
            return self._let_through(start)
        return self._let_through(len(self._held) - self._possible())

    def finish(self) -> str:
        """What was held back, for no more text comes."""
        return "" if self.stopped else self._let_through(len(self._held))

    def _let_through(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self.position += count
        return text

    def _earliest(self) -> tuple[int, str] | None:
        """Where the stop string begins that is complete first, and which it is."""
        places = ((self._held.find(stop), stop) for stop in self._stops)
        complete = [(start + len(stop), start, stop) for start, stop in places if start >= 0]
        return min(complete)[1:] if complete else None

    def _possible(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        tails = (self._held[-count:] for count in range(longest, 0, -1))
        return next((len(tail) for tail in tails if any(stop.startswith(tail) for stop in self._stops)), 0)
