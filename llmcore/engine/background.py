"""An engine that steps in a thread of its own, for callers that must not wait for a step: an event loop, a server.

What callers want is left in an inbox, which the thread empties between two steps; what came out of a step goes to one
function, all requests' deltas at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from llmcore.engine.embedding import Embedding
from llmcore.engine.engine import Engine
from llmcore.engine.request import Delta, Request
from llmcore.errors import GenerationError

Ended = Callable[[Exception | None], None]
"""Is told, in the engine's thread, that an embedding has ended, and what went wrong."""

Outcome = list[tuple[Request, Delta]]
"""What a step, or the end of requests, brought; in order for every request."""


class Background:
    """The thread, and the requests that it was given.

    Attributes:
        failed: what ended the thread, if it has ended by itself: nothing is answered any more.
    """

    def __init__(self, engine: Engine, deliver: Callable[[Outcome], None]) -> None:
        """Starts the thread. It calls ``deliver`` between two steps, so that must not take long."""
        self.engine = engine
        self.failed: BaseException | None = None
        self._deliver = deliver
        self._open: dict[int, Request] = {}  # what has not ended
        self._inbox: deque[tuple[Callable[[Request], None], Request]] = deque()
        self._jobs: deque[tuple[Embedding, Ended]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="llmcore-engine", daemon=True)
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """Requests that were submitted and have not ended."""
        return len(self._open) + len(self._jobs)

    def submit(self, request: Request) -> None:
        """Queues what :meth:`Engine.request` has made."""
        self._leave(self._begin, request)

    def embed(self, job: Embedding, ended: Ended) -> None:
        """Queues an embedding; a chunk of the first one is computed after each step."""
        with self._changed:
            if self._closing:
                ended(GenerationError("the engine has ended"))
                return
            self._jobs.append((job, ended))
            self._changed.notify()

    def abort(self, request: Request) -> None:
        """Ends ``request`` before the next step, as failed if it has an ``error``; nothing happens if it has ended."""
        self._leave(self._end, request)

    def close(self) -> None:
        """Ends every request, and the thread; what is left in the inbox is ended too."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _leave(self, action: Callable[[Request], None], request: Request) -> None:
        with self._changed:
            if self._closing:
                if action == self._begin:
                    self._deliver([(request, self._last(request))])
                return
            if action == self._begin:
                self._open[request.id] = request
            self._inbox.append((action, request))
            self._changed.notify()

    # -- in the thread

    def _serve(self) -> None:
        try:
            while self._wait():
                while self._inbox:
                    action, request = self._inbox.popleft()
                    action(request)
                self.engine.step()
                self._collect()
                self._advance()
        except BaseException as error:  # a bug, or no memory: whoever waits is told
            self.failed = error
        finally:
            with self._changed:
                self._closing = True
            self._end_all()

    def _wait(self) -> bool:
        """Until there is something to do; False when the thread is to end."""
        with self._changed:
            while not (self._inbox or self._jobs or self.engine.busy or self._closing):
                self._changed.wait()
            return not self._closing

    def _begin(self, request: Request) -> None:
        self.engine.enqueue(request)

    def _end(self, request: Request) -> None:
        if request.id in self._open:
            self.engine.abort(request)
            request.deltas.append(self._last(request))
            self._collect()

    def _advance(self) -> None:
        if not self._jobs:
            return
        job, ended = self._jobs[0]
        error: Exception | None = None
        try:
            if not job.advance():
                return
        except Exception as raised:  # whatever a kernel raises: the others go on
            error = raised
        job.close()
        self._jobs.popleft()  # after its pages are back: who finds nothing unfinished finds all of them
        ended(error)

    def _collect(self) -> None:
        """Delivers what requests have got; those that have ended are let go."""
        outcome: Outcome = []
        for request in list(self._open.values()):
            while request.deltas:
                outcome.append((request, request.deltas.popleft()))
            if request.finish_reason is not None:
                del self._open[request.id]
        if outcome:
            self._deliver(outcome)

    def _last(self, request: Request) -> Delta:
        """What ends ``request`` when somebody, or the end of the thread, has ended it."""
        request.finish_reason = "error" if self.failed is not None or request.error else "abort"
        if self.failed is not None:
            request.error = f"the engine has failed: {type(self.failed).__name__}: {self.failed}"
        return Delta(request.id, "", finish_reason=request.finish_reason)

    def _end_all(self) -> None:
        self._inbox.clear()
        for request in list(self._open.values()):
            self.engine.abort(request)
            request.deltas.append(self._last(request))
        self._collect()
        while self._jobs:
            job, ended = self._jobs.popleft()
            job.close()
            ended(GenerationError("the engine has ended"))
