"""HTTP/1.1 as a load tool needs it: requests on a connection that is kept, bytes stamped as they arrive.

h11 reads the responses. It costs more than the shortest parser would, some microseconds a chunk, on a machine that the
client may share with the server that it measures; but what is no HTTP is told by those who know.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11

from llmcore.errors import ConfigError, LlmcoreError

MAX_HEAD = 1 << 16  # bytes
ASKED = h11.Request(method="POST", target="/", headers=[("Host", "server"), ("Content-Length", "0")])


class HttpError(LlmcoreError):
    """What a server sent is no HTTP/1.1 response, or breaks off; ``outcome`` names which in a word or two."""

    def __init__(self, message: str, outcome: str = "malformed") -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True)
class Target:
    """Where a server is; ``prefix`` comes before ``/v1``."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    @classmethod
    def of(cls, url: str, flag: str) -> Target:
        """From what ``flag`` was given, with or without ``/v1``; raises :class:`ConfigError`."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{flag} {url}: {error}", remedy="write http://HOST:PORT") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigError(f"{flag} {url}: no address of a server", remedy="write http://HOST:PORT")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, prefix)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.tls}://{host}:{self.port}{self.prefix}"

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """A request's bytes."""
        host = str(self).split("/")[2]
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
        lines += (f"{name}: {value}" for name, value in headers.items())
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Response:
    """One response while it comes in.

    Attributes:
        status: 0 until the head is there.
        headers: names in lower case.
        done: whether all of it is there.
        keeps: whether the connection can be used again afterwards.
    """

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False
        self.keeps = True
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        for event in (ASKED, h11.EndOfMessage()):  # what it was asked matters only in that it was
            self._http.send(event)

    def feed(self, data: bytes) -> bytes:
        """Takes what arrived; returns the body's part of it. Raises :class:`HttpError`."""
        if self.done:
            self.keeps = False
            return b""
        return self._take(data) if data else b""  # to h11, nothing is the end

    def eof(self) -> None:
        """The connection has ended; raises :class:`HttpError` where the response had not."""
        self.keeps = False
        if self.done:
            return
        if not self.status:
            raise HttpError("the connection ended without an answer", "no answer")
        try:
            self._take(b"")
        except HttpError as error:
            raise HttpError("the connection ended before the answer did", "truncated") from error

    def _take(self, data: bytes) -> bytes:
        """The body's part of ``data``; an empty one is the end of the connection."""
        found: list[bytes] = []
        try:
            self._http.receive_data(data)
            while not self.done:
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                self._look(event, found)
        except h11.RemoteProtocolError as error:
            raise HttpError(f"no HTTP/1.1 response: {error}") from error
        if self.done:
            self.keeps &= self._http.our_state is h11.DONE and not self._http.trailing_data[0]
        return found[0] if len(found) == 1 else b"".join(found)

    def _look(self, event: Any, found: list[bytes]) -> None:
        """Takes note of what h11 has read."""
        if isinstance(event, h11.Response):  # what is informational comes before it
            self.status = event.status_code
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            found.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self.done = True


Sink = Callable[[float, Response, bytes], bool]
"""Takes the time of arrival (s of ``perf_counter``), the response and new bytes of its body; False hangs up."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._sink: Sink | None = None
        self._end: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, target: Target) -> Connection:
        """Raises :class:`OSError`."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, target.host, target.port, ssl=target.tls or None)
        return connection

    @property
    def free(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing() and self._response is None

    async def exchange(self, request: bytes, sink: Sink) -> Response:
        """Sends a request and hands what arrives to ``sink``, until it has all of it or hangs up.

        Raises:
            HttpError: no HTTP/1.1 response, or a part of one.
        """
        assert self._transport is not None and self._response is None
        response = self._response = Response()
        self._sink = sink
        self._end = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(request)
            await self._end
        finally:
            self._response = self._sink = self._end = None
            if not (response.done and response.keeps):
                self._transport.abort()
        return response

    def close(self) -> None:
        """Ends the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Asyncio's: stamps and hands on what arrived."""
        now = time.perf_counter()
        response, sink, end = self._response, self._sink, self._end
        if response is None or sink is None or end is None or end.done():
            self.close()  # nobody has asked
            return
        try:
            goes_on = sink(now, response, response.feed(data))
        except LlmcoreError as error:
            end.set_exception(error)
        else:
            if response.done or not goes_on:
                end.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's: an answer may end with the connection, with or without ``exc``."""
        del exc
        if self._response is None or self._end is None or self._end.done():
            return
        try:
            self._response.eof()
            if self._sink is not None:
                self._sink(time.perf_counter(), self._response, b"")
            self._end.set_result(None)
        except LlmcoreError as error:
            self._end.set_exception(error)
