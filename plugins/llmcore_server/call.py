"""A call for answers that was admitted, and what is under way for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmcore.async_llm import AsyncStream
from llmcore.engine.request import Delta
from llmcore.errors import GenerationError
from llmcore_server.answers import Usage, Writer
from llmcore_server.metrics import Clock
from llmcore_server.tools import Scanner


@dataclass
class Call:
    """A call that was admitted.

    Attributes:
        streams: one for every answer, prompt by prompt.
        echoes: the text before each.
    """

    writer: Writer
    usage: Usage
    streams: list[AsyncStream]
    echoes: list[str]
    clocks: list[Clock]
    scanner: Callable[[], Scanner] | None = None  # of calls of functions, where the model was told of some

    def close(self) -> None:
        """Aborts what has not ended."""
        for stream in self.streams:
            stream.close()


def not_aborted(delta: Delta) -> None:
    """Raises :class:`GenerationError` where a delta that somebody reads says that its answer was aborted."""
    if delta.finish_reason == "abort":  # nobody who still reads has asked for it
        raise GenerationError("the server is shutting down")
