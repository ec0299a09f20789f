"""The client against a server that plays a script: what arrives when, and each way to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from helpers.stub_server import Reply, Script, Stub, event, stub_server
from llmcore_tools.load.client import Api, Client
from llmcore_tools.load.drive import Pace, drive
from llmcore_tools.load.http import Target
from llmcore_tools.load.prompts import Ask
from llmcore_tools.load.records import Record

ASK = Ask("a prompt", 4)


def sent(
    script: Script | Reply,
    asks: Sequence[Ask] = (ASK,),
    api: Api | None = None,
    pace: Pace | None = None,
) -> tuple[list[Record], Stub]:
    """What comes of ``asks``, one after the other unless ``pace`` says otherwise."""
    play: Script = (lambda index, body: script) if isinstance(script, Reply) else script

    async def run(url: str) -> list[Record]:
        client = Client(Target.of(url, "--url"), api or Api("stub", timeout=20))
        try:
            return await drive(client, asks, pace or Pace(1), 0)
        finally:
            client.close()

    with stub_server(play) as stub:
        return asyncio.run(asyncio.wait_for(run(stub.url), 60)), stub


def test_times_follow_the_script() -> None:
    (record,), stub = sent(Reply((0.1, 0.02, 0.6), usage=(12, 3)))
    assert record.outcome == "ok" and record.ttft is not None and record.tpot is not None
    assert (record.prompt_tokens, record.output_tokens, record.counted) == (12, 3, "usage")
    assert record.ttft >= 0.1, "the role's empty chunk, at once, is no first token"
    assert len(record.gaps) == 2 and record.gaps[0] < record.gaps[1]
    assert record.arrivals[2] - record.sent >= 0.72 and record.e2e >= 0.72
    (body,) = stub.bodies
    assert body["messages"] == [{"role": "user", "content": "a prompt"}]
    assert body["stream"] and body["stream_options"] == {"include_usage": True} and "ignore_eos" not in body
    assert (body["max_tokens"], body["temperature"], body["model"]) == (4, 0, "stub")


def test_completions() -> None:
    (record,), stub = sent(Reply((0.0, 0.0), usage=(5, 2)), api=Api("m", chat=False, ignore_eos=True, key="secret"))
    assert record.outcome == "ok" and len(record.arrivals) == 2
    assert stub.bodies[0]["prompt"] == "a prompt" and stub.bodies[0]["ignore_eos"] is True
    assert stub.heads[0].startswith("POST /v1/completions ") and "Authorization: Bearer secret\r\n" in stub.heads[0]


def test_without_usage_chunks_are_counted() -> None:
    (record,), _ = sent(Reply((0.0,) * 5))
    assert (record.output_tokens, record.counted, record.prompt_tokens) == (5, "chunks", None)


def test_not_streamed() -> None:
    answer = b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 4, "completion_tokens": 9}}'
    (record,), stub = sent(Reply(body=answer), api=Api("m", stream=False))
    assert (record.outcome, record.output_tokens, record.ttft) == ("ok", 9, None)
    assert "stream_options" not in stub.bodies[0]


@pytest.mark.parametrize(
    ("reply", "outcome", "words"),
    [
        (Reply(status="429 Too Many Requests", headers=["Retry-After: 7"], body=b"busy\nnow"), "429", "busy now"),
        (Reply(status="500 Oops", body=b""), "500", ""),
        (Reply(raw=b""), "truncated", "connection ended"),
        (Reply((), raw=b""), "truncated", "connection ended"),
        (Reply(raw=b"0\r\n\r\n"), "truncated", "without finish_reason"),
        (Reply(raw=event("{]")), "malformed", "{]"),
        (Reply(raw=event("[3]")), "malformed", "[3]"),
        (Reply(raw=event('{"choices": [null]}')), "malformed", "a choice is 'None'"),
        (Reply(raw=event('{"error": "full"}')), "error event", "full"),
        (Reply(raw=b"no chunk\r\n"), "malformed", "chunk header"),
        (Reply(body=b"hello"), "malformed", "no completion"),
    ],
)
def test_failures_are_told_apart(reply: Reply, outcome: str, words: str) -> None:
    records, stub = sent(lambda index, body: reply if index == 0 else Reply(usage=(1, 1)), [ASK, ASK])
    assert (records[0].outcome, records[1].outcome) == (outcome, "ok"), records[0].detail
    assert words in records[0].detail and "\n" not in records[0].detail
    assert records[0].retry_after == ("7" if outcome == "429" else "")
    assert len(stub.bodies) == 2, "nothing is sent a second time"


def test_a_server_that_falls_silent() -> None:
    (record,), _ = sent(Reply(hangs=True), api=Api("m", timeout=0.3))
    assert (record.outcome, len(record.arrivals)) == ("timeout", 1)
    assert record.e2e >= 0.3


def test_a_server_that_is_not_there() -> None:
    with stub_server(lambda index, body: Reply()) as stub:
        url = stub.url

    async def ask() -> Record:
        return await Client(Target.of(url, "--url"), Api("m")).ask(ASK)

    assert asyncio.run(ask()).outcome == "no connection"


def test_hanging_up() -> None:
    asks = [replace(ASK, hang_up_after=2), ASK]
    records, stub = sent(Reply((0.02,) * 20, usage=(1, 20)), asks, pace=Pace(2))
    assert [record.outcome for record in records] == ["hung up", "ok"]
    assert len(records[0].arrivals) == 2 and len(records[1].arrivals) == 20
    assert stub.lost == 1, "the server sees it amid its answer"


def test_connections_are_kept() -> None:
    records, stub = sent(Reply(usage=(1, 1)), [ASK] * 10)
    assert len(records) == 10 and stub.connections == 1
    _, stub = sent(Reply(headers=["Connection: close"], usage=(1, 1)), [ASK] * 3)
    assert stub.connections == 3


def test_concurrency_is_a_bound_and_order_is_kept() -> None:
    asks = [Ask(str(number), 1) for number in range(12)]

    def script(index: int, body: dict[str, object]) -> Reply:
        number = int(body["messages"][0]["content"])  # type: ignore[index]
        return Reply((0.03 if number % 4 == 0 else 0.01,), usage=(number, 1))

    records, stub = sent(script, asks, pace=Pace(4))
    assert [record.prompt_tokens for record in records] == list(range(12))
    assert 2 <= stub.at_once <= 4


def test_an_open_loop_does_not_wait_for_answers() -> None:
    records, stub = sent(Reply((1.0,), usage=(1, 1)), [ASK] * 10, pace=Pace(rate=100.0))
    assert {record.outcome for record in records} == {"ok"} and stub.at_once == 10
    dues = Pace(rate=100.0).dues(10, 0)
    assert [record.due - records[0].due for record in records] == pytest.approx(dues)
    assert all(record.sent >= record.due for record in records)
