"""Connections that nobody holds for nothing: a request comes in time, or its connection ends.

This is uvicorn's protocol over h11, which bounds the time of idle connections alone. Added are a clock for headers and
bodies, a bound on connections, answers to clients that have closed their sending side, and errors in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from pydantic_core import to_json
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmcore_server.refusals import Refusal
from llmcore_server.service import Limits

LEAST_RATE = 16 << 10  # bytes/s: a body may take longer than the limit as long as it comes this fast
PROBES_S = (0.1, 1.0)  # until the second look at a client that has closed its sending side; until each that follows
EVENTS = "events"  # in the state of a request: its answer is a stream of events
EMPTY_EVENT = b":\n\n"


class Connection(H11Protocol):
    """One client's connection."""

    def __init__(self, limits: Limits, **uvicorn: Any) -> None:
        """Args: ``uvicorn`` is what it gives to every protocol."""
        super().__init__(**uvicorn)
        self._limits = limits
        self._awaited: Any = None  # the state of h11 whose end the clock waits for
        self._since = 0.0
        self._received = 0  # bytes since then
        self._clock: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Asyncio's: turns away what is too much."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self.refuse(Refusal(503, "there are too many connections", code="too_many_connections", retry_after=1))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        self._received += len(data)
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Uvicorn's: the next request may have begun."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        super().connection_lost(exc)
        for timer in (self._clock, self._probe):
            if timer is not None:
                timer.cancel()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Asyncio's: who sends no more may still read. Whether the connection stays, until the answer has ended.

        A client that has gone looks the same from here, until something is sent to it.
        """
        if not self._answers or self.conn.their_state is h11.SEND_BODY:
            return False
        self.cycle.keep_alive = False
        self._look(PROBES_S[0])
        return True

    def refuse(self, refusal: Refusal) -> None:
        """Answers for the application, where it has not begun to, and ends the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = to_json(refusal.body)
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            if refusal.retry_after:
                headers["retry-after"] = str(refusal.retry_after)
            reason = HTTPStatus(refusal.status).phrase
            response = h11.Response(status_code=refusal.status, headers=list(headers.items()), reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's: to what is no HTTP."""
        self.refuse(Refusal(400, msg, code="invalid_http"))

    @property
    def _answers(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Starts the clock where a header or a body begins to be waited for, and stops it where it is there."""
        state = self.conn.their_state
        idle = state is h11.IDLE and self.timeout_keep_alive_task is not None  # uvicorn's own clock runs
        awaited = state if state in (h11.IDLE, h11.SEND_BODY) and not idle else None
        if awaited is not self._awaited:
            self._awaited, self._since, self._received = awaited, self.loop.time(), 0
            if self._clock is not None:
                self._clock.cancel()
            self._clock = None if awaited is None else self.loop.call_later(self._limits.read_s, self._late)

    def _late(self) -> None:
        """The time is over, unless a body comes fast enough."""
        if self.transport.is_closing():
            return
        sending = self._awaited is h11.SEND_BODY
        left = self._since + self._limits.read_s + self._received / LEAST_RATE - self.loop.time()
        if sending and left > 0:
            self._clock = self.loop.call_later(left, self._late)
        elif sending or self._received or self.conn.trailing_data[0]:
            what = "body" if sending else "header"
            self.refuse(Refusal(408, f"the request's {what} did not come in time", code="timeout"))
        else:
            self.transport.close()

    def _look(self, wait: float) -> None:
        """Sends what means nothing to a client that only reads: one that has gone resets the connection."""
        if not self._answers or self.transport.is_closing():
            return
        if not self.cycle.response_started and self.scope["http_version"] == "1.1":
            event: h11.Event = h11.InformationalResponse(status_code=100, headers=[])
            self.transport.write(self.conn.send(event) or b"")
        elif self.cycle.response_started and self.scope["state"].get(EVENTS):
            self.transport.write(self.conn.send(h11.Data(data=EMPTY_EVENT)) or b"")
        self._probe = self.loop.call_later(wait, self._look, PROBES_S[1])
