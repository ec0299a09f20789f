"""HTTP/1.1 as a load tool needs it: requests on a connection that is kept, bytes stamped as they arrive.

Parsed by hand: a stream of tokens is thousands of small chunks a second, and the client shares the machine with the
server that it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from llmcore.errors import ConfigError, LlmcoreError

MAX_HEAD = 1 << 16  # bytes
HEX = b"0123456789abcdefABCDEF"


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


@dataclass
class Response:
    """One response while it comes in.

    Attributes:
        status: 0 until the head is there.
        headers: names in lower case.
        done: whether all of it is there.
        keeps: whether the connection can be used again afterwards.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    done: bool = False
    keeps: bool = True
    _held: bytes = b""
    _chunked: bool = False
    _left: int | None = 0  # bytes of the body or of the chunk; None: until the connection ends
    _after: str = ""  # what the next line of a chunked body is: "" a size, "end" of a chunk, "trailer"

    def feed(self, data: bytes) -> bytes:
        """Takes what arrived; returns the body's part of it. Raises :class:`HttpError`."""
        if self.done:
            self.keeps = False
            return b""
        if not self.status:
            data = self._head(self._held + data)
            if not self.status or self.done:
                return b""
        if self._chunked:
            return self._chunks(data)
        if self._left is None:
            return data
        body = data[: self._left]
        self.keeps &= len(data) == len(body)
        self._left -= len(body)
        self.done = not self._left
        return body

    def eof(self) -> None:
        """The connection has ended; raises :class:`HttpError` where the response had not."""
        self.keeps = False
        if self.status and self._left is None:
            self.done = True
        if not self.done:
            if self.status:
                raise HttpError("the connection ended before the answer did", "truncated")
            raise HttpError("the connection ended without an answer", "no answer")

    def _head(self, data: bytes) -> bytes:
        """Parses the head if it is complete; returns what follows."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD:
                raise HttpError(f"no end of the headers in {MAX_HEAD} bytes")
            self._held = data
            return b""
        self._held = b""
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1.") or not status[:3].isdecimal() or len(status[:3]) != 3:
            raise HttpError(f"no HTTP/1.1 response: {first[:80]!r}")
        if status.startswith("1"):  # 100 Continue: the response is yet to come
            return self._head(data[end + 4 :])
        self.status = int(status[:3])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._frame(version)
        return data[end + 4 :]

    def _frame(self, version: str) -> None:
        """How the body's end is told."""
        connection = self.headers.get("connection", "").lower()
        self.keeps = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
        length = self.headers.get("content-length")
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        if self._chunked:
            self._left = 0
        elif self.status in (204, 304) or length == "0":
            self.done = True
        elif length is None:
            self._left, self.keeps = None, False
        elif length.isdecimal():
            self._left = int(length)
        else:
            raise HttpError(f"Content-Length is {length[:80]!r}")

    def _chunks(self, data: bytes) -> bytes:
        """Takes the chunks apart."""
        data = self._held + data if self._held else data
        found: list[bytes] = []
        at = 0
        while not self.done:
            if self._left:
                piece = data[at : at + self._left]
                found.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            self._line(data[at:end])
            at = end + 2
        self._held = data[at:]
        self.keeps &= not (self.done and self._held)
        if len(self._held) > MAX_HEAD:
            raise HttpError(f"no end of a chunk's size in {MAX_HEAD} bytes")
        return found[0] if len(found) == 1 else b"".join(found)

    def _line(self, line: bytes) -> None:
        """A line between chunks."""
        if self._after == "trailer":
            self.done = not line
        elif self._after == "end":
            if line:
                raise HttpError(f"a chunk is longer than it says: {line[:40]!r}")
            self._after = ""
        else:
            size = line.partition(b";")[0].strip()
            if not size or size.strip(HEX):
                raise HttpError(f"a chunk's size is {size[:40]!r}")
            self._left = int(size, 16)
            self._after = "end" if self._left else "trailer"


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
