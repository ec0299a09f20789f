"""Forms of answers that ask for too much, make no sense or allow nothing: never a 5xx, never a hang, others go on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from helpers.hostile import HOSTILE
from helpers.server import Running, running
from helpers.tiny import TinyModel
from llmcore.engine.load import EngineSettings
from llmcore.llm import LLM
from llmcore.text.constraint import Matcher

pytest.importorskip("llguidance", reason="answers of a given form need llguidance")

MakeTiny = Callable[..., TinyModel]
GOOD = {"model": "tiny", "prompt": "the next one", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
PATIENCE_S = 30


@pytest.fixture(scope="module")
def served(tiny_model: MakeTiny) -> Iterator[Running]:
    path = tiny_model("llama3").path

    def load() -> LLM:
        return LLM(str(path), backend="numba", threads=1, engine=EngineSettings(max_seqs=4))

    with running(load) as server:
        yield server


@pytest.fixture(scope="module")
def expected(served: Running) -> str:
    return answered(served)


def answered(served: Running) -> str:
    with served.http() as http:
        return str(http.post("/v1/completions", json=GOOD).json()["choices"][0]["text"])


def asked(kind: str, text: str, *, chat: bool = False) -> bytes:
    """A body whose form is ``text``, as it is where it is a schema."""
    if kind == "json_schema":
        form = f'{{"type": "json_schema", "json_schema": {{"schema": {text}}}}}'
    else:
        name = "grammar" if kind == "lark" else kind
        form = json.dumps({"type": name, name: text})
    prompt = '"messages": [{"role": "user", "content": "hi"}]' if chat else '"prompt": "hi"'
    return f'{{"model": "tiny", {prompt}, "max_tokens": 8, "response_format": {form}}}'.encode()


def check(answer: httpx.Response) -> None:
    assert answer.status_code in (200, 400, 429), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
    assert (answer.status_code == 429) == ("retry-after" in answer.headers)


def test_there_are_many() -> None:
    assert len({(kind, text) for kind, _, text in HOSTILE}) >= 40


def test_all_at_once(served: Running, expected: str) -> None:
    """What is new waits in its lane, or is told to come again; all other requests are answered as ever."""

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S, limits=limits) as http:
            asking = [
                asyncio.create_task(http.post("/v1/completions", content=asked(kind, text)))
                for kind, _, text in HOSTILE
            ]
            await asyncio.sleep(0.3)
            begun = time.monotonic()
            chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
            assert (await http.post("/v1/chat/completions", json=chat)).status_code == 200
            assert (await http.post("/v1/completions", json=GOOD)).json()["choices"][0]["text"] == expected
            assert time.monotonic() - begun < 5
            return list(await asyncio.gather(*asking))

    answers = asyncio.run(ask())
    for answer in answers:
        check(answer)
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(429) > 20 and statuses.count(400) > 5
    assert answered(served) == expected


@pytest.mark.parametrize("stream", [True, False])
def test_rules_that_leave_no_answer(served: Running, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's doing, not ours: no 5xx, after which clients ask again."""
    body = {**GOOD, "stream": stream, "response_format": {"type": "regex", "regex": "[a-c]{20}"}}
    monkeypatch.setattr(Matcher, "_look", broken(Matcher._look))
    with served.http() as http:
        answer = http.post("/v1/completions", json={**body, "max_tokens": 8})
    if stream:
        said = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
    else:
        assert answer.status_code == 400
        said = answer.json()
    assert (said["error"]["type"], said["error"]["code"]) == ("invalid_request_error", "unanswerable")
    assert "too much" in said["error"]["message"]


def broken(look: Callable[[Matcher], None]) -> Callable[[Matcher], None]:
    """Gives up when it looks for the second time at an answer that has begun."""

    def looks(matcher: Matcher) -> None:
        look(matcher)
        matcher.looks = getattr(matcher, "looks", 0) + 1
        if matcher.looks > 2:
            matcher.error = "too much"
            matcher.allowed[:] = False

    return looks


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "text"), HOSTILE, ids=[f"{kind}-{name}" for kind, name, _ in HOSTILE])
def test_one_by_one(served: Running, expected: str, kind: str, name: str, text: str) -> None:
    chat = len(name) % 2 == 0
    with served.http() as http:
        path = "/v1/chat/completions" if chat else "/v1/completions"
        answer = http.post(path, content=asked(kind, text, chat=chat), timeout=PATIENCE_S)
    check(answer)
    assert answer.status_code != 429
    assert answered(served) == expected
