"""What the server does while it loads, is full, is left alone by a client, or is told to stop."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from helpers.server import running
from helpers.tiny import TinyModel
from llmcore.config.schema import Config, SamplingConfig, ServerConfig
from llmcore.engine.load import EngineSettings
from llmcore.errors import ConfigError
from llmcore.llm import LLM
from llmcore_server.command import api_key, check_unused, listen
from llmcore_server.service import Limits

MakeTiny = Callable[..., TinyModel]
ENDLESS = {"model": "tiny", "prompt": "hi", "max_tokens": 4000, "ignore_eos": True, "stream": True}


@pytest.fixture
def load(tiny_model: MakeTiny) -> Callable[[], LLM]:
    path = tiny_model("llama3", max_position_embeddings=4096).path
    return lambda: LLM(str(path), backend="numba", threads=1, engine=EngineSettings(max_seqs=4))


def events(lines: Any) -> list[Any]:
    """The data of server-sent events."""
    return [line[6:] if "[DONE]" in line else json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_while_the_model_loads(load: Callable[[], LLM]) -> None:
    gate = threading.Event()

    def slowly() -> LLM:
        gate.wait()
        return load()

    with running(slowly, wait=False) as served, served.http() as http:
        assert (http.get("/health").status_code, http.get("/health").json()) == (503, {"status": "loading"})
        answer = http.post("/v1/completions", json={**ENDLESS, "stream": False, "max_tokens": 1})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert http.get("/version").status_code == 200
        gate.set()
        served.wait_for("ready")
        assert http.post("/v1/completions", json={**ENDLESS, "stream": False, "max_tokens": 1}).status_code == 200


def test_a_key(load: Callable[[], LLM]) -> None:
    with running(load, Limits(api_key="secret")) as served, served.http() as http:
        assert http.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/version"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers={"Authorization": "Bearer secre"}).status_code == 401
            assert http.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").models.list()
        assert next(iter(served.client("secret").models.list())).id == "tiny"


def test_too_many_and_too_much(load: Callable[[], LLM]) -> None:
    with running(load, Limits(waiting=3, body_bytes=1000)) as served, served.http() as http:
        with http.stream("POST", "/v1/completions", json={**ENDLESS, "n": 3}) as stream:
            pieces = stream.iter_bytes()  # the stream lives as long as its iterator
            next(pieces)
            with served.http() as other:
                full = other.post("/v1/completions", json=ENDLESS)
                assert full.status_code == 429
                assert int(full.headers["retry-after"]) > 0
                assert full.json()["error"]["code"] == "queue_full"
                assert other.get("/health").status_code == 200
        served.wait_idle()
        never = http.post("/v1/completions", json={**ENDLESS, "n": 4})
        assert never.status_code == 400  # it would not help to try again
        for content in (b"x" * 2000, (b"x" * 100 for _ in range(20))):
            assert http.post("/v1/completions", content=content).status_code == 413
        assert http.post("/v1/completions", json={**ENDLESS, "stream": False, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_everything(load: Callable[[], LLM], stream: bool) -> None:
    with running(load) as served:
        pool = served.service.loaded.llm.engine.scheduler.pool
        free = pool.free
        for _ in range(3):
            with served.http() as http:
                if stream:
                    with http.stream("POST", "/v1/completions", json={**ENDLESS, "n": 2}) as answer:
                        next(answer.iter_bytes())
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        http.post("/v1/completions", json={**ENDLESS, "stream": False, "n": 4}, timeout=0.05)
        served.wait_idle()
        assert pool.free == free


def test_told_to_stop_it_answers_what_is_under_way(load: Callable[[], LLM]) -> None:
    with running(load, drain_s=60) as served, served.http() as http:
        with http.stream("POST", "/v1/completions", json={**ENDLESS, "max_tokens": 400}) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.loop.call_soon_threadsafe(served.server.leave)
            while served.service.state != "draining":
                threading.Event().wait(0.01)
            said = events(lines)
        assert said[-1] == "[DONE]"
        assert said[-2]["choices"][0]["finish_reason"] == "length"


def test_what_does_not_end_in_time_ends_with_an_error(load: Callable[[], LLM]) -> None:
    with running(load, drain_s=0) as served, served.http() as http:
        with http.stream("POST", "/v1/completions", json={**ENDLESS, "n": 2}) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.loop.call_soon_threadsafe(served.server.leave)
            said = events(lines)
        assert said[-1]["error"]["message"] == "the server is shutting down"


def test_an_engine_that_dies_is_told_by_the_health_check(
    load: Callable[[], LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(load) as served, served.http() as http:
        engine = served.service.loaded.llm.engine
        monkeypatch.setattr(engine, "step", lambda: (_ for _ in ()).throw(MemoryError("no more")))
        answer = http.post("/v1/completions", json={**ENDLESS, "stream": False})
        assert answer.status_code == 500
        assert "no more" in answer.json()["error"]["message"]
        served.wait_for("failed")
        assert http.get("/health").status_code == 503
        assert http.post("/v1/completions", json=ENDLESS).status_code == 503


def test_metrics(load: Callable[[], LLM]) -> None:
    with running(load) as served, served.http() as http:
        http.post("/v1/completions", json={**ENDLESS, "stream": False, "max_tokens": 5})
        lines = http.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['llmcore:generation_tokens_total{model_name="tiny"}'] == "5.0"
    assert values['llmcore:request_success_total{finished_reason="length",model_name="tiny"}'] == "1.0"
    assert values['llmcore:time_to_first_token_seconds_count{model_name="tiny"}'] == "1.0"
    assert values['llmcore:inter_token_latency_seconds_count{model_name="tiny"}'] == "4.0"
    assert values['llmcore:num_requests_running{model_name="tiny"}'] == "0.0"


def test_an_address_that_others_reach_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMCORE_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org"):
        with pytest.raises(ConfigError, match="LLMCORE_API_KEY"):
            api_key(ServerConfig(host=host))
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert api_key(ServerConfig(host=host)) == ""
    monkeypatch.setenv("LLMCORE_API_KEY", "secret")
    assert api_key(ServerConfig(host="0.0.0.0")) == "secret"


def test_settings_of_answers_are_refused() -> None:
    check_unused(Config())
    for config in (Config(sampling=SamplingConfig(temperature=0.5)), Config(max_new_tokens=5), Config(seed=1)):
        with pytest.raises(ConfigError, match="each request says"):
            check_unused(config)


def test_a_port_that_is_taken() -> None:
    with listen(ServerConfig(port=0)) as taken, pytest.raises(ConfigError, match="another port"):
        listen(ServerConfig(port=taken.getsockname()[1]))


def test_no_piece_of_an_answer_waits_for_another_one_to_be_acknowledged() -> None:
    with (
        listen(ServerConfig(port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_told_to_stop_while_a_request_is_made_ready(load: Callable[[], LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    with running(load, drain_s=60) as served, served.http() as http:
        llm = served.service.loaded.llm
        encode = llm.chat_ids
        monkeypatch.setattr(llm, "chat_ids", lambda *given, **named: (gate.wait(), encode(*given, **named))[1])
        answers: list[httpx.Response] = []
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "ignore_eos": True}
        asking = threading.Thread(target=lambda: answers.append(http.post("/v1/chat/completions", json=body)))
        asking.start()
        while not served.service._preparing:
            threading.Event().wait(0.01)
        served.loop.call_soon_threadsafe(served.server.leave)
        while served.service.state != "draining":
            threading.Event().wait(0.01)
        gate.set()
        asking.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["choices"][0]["finish_reason"] == "length"


def test_other_sites_and_long_headers(load: Callable[[], LLM]) -> None:
    with running(load) as served, served.http() as http:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
            assert http.get("/v1/models", headers=headers).status_code == 403
        for headers in ({"Host": "localhost:1"}, {"Origin": served.url}, {"Host": "[::1]:80"}):
            assert http.get("/v1/models", headers=headers).status_code == 200
        assert http.get("/v1/models", headers={"X": "y" * 60_000, "Z": "y" * 6_000}).status_code in (400, 431)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [{}] * 300_000},
        {"prompt": [["", ""]] * 300_000},
        {"prompt": [1] * 300_000},
        {"prompt": "a" * 3_000_000},
        {f"field {i}": i for i in range(100_000)},
        {"prompt": "a", "logit_bias": {str(i): 1000 for i in range(100_000)}},
    ],
    ids=range(6),
)
def test_much_that_is_wrong(load: Callable[[], LLM], body: dict[str, Any]) -> None:
    with running(load) as served, served.http() as http:
        answer = http.post("/v1/completions", json={"model": "tiny", "max_tokens": 1, **body})
        assert answer.status_code == 400
        assert len(answer.content) < 1000
