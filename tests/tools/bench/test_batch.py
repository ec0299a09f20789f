"""``llmcore bench batch`` on a tiny model: the same tokens three ways, in fewer and fewer steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore.engine.load import EngineSettings
from llmcore.llm import LLM
from llmcore_tools.bench import batch
from llmcore_tools.bench.batch import Ask, Sample

MakeTiny = Callable[..., TinyModel]


def test_the_workloads() -> None:
    eighths, mixed = batch.asks("eighths"), batch.asks("mixed")
    assert [ask.new for ask in eighths[:9]] == [100, *[10] * 7, 100]
    assert (len(eighths), sum(ask.new for ask in eighths)) == (32, 4 * 100 + 28 * 10)
    assert len(mixed) == 128 and mixed == batch.asks("mixed") and len({ask.new for ask in mixed}) > 20


def test_slots() -> None:
    assert Sample(1.0, 10, 40).slots_used(8) == 0.5


def test_steps_of_each_way(tiny_model: MakeTiny) -> None:
    llm = LLM(str(tiny_model("llama3").path), backend="torch", threads=1, engine=EngineSettings(max_seqs=2))
    work = [Ask(3, 8), Ask(3, 2), Ask(3, 2), Ask(3, 2)]
    try:
        found = {size: batch.sample(llm, work, size, np.random.default_rng(0)) for size in (4, 2, 1)}
        assert not llm.engine.busy
    finally:
        llm.close()
    assert {sample.tokens for sample in found.values()} == {14}
    assert [found[size].steps for size in (4, 2, 1)] == [8, 10, 14]


def test_json(tiny_model: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(batch, "asks", lambda name: [Ask(4, 10 if index % 4 else 20) for index in range(8)])
    flags = ["--batch", "4", "--repeats", "2", "--only", "eighths", "--json"]
    assert main(["bench", "batch", str(tiny_model("llama3").path), "backend=torch", "threads=1", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["suite"] == "batch" and found["results"]["batch"] == 4
    work = found["results"]["workloads"]["eighths"]
    assert (work["requests"], work["output_tokens"]) == (8, 100)
    ways = work["ways"]
    assert list(ways) == ["continuous", "static", "single"]
    assert ways["static"]["steps"] == [40, 40] and ways["single"]["steps"] == [100, 100]
    assert ways["continuous"]["steps"][0] < 40
    assert ways["static"]["slots_used"] == [100 / 160] * 2
    assert len(ways["single"]["tokens_per_s"]["samples"]) == 2


def test_text(tiny_model: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(batch, "asks", lambda name: [Ask(4, 2), Ask(5, 3)])
    argv = ["bench", "batch", str(tiny_model("qwen3").path), "backend=torch", "threads=1", "--repeats", "1"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "continuous batching" in shown and "one by one" in shown and "2 to 3 tokens after prompts of 4 to 5" in shown


def test_a_context_too_short(tiny_model: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "batch", str(tiny_model("llama3").path), "backend=torch", "threads=1"]) == 2
    assert "do not fit the context of 64" in capsys.readouterr().err
