"""The accounts of a soak: what agrees passes, and each single thing that does not is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmcore_tools.load import accounts
from llmcore_tools.load.child_server import Gauge, Memory
from llmcore_tools.load.mixture import CHAT, EMBED, TEXT, Call, Mixture
from llmcore_tools.load.prompts import Span
from llmcore_tools.load.records import Record
from llmcore_tools.load.soak import Exchange, Found, Plan, Sample
from llmcore_tools.load.tally import Choice, Tally

LOST = 8  # tokens of an answer whose client hangs up
PLAN = Plan(Mixture("m", 1024, Span(4, 8), Span(4, LOST), 0.1), clients=4, requests=accounts.WARMED_UP, room=16)
FULL = Record(0.0, 0.0, 0.01, "429", retry_after="1")


def gauge(answers: dict[str, int], tokens: dict[str, int], **values: int) -> Gauge:
    """Numbers of a server that is idle, if nothing else is said."""
    idle = {"num_requests_running": 0, "num_requests_waiting": 0, "num_preemptions_total": 7}
    pages = {"kv_pages": 64, "kv_pages_free": 64, "kv_pages_mismatched": 0}
    return Gauge({**idle, **pages, "generation_tokens_total": sum(tokens.values()), **values}, answers, tokens)


def exchange(call: Call, tokens: int = 0, outcome: str = "ok", text: str = "") -> Exchange:
    """A call whose answers share ``tokens``."""
    tally = Tally()
    tally.usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens} if call.answers else {}
    each = tokens // max(call.answers, 1)
    tally.choices = {i: Choice(text, each if call.logprobs else 0, each, "length") for i in range(call.answers)}
    return Exchange(call, Record(0.0, 0.0, 1.0, outcome), tally)


def refusal(status: str, field: str | None) -> Exchange:
    made = exchange(Call(CHAT, {}, 0, refused=(400, "n")), outcome=status)
    made.tally.error = {"param": field}
    return made


def good() -> Found:
    """Eleven tokens in three answers, one of which nobody saw; and one that was aborted after two tokens."""
    found = Found(gauge({}, {}, num_preemptions_total=0), (9, 9))
    found.exchanges = [
        exchange(Call(CHAT, {}, 2, logprobs=True), 6),
        exchange(Call(TEXT, {}, repeated="0"), 5, text="same"),
        exchange(Call(TEXT, {}, hang_up_s=1.0), outcome="hung up"),
        exchange(Call(TEXT, {}, hang_up_chunks=1), outcome="hung up"),
        exchange(Call(EMBED, {}, 0)),
        refusal("400", "n"),
    ]
    counts = {"length": 3, "stop": 1, "abort": 1}, {"length": 6 + LOST, "stop": 5, "abort": 2}
    found.after = found.end = gauge(*counts)
    found.rejections = [FULL, replace(FULL, outcome="hung up")]
    found.health = [(1.0, 200)]
    found.samples = [Sample(share / 100, Memory(1000 + share // 10, 500)) for share in range(101)]
    found.exit_code = 0
    return found


def failing(found: Found, plan: Plan = PLAN) -> list[str]:
    """The checks that do not hold."""
    return [check.name for check in accounts.checks(plan, found) if not check.ok]


def test_what_agrees() -> None:
    assert failing(good()) == []


def counted(answers: dict[str, int], tokens: dict[str, int], **values: int) -> Callable[[Found], None]:
    """After the load, so much more was counted."""

    def change(found: Found) -> None:
        assert found.after is not None
        sums = [
            {reason: was.get(reason, 0) + more.get(reason, 0) for reason in {**was, **more}}
            for was, more in ((found.after.answers, answers), (found.after.tokens, tokens))
        ]
        found.after = gauge(*sums, **values)

    return change


def last(**values: int) -> Callable[[Found], None]:
    def change(found: Found) -> None:
        assert found.end is not None
        found.end = replace(found.end, values={**found.end.values, **values})

    return change


def added(*exchanges: Exchange) -> Callable[[Found], None]:
    return lambda found: found.exchanges.extend(exchanges)


def said(name: str, value: object) -> Callable[[Found], None]:
    return lambda found: setattr(found, name, value)


def usage(**wrong: int) -> Exchange:
    made = exchange(Call(CHAT, {}, logprobs=True), 0)
    made.tally.usage |= wrong
    return made


TOKENS, CONSERVED = "clients and server count the same tokens", "every generated token is of an answer that ended"
ANSWERED, USAGE = "every call is answered as it must be", "usage is what the answers hold"
PAGES, QUEUE = "nothing is left under way, and all pages are back", "a full queue gets 429 with Retry-After"
STOPPED, SAME = "SIGTERM ends it, and it has said nothing", "the same call has the same answer"
NOTHING: dict[str, int] = {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (counted(NOTHING, {"length": 1}), {TOKENS}),
        (counted(NOTHING, {"stop": -1}), {TOKENS}),
        (counted({"length": 1}, NOTHING), {TOKENS}),  # an answer too many, of no tokens
        (counted({"length": 2}, {"length": 2 * LOST}), {TOKENS}),  # more than hung up
        (counted({"length": -2}, {"length": -2 * LOST}), {TOKENS}),  # fewer than clients saw
        (counted({"length": 1}, {"length": LOST}), set()),  # another one that nobody saw: as many as hung up
        (counted(NOTHING, NOTHING, generation_tokens_total=22), {CONSERVED}),
        (counted({"error": 1}, {"error": 3}), {CONSERVED}),
        (counted(NOTHING, NOTHING, num_preemptions_total=0), {"some requests were preempted"}),
        (added(exchange(Call(CHAT, {}), 0, "500")), {ANSWERED}),
        (added(exchange(Call(CHAT, {}), 0, "error event")), {ANSWERED}),
        (added(exchange(Call(CHAT, {}), 0, "hung up")), {ANSWERED}),
        (added(exchange(Call(CHAT, {}, 0, refused=(400, "n")), 0, "ok")), {ANSWERED}),
        (added(refusal("404", "n")), {ANSWERED}),
        (added(refusal("400", "stop")), {ANSWERED}),
        (added(refusal("400", None)), {ANSWERED}),
        (added(exchange(Call(TEXT, {}, 2), 0)), {TOKENS}),
        (added(usage(completion_tokens=1, total_tokens=4)), {USAGE, TOKENS}),
        (added(usage(total_tokens=9)), {USAGE, TOKENS}),
        (added(exchange(Call(TEXT, {}, repeated="0"), 5, text="other")), {SAME, TOKENS}),
        (last(kv_pages_free=63), {PAGES}),
        (last(kv_pages_mismatched=1), {PAGES}),
        (last(num_requests_waiting=1), {PAGES}),
        (said("descriptors", (9, 10)), {"descriptors are back"}),
        (said("descriptors", (9, 0)), {"descriptors are back"}),
        (said("health", [(1.0, 200), (1.0, 503)]), {"/health always says 200"}),
        (said("health", []), {"/health always says 200"}),
        (said("rejections", [replace(FULL, retry_after="")]), {QUEUE}),
        (said("rejections", [FULL, replace(FULL, outcome="500")]), {QUEUE}),
        (said("rejections", []), {QUEUE}),
        (said("refusals", [replace(FULL, retry_after="soon")]), {QUEUE}),
        (said("exit_code", None), {STOPPED}),
        (said("exit_code", -9), {STOPPED}),
        (said("said", ("Traceback (most recent call last):",)), {STOPPED}),
    ],
)
def test_what_does_not(change: Callable[[Found], None], expected: set[str]) -> None:
    found = good()
    change(found)
    assert set(failing(found)) == expected


def test_answers_that_do_not_come_to_their_end() -> None:
    for choices in ({}, {0: Choice("a", 0, 1, "stop")}, {0: Choice(reason="stop"), 1: Choice(reason="abort")}):
        found = good()
        (broken,) = [each for each in found.exchanges if each.call.answers == 2]
        broken.tally.choices = choices
        assert ANSWERED in failing(found)


def test_chunks_with_text_are_no_more_than_tokens() -> None:
    found = good()
    found.exchanges[1].tally.choices[0].chunks = 6
    assert failing(found) == [USAGE]


@pytest.mark.parametrize(("end", "ok"), [(500, True), (509, True), (511, False)])
def test_memory(end: int, ok: bool) -> None:
    """The median of the last tenth over that of the second; a small soak is not judged."""
    found = good()
    found.samples = [Sample(i / 100, Memory(100 if i < 10 else 500 if i < 90 else end, 0)) for i in range(101)]
    assert failing(found) == ([] if ok else ["resident memory drifts by less than 2 %"])
    assert failing(found, replace(PLAN, requests=40)) == []


def test_metrics_are_read() -> None:
    text = """# HELP llmcore:kv_pages KV pages.
llmcore:kv_pages{model_name="a \\"b\\""} 64.0
llmcore:answer_tokens_total{finished_reason="stop",model_name="m"} 5.0
llmcore:request_success_total{finished_reason="stop",model_name="m"} 2.0
llmcore:request_success_created{finished_reason="stop",model_name="m"} 1.79e+09
python_info 1
"""
    found = Gauge.of(text)
    assert (found.count("kv_pages"), found.answers, found.tokens) == (64, {"stop": 2}, {"stop": 5})
