"""Figures from made-up events: nothing here takes time."""

from __future__ import annotations

import pytest

from llmcore_tools.load.metrics import Slo, Spread, summarize
from llmcore_tools.load.records import HUNG_UP, Record


def streamed(sent: float, arrivals: tuple[float, ...], tokens: int | None, prompt: int | None = 10) -> Record:
    """A complete answer that ends with its last chunk."""
    return Record(sent, sent, arrivals[-1], "ok", arrivals, prompt, tokens, "usage")


def test_one_request() -> None:
    record = streamed(1.0, (1.5, 1.6, 1.9), 5)
    assert record.ttft == 0.5 and record.e2e == pytest.approx(0.9)
    assert record.tpot == pytest.approx(0.4 / 4), "tokens, not chunks: the last chunks hold two each"
    assert record.gaps == pytest.approx([0.1, 0.3])


def test_a_single_token_has_no_rate() -> None:
    assert streamed(0.0, (0.5,), 1).tpot is None
    assert streamed(0.0, (0.5,), 3).tpot is None, "one chunk has no duration"
    assert Record(0.0, 0.0, 1.0).ttft is None


def test_spread() -> None:
    found = Spread.of([0.001 * i for i in range(1, 101)] + [None])
    assert found is not None and found.count == 100
    assert (found.mean, found.median, found.p99) == pytest.approx((50.5, 50.5, 99.01))
    assert Spread.of([None]) is None


def test_throughput_and_latencies() -> None:
    found = summarize(
        [
            streamed(10.0, (10.1, 10.2), 2),
            streamed(10.5, (10.8, 11.0, 12.0), 3, prompt=20),
            Record(11.0, 11.25, 11.5, "429"),
            Record(11.0, 11.0, 11.5, "429"),
            Record(11.0, 11.0, 14.0, "truncated", (13.0,), None, 1, "chunks"),
            Record(11.0, 11.0, 11.5, HUNG_UP, (11.2,), None, 1, "chunks"),
        ],
        Slo(),
        busy=0.5,
    )
    assert (found.requests, found.completed, found.hung_up) == (6, 2, 1)
    assert found.errors == {"429": 2, "truncated": 1}
    assert found.duration == 4.0, "from the first sent to the last end, failures included"
    assert (found.output_tokens, found.prompt_tokens) == (5, 30)
    assert (found.requests_per_s, found.output_per_s, found.total_per_s) == (0.5, 1.25, 35 / 4)
    assert found.late == 0.25 and found.busy == 0.5 and found.good is None and found.good_share is None
    ttft, itl = found.latencies["ttft"], found.latencies["itl"]
    assert ttft is not None and itl is not None
    assert (ttft.mean, ttft.median, ttft.count) == (pytest.approx(200), pytest.approx(200), 2)
    assert itl.count == 3 and itl.median == pytest.approx(200)


def test_goodput() -> None:
    records = [
        streamed(0.0, (0.1, 0.2), 2),
        streamed(0.0, (0.5, 0.6), 2),  # too late
        streamed(0.0, (0.1, 1.0), 2),  # too slow
        streamed(0.0, (0.1,), 1),  # no time per token to exceed
        Record(0.0, 0.0, 2.0, "500"),
        Record(0.0, 0.0, 2.0, HUNG_UP, (0.1,)),
    ]
    found = summarize(records, Slo(ttft=0.2, tpot=0.15))
    assert found.good == 2 and found.good_share == pytest.approx(2 / 5), "errors are not good; hang-ups do not count"
    assert found.as_json()["goodput"] == {"share": pytest.approx(0.4), "requests_per_s": 1.0}
    assert summarize(records, Slo(tpot=0.15)).good == 3
    assert summarize(records, Slo(ttft=0.2)).good == 3


def test_counts_that_nobody_gave() -> None:
    found = summarize([Record(0.0, 0.0, 1.0, "ok", (0.5,), None, 1, "chunks"), Record(0.0, 0.0, 1.0)], Slo())
    assert found.counted == {"chunks": 1, "nothing": 1}
    assert found.prompt_tokens is None and found.total_per_s is None and found.output_tokens == 1


def test_nothing_at_all() -> None:
    found = summarize([], Slo(ttft=1.0))
    assert found.as_json()["ttft_ms"] is None and found.good_share is None and found.output_per_s == 0
