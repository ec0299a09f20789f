"""Bodies that nobody would write: never a 5xx, errors in OpenAI's shape, and the next request is answered as ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.server import Running, running
from helpers.tiny import TinyModel
from llmcore.engine.load import EngineSettings
from llmcore.llm import LLM
from llmcore_server.app import make_app
from llmcore_server.fields import ChatFields, CompletionFields, DetokenizeFields, EmbeddingFields, TokenizeFields

MakeTiny = Callable[..., TinyModel]
MESSAGES = '[{"role": "user", "content": "hi"}]'
BASES: dict[str, tuple[Any, dict[str, str]]] = {
    "/v1/chat/completions": (ChatFields, {"model": '"tiny"', "messages": MESSAGES, "max_tokens": "2"}),
    "/v1/completions": (CompletionFields, {"model": '"tiny"', "prompt": '"hi"', "max_tokens": "2"}),
    "/v1/embeddings": (EmbeddingFields, {"model": '"tiny"', "input": '"hi"'}),
    "/tokenize": (TokenizeFields, {"prompt": '"hi"'}),
    "/detokenize": (DetokenizeFields, {"tokens": "[1, 2]"}),
}
GOOD = '{"model": "tiny", "prompt": "the next one", "max_tokens": 3, "temperature": 0, "ignore_eos": true}'

ODD = [
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "1e-999",
        "-0",
        "-0.0",
        "1.0",
        "00",
        "+1",
        "0x1",
        "1_000",
        "1.",
    ),
    *("9" * 400, "-" + "9" * 400, "1" + "0" * 5000, str(2**31), str(2**63), str(2**64), str(-(2**63)), "1e308"),
    *(
        "null",
        "true",
        "false",
        "[]",
        "{}",
        '""',
        "[[]]",
        "[{}]",
        "[null]",
        '{"": null}',
        "[0]",
        '[""]',
        "0",
        "-1",
        "0.5",
    ),
    *(
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\u0000"',
        '"\x00"',
        '"\n"',
        '"\\x"',
        '"open',
        "'text'",
        '"\\uFFFF\\uFFFE"',
        '"🙂"',
    ),
    *("[" * 30 + "]" * 30, "[" * 200 + "]" * 200, '{"a":' * 150 + "1" + "}" * 150, "[" * 5000, '[{"type": "text"}]'),
    *(
        '{"type": "text"}',
        '{"type": "json_object"}',
        '{"type": "regex", "regex": "[ab]{2}"}',
        '{"type": "regex", "regex": "["}',
    ),
    *('{"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {"a": {"$ref": "#"}}}}}',),
    *('{"1": 5}', '{"1": "5"}', '{"300": 1}', '{"-1": 0}', '{"99999999999": 1}', '{"1": NaN}', '["a", 1]', '[1, "a"]'),
    *('[{"role": "user", "content": "\\ud800"}]', '[{"role": "user", "content": [{"type": "text", "text": "a"}]}]'),
    *('[{"role": "tool", "content": ""}]', '[{"role": "assistant", "content": null, "tool_calls": []}]', "/* */ 1", ""),
]
"""JSON texts, and what is none."""


def plain() -> st.SearchStrategy[str]:
    """Any JSON."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    grown = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    )
    return grown.map(json.dumps)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path and a body: a good one with odd values, fields twice, unknown fields, or bytes that are damaged."""
    path = draw(st.sampled_from(list(BASES)))
    kind, base = BASES[path]
    fields = list(base.items())
    names = st.sampled_from(sorted(kind.model_fields)) | st.sampled_from(
        ["temprature", "", "\x00", "__class__", "self"]
    )
    for name, value in draw(st.lists(st.tuples(names, st.sampled_from(ODD) | plain()), max_size=4)):
        kept = [pair for pair in fields if pair[0] != name] if draw(st.booleans()) else fields
        fields = [*kept, (name, value)]
    body = ("{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields) + "}").encode(
        "utf-8", "surrogatepass"
    )
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]
    return path, body


@dataclass
class Asker:
    """Asks the application itself, in its own event loop."""

    served: Running
    client: httpx.AsyncClient

    def post(self, path: str, body: bytes | str) -> httpx.Response:
        asked = self.client.post(path, content=body, headers={"content-type": "application/json"})
        return asyncio.run_coroutine_threadsafe(asked, self.served.loop).result(60)


@pytest.fixture(scope="module")
def asker(tiny_model: MakeTiny) -> Iterator[Asker]:
    path = tiny_model("llama3").path

    def load() -> LLM:
        return LLM(str(path), backend="numba", threads=1, engine=EngineSettings(max_seqs=4))

    with running(load) as served:
        transport = httpx.ASGITransport(make_app(served.service))
        yield Asker(served, httpx.AsyncClient(transport=transport, base_url="http://localhost"))


@pytest.fixture(scope="module")
def expected(asker: Asker) -> str:
    return text_of(asker.post("/v1/completions", GOOD))


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["text"])


def check(answer: httpx.Response) -> None:
    """An answer, or an error that says what is wrong."""
    assert answer.status_code < 500, answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [line[6:] for line in answer.text.split("\n\n") if line]
        assert events[-1] == "[DONE]" or "error" in json.loads(events[-1])
        assert not any('"type":"server_error"' in event for event in events)
        return
    found = json.loads(answer.content.decode(), parse_constant=pytest.fail)
    if answer.status_code != 200:
        assert set(found) == {"error"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert isinstance(found["error"]["message"], str) and found["error"]["message"]
        assert isinstance(found["error"]["type"], str)
        assert len(answer.content) < 4000


@pytest.mark.parametrize("examples", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_body(asker: Asker, expected: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(requests())
    def ask(request: tuple[str, bytes]) -> None:
        check(asker.post(*request))
        assert text_of(asker.post("/v1/completions", GOOD)) == expected

    ask()


@pytest.mark.parametrize("path", BASES)
def test_each_odd_value_in_each_field(asker: Asker, expected: str, path: str) -> None:
    """Every third pair, by turns from path to path."""
    kind, base = BASES[path]
    pairs = [(name, value) for name in kind.model_fields for value in ODD]
    for name, value in pairs[list(BASES).index(path) % 3 :: 3]:
        fields = {**base, name: value}
        body = "{" + ", ".join(f'"{key}": {each}' for key, each in fields.items()) + "}"
        check(asker.post(path, body.encode()))
    assert text_of(asker.post("/v1/completions", GOOD)) == expected
