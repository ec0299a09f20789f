"""``llmcore explain``: every node with its reason; layers that run alike on one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.fake_llm import FakeLLM, row
from llmcore.cli import explain
from llmcore.cli.main import main


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    fake = FakeLLM()
    monkeypatch.setattr(explain, "load", lambda _: fake)
    return fake


def test_text(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "/models/x", "--tokens", "5"]) == 0
    shown = capsys.readouterr().out
    assert "/models/x: a step of 5 tokens, 4 nodes" in shown
    assert shown.count("up_proj") == 1 and "model.layers.{0-2}.mlp.up_proj" in shown
    assert "backend.ops.linear=torch" in shown
    assert "1,000 bytes; largest live set 900; without sharing 3,000" in shown
    assert "3 native, 1 calls" in shown
    assert "KV cache  float32 (plain v1): 512 bytes a token, 10 pages of 16 tokens" in shown
    assert llm.closed


def test_full(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "--full"])
    assert capsys.readouterr().out.count("up_proj") == 3


def test_json(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--json", "model=/models/x"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert len(found["nodes"]) == 4
    assert set(found["nodes"][3]) >= {"op", "path", "backend", "kernel", "abi", "reason"}
    assert found["plan"] == {"arena_bytes": 1000, "lower_bound": 900, "total_bytes": 3000, "reuse_factor": 3.0}
    cache = {"dtype": "float32", "layout": "plain v1", "pages": 10, "page_size": 16, "token_bytes": 512}
    assert found["kv_cache"] == cache
    assert found["segments"] == [{"kind": "native", "nodes": 3}, {"kind": "calls", "nodes": 1}]


@pytest.mark.parametrize("tokens", ["0", "-1", "x", "1.5", ""])
def test_tokens_must_be_a_count(tokens: str, llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--tokens", tokens]) == 2
    assert "--tokens is" in capsys.readouterr().err


def test_folding_keeps_what_differs_and_the_order() -> None:
    rows = [row("a", "layers.0"), row("b", "layers.0"), row("a", "layers.1", reason="other"), row("a", "layers.2")]
    folded = explain.folded(rows)
    assert [(line[0], line[1], line[5]) for line in folded] == [
        ("a", "layers.{0,2}", "choice 1 of 2"),
        ("b", "layers.0", "choice 1 of 2"),
        ("a", "layers.1", "other"),
    ]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "3"), ([0, 1, 2], "{0-2}"), ([2, 0], "{0,2}"), ([0, 1, 4, 5, 9], "{0-1,4-5,9}"), ([1, 1], "1")],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert explain.ranges(numbers) == text
