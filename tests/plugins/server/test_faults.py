"""Deterministic faults: what overload, strangers, hostile bodies and broken steps come to, one by one."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.routing import Route

from helpers.server import Running, running
from helpers.tiny import TinyModel
from helpers.tiny_tokenizer import SPECIAL, tokens
from llmcore.config.schema import ServerConfig
from llmcore.engine.load import EngineSettings
from llmcore.llm import LLM
from llmcore_server import app
from llmcore_server.fields import CompletionFields
from llmcore_server.network import HEADER_BYTES
from llmcore_server.service import Limits, Service
from llmcore_tools.load.child_server import ChildServer

MakeTiny = Callable[..., TinyModel]
ENDLESS = {"model": "tiny", "prompt": "hi", "max_tokens": 3000, "ignore_eos": True, "stream": True}
SHORT = {**ENDLESS, "max_tokens": 2, "stream": False}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "ignore_eos": True}


@pytest.fixture(scope="module")
def path(tiny_model: MakeTiny) -> Path:
    return tiny_model("llama3", max_position_embeddings=4096).path


@pytest.fixture
def load(path: Path) -> Callable[[], LLM]:
    return lambda: LLM(str(path), backend="numba", threads=1, engine=EngineSettings(max_seqs=4))


@pytest.fixture
def served(load: Callable[[], LLM]) -> Iterator[Running]:
    with running(load) as server:
        yield server


class Stream:
    """A stream that has begun."""

    def __init__(self, served: Running, body: dict[str, Any]) -> None:
        self._http = served.http()
        self._answer = self._http.stream("POST", "/v1/completions", json=body)
        self._lines = self._answer.__enter__().iter_lines()
        next(self._lines)

    def rest(self) -> list[Any]:
        """The data of its events, to the end."""
        data = [line[6:] for line in self._lines if line.startswith("data: ")]
        self.close()
        return [each if each == "[DONE]" else json.loads(each) for each in data]

    def close(self) -> None:
        """Hangs up."""
        self._answer.__exit__(None, None, None)
        self._http.close()


def wait_until_draining(served: Running) -> None:
    served.loop.call_soon_threadsafe(served.server.leave)
    while served.service.state != "draining":
        threading.Event().wait(0.01)


def test_a_full_queue_is_told_before_anything_is_tokenized(
    load: Callable[[], LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(load, Limits(waiting=1)) as served, served.http() as http:
        stream = Stream(served, ENDLESS)
        encoded: list[Any] = []
        llm = served.service.loaded
        for name in ("encode", "chat_ids"):
            monkeypatch.setattr(llm, name, lambda *given, **named: encoded.append(given))
        for url, body in (("/v1/completions", SHORT), ("/v1/chat/completions", CHAT), ("/v1/embeddings", None)):
            answer = http.post(url, json=body or {"model": "tiny", "input": "hi"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
            assert int(answer.headers["retry-after"]) > 0
        assert not encoded
        stream.close()


def test_while_it_drains_nothing_more_is_taken(load: Callable[[], LLM]) -> None:
    with running(load, drain_s=60) as served, served.http() as http:
        stream = Stream(served, ENDLESS)
        wait_until_draining(served)
        for url, body in (("/v1/completions", SHORT), ("/v1/chat/completions", CHAT)):
            answer = http.post(url, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert int(answer.headers["retry-after"]) > 0
        assert (http.get("/health").status_code, http.get("/health").json()) == (503, {"status": "draining"})
        assert stream.rest()[-1] == "[DONE]"


def test_the_longest_body_and_headers(served: Running) -> None:
    limit = 16 << 20
    assert ServerConfig().max_body_mb << 20 == Limits().body_bytes == limit
    assert HEADER_BYTES == 64 << 10
    with served.http() as http:
        assert http.post("/v1/completions", content=b" " * limit).status_code == 400, "it is read, and no JSON"
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {limit + 1}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
            connection.sendall(head.encode())  # and no body: it is refused by what it says
            assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    with served.http() as http:
        for size, expected in ((HEADER_BYTES - 1000, (200,)), (HEADER_BYTES, (400, 431))):
            assert http.get("/version", headers={"X": "y" * size}).status_code in expected


def test_nothing_that_clients_say_stays_in_a_cache() -> None:
    """Of two bodies with the same short text, each has its own: the JSON reader keeps none for the next one."""

    async def said() -> str:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b'{"model": "tiny", "prompt": "a secret"}', "more_body": False}

        request = Request({"type": "http", "headers": []}, receive)
        prompt = (await app.body_of(request, CompletionFields, Service("tiny", Limits()))).prompt
        assert isinstance(prompt, str)
        return prompt

    first, second = asyncio.run(said()), asyncio.run(said())
    assert first == second and first is not second


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
def test_caps(served: Running, url: str) -> None:
    chat = url == "/v1/chat/completions"
    body = CHAT if chat else SHORT
    most: dict[str, Any] = {"n": 16, "stop": ["zz"] * 16}
    most |= {"logprobs": True, "top_logprobs": 20} if chat else {"logprobs": 20}
    over = {"n": 17, "stop": ["zz"] * 17, **({"top_logprobs": 21} if chat else {"logprobs": 21})}
    with served.http() as http:
        assert http.post(url, json={**body, **most}).status_code == 200
        for field, value in over.items():
            answer = http.post(url, json={**body, **most, field: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_every_route_but_health_and_the_page_asks_for_the_key(
    load: Callable[[], LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = app.hmac.compare_digest
    monkeypatch.setattr(app.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    with running(load, Limits(api_key="secret")) as served, served.http() as http:
        routes = [route for route in served.server.config.app._app.routes if isinstance(route, Route)]
        asked = [(method, route.path.replace("{name:path}", "tiny")) for route in routes for method in route.methods]
        assert {"/v1/chat/completions", "/metrics", "/v1/models/tiny", "/tokenize"} <= {path for _, path in asked}
        for method, url in (*asked, ("GET", "/nothing"), ("OPTIONS", "/v1/models")):
            for headers in ({}, {"Authorization": "Bearer secrets"}, {"Authorization": "secret"}):
                status = http.request(method, url, headers=headers).status_code
                assert status == (200 if url in ("/health", "/") else 401), url
        guarded = sum(url not in ("/health", "/") for _, url in asked) + 2
        assert len(compared) == 3 * guarded and {right for _, right in compared} == {b"Bearer secret"}


def test_no_origin_is_allowed_to_read(served: Running) -> None:
    origin = {"Origin": served.url, "Access-Control-Request-Method": "POST"}
    with served.http() as http:
        answers = [http.options("/v1/completions", headers=origin), http.get("/v1/models", headers=origin)]
        answers.append(http.post("/v1/completions", headers=origin, json=SHORT))
        assert [answer.status_code for answer in answers] == [405, 200, 200]
        for answer in answers:
            assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


def test_no_url_is_fetched(served: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap, served.http() as http:
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}
        talk = [{"role": "user", "content": [{"type": "text", "text": url}]}]
        for change, status in (
            ({"messages": picture}, 400),
            ({"messages": talk}, 200),
            ({"response_format": form}, 400),
        ):
            assert http.post("/v1/chat/completions", json={**CHAT, **change}).status_code == status
        assert http.post("/v1/completions", json={**SHORT, "prompt": url}).status_code == 200
        assert http.post("/v1/completions", json={**SHORT, "model": url}).status_code == 404
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_texts_that_look_like_control_tokens_are_text(served: Running) -> None:
    ids = [tokens().index(text) for text in SPECIAL]
    with served.http() as http:

        def counts(**body: Any) -> list[int]:
            found = http.post("/tokenize", json=body).json()["tokens"]
            return [found.count(token) for token in ids]

        plain = counts(messages=[{"role": "user", "content": "hi"}])
        assert plain == [0, 0, 2, 1]
        for parts in ("".join(SPECIAL), [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]):
            assert counts(messages=[{"role": "user", "content": parts}]) == plain
        assert counts(prompt="".join(SPECIAL)) == [0, 0, 0, 0]


def test_a_template_that_does_not_end_is_a_refusal(path: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(path, hostile)
    config = json.loads((hostile / "tokenizer_config.json").read_text(encoding="utf-8"))
    many = "{% for i in range(99999) %}"
    for template in (many + many + "{% endfor %}{% endfor %}", "{{ 'a' * 10**9 }}"):
        config["chat_template"] = template
        (hostile / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        with running(lambda: LLM(str(hostile), backend="numba", threads=1)) as served, served.http() as http:
            answer = http.post("/v1/chat/completions", json=CHAT)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "chat_template")
            assert http.post("/v1/completions", json=SHORT).status_code == 200


def test_not_a_number_fails_its_request_alone(served: Running) -> None:
    engine = served.service.loaded.llm.engine
    other = Stream(served, {**ENDLESS, "prompt": "another"})
    broken = Stream(served, ENDLESS)
    with engine.lock:
        (request,) = (live.request for live in engine.live.values() if len(live.request.prompt_ids) == 2)
        for state in engine.runner.states.values():
            for page in request.pages:
                state[page].view("u1")[...] = 0xFF  # a NaN of every type
    error = broken.rest()[-1]["error"]
    assert error["code"] == "generation_failed" and "NaN" in error["message"]
    *_, last, done = other.rest()
    assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    with served.http() as http:
        assert http.post("/v1/completions", json=SHORT).status_code == 200
    served.wait_idle()
    engine.verify()
    assert engine.stats().pages_free == engine.stats().pages_total and engine.stats().failed == 1


def test_a_kernels_exception_fails_its_step_and_the_engine_goes_on(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, once = served.service.loaded.llm.engine, threading.Event()
    run = engine.runner._run

    def faulty(batch: Any, head: Any) -> Any:
        if once.is_set():
            once.clear()
            raise ValueError("the kernel's own words")
        return run(batch, head)

    monkeypatch.setattr(engine.runner, "_run", faulty)
    streams = [Stream(served, ENDLESS) for _ in range(2)]
    with served.http() as http:
        once.set()
        for stream in streams:
            error = stream.rest()[-1]["error"]
            assert error["code"] == "generation_failed" and "the kernel's own words" in error["message"]
        assert http.get("/health").status_code == 200
        assert http.post("/v1/completions", json=SHORT).status_code == 200
        once.set()
        assert http.post("/v1/completions", json=SHORT).status_code == 500
        assert http.post("/v1/completions", json=SHORT).status_code == 200
    served.wait_idle()
    engine.verify()


@pytest.mark.parametrize("drain_s", [0, 60])
def test_a_signal(path: Path, drain_s: int) -> None:
    """SIGTERM to a process: answers that are under way end by themselves if they may, else with an error event."""
    settings = [f"model={path}", "server.port=0", "server.model_name=tiny", "threads=1", f"server.drain_s={drain_s}"]
    tokens = 3000 if not drain_s else 300
    with ChildServer(settings) as child, httpx.Client(base_url=str(child.target), timeout=60) as http:
        with http.stream("POST", "/v1/completions", json={**ENDLESS, "max_tokens": tokens}) as answer:
            lines = answer.iter_lines()
            next(lines)
            codes: list[int | None] = []
            stopping = threading.Thread(target=lambda: codes.append(child.stop(60)))
            stopping.start()
            said = [line[6:] for line in lines if line.startswith("data: ")]
        stopping.join()
    assert codes == [0]
    if drain_s:
        assert said[-1] == "[DONE]" and json.loads(said[-2])["choices"][0]["finish_reason"] == "length"
    else:
        assert json.loads(said[-1])["error"]["message"] == "the server is shutting down"
