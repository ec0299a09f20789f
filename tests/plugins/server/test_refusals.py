"""Wrong requests: each gets a 4xx that names what is wrong, and the next request is answered."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from helpers.server import Running, running
from helpers.tiny import TinyModel
from llmcore.engine.load import EngineSettings
from llmcore.llm import LLM

MakeTiny = Callable[..., TinyModel]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
NAN = float("nan")

BOTH: list[tuple[str, list[Any]]] = [
    ("model", [None, 3, "", "other", ["tiny"]]),
    ("stream", ["yes", 1, "true", []]),
    ("stream_options", [{"include_usage": True}, {"include": 1}, "all"]),
    ("n", [0, -1, 17, 1.5, "2", True, 10**30]),
    ("max_tokens", [0, -5, 1.5, "many", True, 10**400]),
    ("temperature", [-0.1, 2.1, "hot", True, NAN, 1e300]),
    ("top_p", [0, -1, 1.01, "x", NAN]),
    ("top_k", [-2, 1.5, "3", False]),
    ("min_p", [-0.1, 1.1, "0", NAN]),
    ("presence_penalty", [-2.1, 2.1, "0", NAN]),
    ("frequency_penalty", [-3, 3, [0], NAN]),
    ("repetition_penalty", [0, -1, 11, "1"]),
    ("seed", ["7", 1.5, 2**64, True]),
    ("stop", [["a"] * 17, [1], 5, [""], "", [None]]),
    ("stop_token_ids", [["a"], [1.5], [-1], [10**30], [5000], "2", list(range(17))]),
    ("ignore_eos", ["no", 1, 0]),
    ("min_tokens", [-1, "3", 1.5]),
    (
        "logit_bias",
        [
            {"5": 101},
            {"5": "x"},
            {"a": 1},
            {"-1": 1},
            {"999999999": 1},
            {"²": 1},
            [1],
            {"5": None},
            {"01": 1},
            {"0" * 30: 1},
        ],
    ),
    ("response_format", ["json", {"type": "xml"}, {"type": "json_schema"}, {"type": "regex"}, {"type": "grammar"}]),
    ("response_format", [{"type": "text", "regex": "a"}, {"type": "json_object", "json_schema": {"schema": {}}}]),
    ("response_format", [{"type": "json_schema", "json_schema": {"schema": {"type": "integer", "maximum": "x"}}}]),
    ("response_format", [{"type": "json_schema", "json_schema": {"schema": 5}}, {"type": "regex", "regex": "("}]),
    (
        "response_format",
        [{"type": "grammar", "grammar": "start:"}],
    ),
    ("user", [5, {}]),
    ("priority", [1, -1, "0", 1.0, True, 2**31 + 1]),  # the engine's policy looks at none
    ("cache_salt", ["", 5, ["a"], "a" * 1025, "\ud800"]),
    ("best_of", [2]),
    ("suffix", ["x"]),
    ("no_such_field", [None, 1]),
]
TOOL = {"type": "function", "function": {"name": "f"}}
CHAT_ONLY: list[tuple[str, list[Any]]] = [
    ("tools", [[{"type": "function"}], [{"type": "code"}], "f", [{"type": "function", "function": {"name": "a b"}}]]),
    ("tools", [[TOOL]]),  # the template knows of none
    ("tool_choice", ["always", "required", {"type": "function", "function": {"name": "f"}}]),
    ("parallel_tool_calls", ["yes"]),
    ("messages", [None, [], "hi", [1], [{}], [{"role": "user"}], [{"content": "x"}], [{"role": 5, "content": "x"}]]),
    ("messages", [[{"role": "user", "content": 5}], [{"role": "user", "content": [{"text": "x"}]}], {}]),
    ("messages", [[{"role": "wizard", "content": "x"}], [{"role": "user", "content": "x", "mood": 1}]]),
    ("max_completion_tokens", [0, "5", -1]),
    ("logprobs", [5, "yes"]),
    ("top_logprobs", [21, -1, 3, "2"]),
    ("prompt", ["hi"]),
]
TEXT_ONLY: list[tuple[str, list[Any]]] = [
    ("prompt", [None, [], 5, [[]], [1, "a"], {}, ["a"] * 65, [-1], [10**9], [True], "a" * 30_000, "\ud800"]),
    ("logprobs", [21, -1, True, "2"]),
    ("echo", ["yes", 1]),
    ("messages", [[{"role": "user", "content": "x"}]]),
]


def _wrong() -> Iterator[Any]:
    for path, body, fields in (
        ("chat/completions", CHAT, [*BOTH, *CHAT_ONLY]),
        ("completions", TEXT, [*BOTH, *TEXT_ONLY]),
    ):
        for number, (name, values) in enumerate(fields):
            for index, value in enumerate(values):
                if name == "no_such_field" or value is not None or name in ("model", "messages", "prompt"):
                    yield pytest.param(path, body, name, value, id=f"{path}-{name}-{number}-{index}")


@pytest.fixture(scope="module")
def served(tiny_model: MakeTiny) -> Iterator[Running]:
    path = tiny_model("llama3").path

    def load() -> LLM:
        return LLM(str(path), backend="numba", threads=1, engine=EngineSettings(max_seqs=4))

    with running(load) as server:
        yield server


@pytest.mark.parametrize(("path", "body", "name", "value"), list(_wrong()))
def test_a_wrong_field(served: Running, path: str, body: dict[str, Any], name: str, value: Any) -> None:
    data = json.dumps({**body, name: value})  # NaN too, as sloppy clients send it
    with served.http() as http:
        answer = http.post(f"/v1/{path}", content=data, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, answer.text
        error = answer.json()["error"]
        assert error["type"] in ("invalid_request_error", "not_found_error")
        assert str(error["param"]).split(".")[0].split("[")[0] == name or "JSON" in error["message"], error
        good = http.post("/v1/completions", json={**TEXT, "ignore_eos": True})
        assert good.status_code == 200
        assert good.json()["usage"]["completion_tokens"] == 2


def test_the_client_raises_what_the_server_says(served: Running) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        served.client().chat.completions.create(**CHAT, temperature=9)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as error:
        served.client().chat.completions.create(**CHAT, extra_body={"temprature": 1})
    assert error.value.param == "temprature"
    assert error.value.code == "unknown_parameter"


BODIES = [b"", b"{", b"[]", b"null", b"5", b'"text"', b"\xff\xfe", b'{"model": "tiny"', b"{}" * 3, b"[" * 100_000]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_a_body_that_is_none(served: Running, path: str, body: bytes) -> None:
    with served.http() as http:
        answer = http.post(path, content=body)
        assert answer.status_code == 400
        assert "error" in answer.json()


def test_wrong_paths_and_methods(served: Running) -> None:
    with served.http() as http:
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("POST", "/health", 405),
        ):
            answer = http.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"]["message"]


MALFORMED = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",  # no host
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\n bad: folded\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nX\x00Y: 1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\n{\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    bytes(range(256)),
    b"GET http://[/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /%zz%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET  /  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\nHost: localhost\n\n",
    b"GET /health HTTP/1.1\rHost: localhost\r\r",
    b"GET /health HTTP/1.1\r\nHost localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\n: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    b"GET /health HTTP/0.9\r\n\r\n",
    b"/health\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x00GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 5\r\n\r\nhello",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x5\r\n\r\nhello",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{}}\r\n0\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nbad\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: nonsense\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}GARBAGE",
    b"".join(b"X%d: y\r\n" % i for i in range(3000)).join((b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"\r\n")),
]


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_http(served: Running, data: bytes) -> None:
    """An answer of 4xx or none at all; the server goes on."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200", b"HTTP/1.1 100"))
    assert b"HTTP/1.1 5" not in answer
    with served.http() as http:
        assert http.post("/v1/completions", json={**TEXT, "ignore_eos": True}).status_code == 200


def test_the_tables_are_long() -> None:
    """What the server promises is held by so many cases, each another one."""
    fields = {
        (name, repr(value)) for group in (BOTH, CHAT_ONLY, TEXT_ONLY) for name, values in group for value in values
    }
    assert len(fields) >= 150
    assert len(set(MALFORMED)) >= 40
