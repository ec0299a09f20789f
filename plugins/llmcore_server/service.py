"""The state of the server: the model once it is loaded, how much is under way, and whether more is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from llmcore.async_llm import AsyncLLM
from llmcore.llm import LLM
from llmcore_server.metrics import Metrics
from llmcore_server.refusals import Refusal

State = Literal["loading", "ready", "draining", "failed"]
RETRY_AFTER = 1  # seconds
LAST_STEP_S = 10  # that a step may take, once nothing is waited for


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        waiting: answers that are under way or wait, at most; what comes then is refused before it is looked at.
        body_bytes: of a request.
        api_key: empty for none.
        bodies_bytes: of all bodies that are being read.
        connections: at most.
        read_s: seconds that a header, or a body that comes slowly, may take.
    """

    waiting: int = 256
    body_bytes: int = 16 << 20
    api_key: str = ""
    bodies_bytes: int = 128 << 20
    connections: int = 768
    read_s: float = 20.0


class Service:
    """One model for all connections.

    Attributes:
        name: what clients call the model; they may use its reference too.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        """Nothing is loaded yet: see :meth:`load`."""
        self.name = name
        self.created = int(time.time())
        self.limits = limits
        self.metrics = Metrics(name, self)
        self.draining = False
        self._llm: AsyncLLM | None = None
        self._preparing = 0  # answers that are admitted and not submitted yet
        self._reading = 0  # bytes of bodies

    async def load(self, open_model: Callable[[], LLM]) -> None:
        """Loads the model in another thread; requests are refused meanwhile."""
        self._llm = AsyncLLM(await asyncio.to_thread(open_model))

    @property
    def state(self) -> State:
        """What the health check says."""
        if self._llm is not None and self._llm.failed is not None:
            return "failed"
        if self.draining:
            return "draining"
        return "loading" if self._llm is None else "ready"

    @property
    def llm(self) -> AsyncLLM:
        """The loaded model; raises :class:`Refusal` (503) while there is none, or it takes nothing."""
        if self.state != "ready" or self._llm is None:
            retry = 0 if self.state == "failed" else 5
            raise Refusal(503, f"the server is {self.state}", code=self.state, retry_after=retry)
        return self._llm

    @property
    def loaded(self) -> AsyncLLM | None:
        """The model if there is one, whatever the state."""
        return self._llm

    @contextmanager
    def admitted(self, answers: int) -> Iterator[AsyncLLM]:
        """The model, while a call that wants so many answers is made ready.

        Raises:
            Refusal: 429 where that is too much, 503 where the server takes nothing.
        """
        llm = self.llm
        if answers > self.limits.waiting:
            raise Refusal(
                400,
                f"{answers} answers are wanted, and no more than {self.limits.waiting} may wait",
                code="invalid_value",
            )
        under_way = llm.unfinished + self._preparing
        if under_way + answers > self.limits.waiting:
            self.metrics.refused()
            raise Refusal(
                429,
                f"{under_way} answers are under way or wait; with these there would be more than {self.limits.waiting}",
                code="queue_full",
                retry_after=RETRY_AFTER,
            )
        self._preparing += answers
        try:
            yield llm
        finally:
            self._preparing -= answers

    @contextmanager
    def reading(self) -> Iterator[Callable[[int], None]]:
        """While a body is read and understood; what it yields is told of each piece's bytes.

        Raises:
            Refusal: 413 where the body is too long, 503 where all bodies together are.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            taken += size
            self._reading += size
            if taken > self.limits.body_bytes:
                raise Refusal(413, f"the body is longer than {self.limits.body_bytes} bytes", code="body_too_large")
            if self._reading > self.limits.bodies_bytes:
                raise Refusal(503, "too much is being sent at once", code="too_many_bodies", retry_after=RETRY_AFTER)

        try:
            yield take
        finally:
            self._reading -= taken

    def check_model(self, name: str | None) -> None:
        """Raises :class:`Refusal` (404) for another model than the one that is here."""
        if name is not None and name not in (self.name, self.llm.llm.model):
            raise Refusal(
                404, f"there is no model {name!r}; there is {self.name!r}", param="model", code="model_not_found"
            )

    @property
    def _busy(self) -> bool:
        """Whether anything is under way, or about to be."""
        return self._llm is not None and bool(self._llm.unfinished or self._preparing)

    async def drain(self, seconds: float) -> None:
        """Takes nothing more, waits until all is answered, ends what is not by then, and closes the model."""
        self.draining = True
        if self._llm is None:
            return
        end = asyncio.get_running_loop().time() + seconds
        while self._busy and asyncio.get_running_loop().time() < end and self._llm.failed is None:
            await asyncio.sleep(0.05)
        self._llm.fail_all("the server is shutting down")
        end = asyncio.get_running_loop().time() + LAST_STEP_S
        while self._llm.unfinished and asyncio.get_running_loop().time() < end and self._llm.failed is None:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # streams end with their error
        await asyncio.to_thread(self._llm.close)
