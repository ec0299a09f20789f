"""Clients that send slowly, send much, stop half-way, or only listen."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from helpers.server import Running, running
from helpers.tiny import TinyModel
from llmcore.config.schema import ServerConfig
from llmcore.engine.load import EngineSettings
from llmcore.errors import ConfigError
from llmcore.llm import LLM
from llmcore_server import command
from llmcore_server.service import Limits

MakeTiny = Callable[..., TinyModel]
READ_S = 1.0
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def served(tiny_model: MakeTiny) -> Iterator[Running]:
    path = tiny_model("llama3", max_position_embeddings=4096).path

    def load() -> LLM:
        return LLM(str(path), backend="numba", threads=1, engine=EngineSettings(max_seqs=4))

    limits = Limits(read_s=READ_S, body_bytes=1 << 20, bodies_bytes=3 << 19, connections=24)
    with running(load, limits) as server:
        yield server


def connect(served: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=30)


def head(length: int, path: str = "/v1/completions") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), length)


def asked(**body: object) -> bytes:
    data = json.dumps({"model": "tiny", "prompt": "hi", "ignore_eos": True, **body}).encode()
    return head(len(data)) + data


def rest(connection: socket.socket) -> bytes:
    """What comes until the connection ends."""
    found = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


def one(connection: socket.socket) -> bytes:
    """One answer on a connection that stays."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(65536)
    lines, _, body = found.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"content-length: (\d+)", lines.lower())
    while len(body) < int(length):
        body += connection.recv(65536)
    return lines + b"\r\n\r\n" + body


def error(answer: bytes, status: int) -> str:
    lines, _, body = answer.partition(b"\r\n\r\n")
    assert lines.startswith(b"HTTP/1.1 %d " % status), answer
    return str(json.loads(body)["error"]["code"])


def drip(connection: socket.socket, data: bytes, seconds: float = 30.0) -> float:
    """Sends a byte every now and then until the connection ends; says how long that took."""
    begun = time.monotonic()
    connection.setblocking(False)
    for byte in data:
        if time.monotonic() > begun + seconds:
            break
        try:
            connection.send(bytes([byte]))
            if connection.recv(1, socket.MSG_PEEK) is not None:
                break
        except BlockingIOError:
            threading.Event().wait(0.05)
        except OSError:
            break
    connection.settimeout(30)
    return time.monotonic() - begun


def healthy(served: Running) -> None:
    with served.http() as http:
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "kept"])
def test_a_header_a_byte_at_a_time(served: Running, before: bytes) -> None:
    with connect(served) as connection:
        if before:
            connection.sendall(before)
            assert b"ready" in one(connection)
        took = drip(connection, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 4000)
        assert READ_S * 0.5 < took < READ_S + 5
        assert error(rest(connection), 408) == "timeout"
    healthy(served)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/nothing", "/health"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_a_byte_at_a_time(served: Running, path: str, chunked: bool) -> None:
    """Whether somebody reads it or not."""
    start = head(4000, path)
    if chunked:
        start = start.replace(b"Content-Length: 4000", b"Transfer-Encoding: chunked") + b"fff\r\n"
    with connect(served) as connection:
        connection.sendall(start)
        if path == "/v1/completions":
            took = drip(connection, b" " * 4000)
            assert error(rest(connection), 408) == "timeout"
            assert took < READ_S + 5
        else:
            begun = time.monotonic()
            assert one(connection).startswith(b"HTTP/1.1 40")
            with suppress(OSError):
                while time.monotonic() < begun + 20:
                    connection.sendall(b" ")
                    threading.Event().wait(0.05)
            assert time.monotonic() < begun + READ_S + 5
    healthy(served)


def test_silence_ends(served: Running) -> None:
    with connect(served) as connection:
        assert connection.recv(1) == b""
    with connect(served) as connection:
        connection.sendall(head(100))
        assert error(rest(connection), 408) == "timeout"


