"""Responses come in whatever pieces the network likes."""

from __future__ import annotations

import pytest

from llmcore.errors import ConfigError
from llmcore_tools.load.http import MAX_HEAD, HttpError, Response, Target
from llmcore_tools.load.sse import MAX_EVENT, EventStream

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n"
SIZED = HEAD + b"content-length: 11\r\n\r\nhello world"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED
UNTIL_END = HEAD + b"\r\nhello world"


def body(response: Response, data: bytes, size: int) -> bytes:
    """``data`` fed in pieces of ``size`` bytes."""
    return b"".join(response.feed(data[at : at + size]) for at in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("data", [CHUNKED, SIZED, CONTINUED])
def test_any_pieces(data: bytes, size: int) -> None:
    response = Response()
    assert body(response, data, size) == b"hello world"
    assert (response.status, response.done, response.keeps) == (200, True, True)


@pytest.mark.parametrize("size", [1, 1000])
def test_until_the_connection_ends(size: int) -> None:
    response = Response()
    assert body(response, UNTIL_END, size) == b"hello world" and not response.done
    response.eof()
    assert response.done and not response.keeps


@pytest.mark.parametrize("data", [CHUNKED, SIZED])
def test_an_end_too_early(data: bytes) -> None:
    for length in range(len(data)):
        response = Response()
        response.feed(data[:length])
        with pytest.raises(HttpError) as caught:
            response.eof()
        assert caught.value.outcome == ("truncated" if response.status else "no answer")


def test_no_body() -> None:
    for head in (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
        response = Response()
        assert response.feed(head) == b"" and response.done


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", False),  # as h11 has it: HTTP/1.0 is not worth it
    ],
)
def test_whether_the_connection_is_kept(head: bytes, keeps: bool) -> None:
    response = Response()
    response.feed(head + b"Content-Length: 1\r\n\r\nx")
    assert response.done and response.keeps == keeps


@pytest.mark.parametrize("data", [CHUNKED, SIZED])
def test_surplus_bytes_end_the_connection(data: bytes) -> None:
    response = Response()
    assert response.feed(data + b"more") == b"hello world"
    assert response.done and not response.keeps


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "illegal status line"),
        (b"HTTP/2 200\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 20x OK\r\n\r\n", "illegal status line"),
        (b"x" * (MAX_HEAD + 1), "Receive buffer too long"),
        (HEAD + b"x: " + b"y" * (MAX_HEAD + 1), "Receive buffer too long"),
        (HEAD + b"no header\r\n\r\n", "illegal header line"),
        (HEAD + b"Content-Length: -1\r\n\r\n", "bad Content-Length"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "conflicting Content-Length"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", "Only Transfer-Encoding: chunked"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "illegal chunk header"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", "illegal chunk header"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", "chunk footer"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * (MAX_HEAD + 1), "Receive buffer too long"),
    ],
)
def test_malformed(data: bytes, words: str) -> None:
    with pytest.raises(HttpError) as caught:
        Response().feed(data)
    assert words in caught.value.message and caught.value.outcome == "malformed"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/v1/", "http://localhost:8000"),
        ("https://host/api", "https://host:443/api"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_addresses(url: str, shown: str) -> None:
    target = Target.of(url, "--url")
    assert str(target) == shown
    host = shown.removesuffix(target.prefix).partition("//")[2]
    assert f"\r\nHost: {host}\r\n".encode() in target.request("GET", "/v1/models", {})
    assert target.request("GET", "/v1/models", {}).startswith(f"GET {target.prefix}/v1/models HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:99999", "http://x:y", "http://u@x"])
def test_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        Target.of(url, "--url")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_events(end: bytes, size: int) -> None:
    data = end.join([b": a comment", b"event: x", b"data: one", b"data:two", b"", b"", b"data: [DONE]", b"", b""])
    stream = EventStream()
    found = [event for at in range(0, len(data), size) for event in stream.feed(data[at : at + size])]
    assert found == [b"one\ntwo", b"[DONE]"]


def test_an_event_without_end() -> None:
    with pytest.raises(HttpError, match="an event of more than"):
        EventStream().feed(b"data: " + b"x" * MAX_EVENT)
