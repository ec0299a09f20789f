"""One request's deltas as they come, for a caller who drives the engine while waiting."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from llmcore.engine.engine import Engine
from llmcore.engine.request import Delta, Request


class Stream(Iterator[Delta]):
    """Deltas of one request.

    Several streams of one engine may be read in turn, or by several threads: whoever has nothing to read runs a step,
    and what it adds to the others is kept for them. A stream that is closed or dropped aborts its request.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        """``request`` must have been added to ``engine``."""
        self.engine = engine
        self.request = request

    def __next__(self) -> Delta:
        """The next delta; runs steps until there is one.

        Raises:
            GenerationError: the request failed; every delta that there was has been read.
        """
        try:
            while not self.request.deltas:
                if self.request.finish_reason == "error":
                    raise self.request.failure from self.request.cause
                if self.request.finish_reason is not None:
                    raise StopIteration
                self.engine.step(self.request)
        except BaseException:
            self.close()
            raise
        return self.request.deltas.popleft()

    def close(self) -> None:
        """Ends the request if it has not ended; nothing more comes."""
        self.engine.abort(self.request)
        self.request.deltas.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """A dropped stream leaves nothing behind in the engine."""
        self.close()