def test_a_long_body_that_comes_fast_enough_may_take_longer(served: Running) -> None:
    body = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 1, "ignore_eos": True}).encode()
    body += b" " * (600_000 - len(body))
    with connect(served) as connection:
        connection.sendall(head(len(body)))
        begun = time.monotonic()
        for at in range(0, len(body), 100_000):
            connection.sendall(body[at : at + 100_000])
            threading.Event().wait(READ_S / 3)
        assert time.monotonic() > begun + READ_S
        assert one(connection).startswith(b"HTTP/1.1 200")


def test_all_bodies_together_have_a_bound(served: Running) -> None:
    """Two of 0.7 MiB do not fit 1.5 MiB beside a third: who is too much gets 503, and what was held is free again."""
    body = b" " * 700_000
    for _ in range(2):
        with connect(served) as first, connect(served) as second, connect(served) as third:
            for connection in (first, second):
                connection.sendall(head(len(body) + 1) + body)
            while served.service._reading < 2 * len(body):
                threading.Event().wait(0.01)
            third.sendall(head(len(body)) + body)
            answer = one(third)
            assert error(answer, 503) == "too_many_bodies"
            assert b"retry-after: " in answer.lower()
            assert served.service._reading <= 3 << 19
        while served.service._reading:
            threading.Event().wait(0.01)
    healthy(served)


def test_too_many_connections(served: Running) -> None:
    held = [connect(served) for _ in range(24)]
    try:
        with connect(served) as one_more:
            assert error(rest(one_more), 503) == "too_many_connections"
    finally:
        for connection in held:
            connection.close()
    while len(served.server.server_state.connections):
        threading.Event().wait(0.01)
    healthy(served)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_who_only_listens_is_answered(served: Running, stream: bool, version: bytes) -> None:
    with connect(served) as connection:
        connection.sendall(asked(max_tokens=300, stream=stream).replace(b"HTTP/1.1", b"HTTP/" + version))
        connection.shutdown(socket.SHUT_WR)
        answer = rest(connection)
    parts = answer.split(b"\r\n\r\n")
    assert all(part == b"HTTP/1.1 100 " for part in parts if part.startswith(b"HTTP/1.1 1"))
    (final,) = [part for part in parts if part.startswith(b"HTTP/1.1 200")]
    assert final and (b"[DONE]" in answer) == stream
    assert b'"finish_reason":"length"' in answer


@pytest.mark.parametrize("how", ["stream", "whole", "queued stream", "queued"])
def test_who_has_gone_is_not(served: Running, how: str) -> None:
    """Whether an answer is under way or waits for its turn."""
    engine = served.service.loaded.llm.engine
    others = [connect(served) for _ in range(4)] if "queued" in how else []
    for other in others:
        other.sendall(asked(max_tokens=4000, stream=True))
        other.recv(1)
    connection = connect(served)
    connection.sendall(asked(max_tokens=4000, stream="stream" in how))
    while served.service.loaded.unfinished <= len(others):
        threading.Event().wait(0.005)
    if "stream" in how:
        connection.recv(1)
    connection.close()
    begun = time.monotonic()
    while served.service.loaded.unfinished > len(others):
        threading.Event().wait(0.01)
        assert time.monotonic() < begun + 5
    assert len(engine.live) == len(others) or not others
    for other in others:
        other.close()
    served.wait_idle()


def test_half_a_request_is_none(served: Running) -> None:
    for half in (b"GET /health HT", head(100) + b'{"model"', b"", GET[:-2]):
        with connect(served) as connection:
            connection.sendall(half)
            connection.shutdown(socket.SHUT_WR)
            begun = time.monotonic()
            assert not rest(connection).startswith(b"HTTP/1.1 200")
            assert time.monotonic() < begun + READ_S * 0.9
    healthy(served)


def test_bounds_that_leave_no_room() -> None:
    with pytest.raises(ConfigError, match=r"no room for server\.max_body_mb=16"):
        command.limits(ServerConfig(max_bodies_mb=8), "")
    made = command.limits(ServerConfig(), "key")
    assert made == Limits(api_key="key")
