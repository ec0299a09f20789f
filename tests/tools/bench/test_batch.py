"""``llmcore bench batch`` on a tiny model: the same tokens in every way, counted right; every goal can be missed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore.engine.load import EngineSettings
from llmcore.errors import ConfigError, GenerationError
from llmcore.llm import LLM
from llmcore_tools.bench import batch, batch_report, batch_run
from llmcore_tools.bench.batch_goals import Goal, table
from llmcore_tools.bench.batch_run import WAYS, Ask, Sample, drive, eighths, mixed
from llmcore_tools.bench.batch_shared import Shared

MakeTiny = Callable[..., TinyModel]
WORK = [Ask(3, 8), Ask(3, 2), Ask(3, 2), Ask(3, 2)]


@pytest.fixture
def llm(tiny_model: MakeTiny) -> Iterator[LLM]:
    loaded = LLM(str(tiny_model("llama3").path), backend="torch", threads=1, engine=EngineSettings(max_seqs=4))
    yield loaded
    assert not loaded.engine.busy
    loaded.close()


def every_way(llm: LLM, work: list[Ask] = WORK, size: int = 2) -> dict[str, Sample]:
    rng = np.random.default_rng(0)
    return {name: batch.sample(llm, work, way, size, rng) for name, way in WAYS.items()}


def test_the_workloads() -> None:
    assert [ask.new for ask in eighths()[:9]] == [100, *[10] * 7, 100]
    assert (len(eighths()), sum(ask.new for ask in eighths())) == (32, 4 * 100 + 28 * 10)
    assert not any(ask.at for ask in eighths())
    found = mixed(100)
    assert len(found) == 128 and found == mixed(100) and len({ask.new for ask in found}) > 20
    arrivals = [ask.at for ask in found]
    assert arrivals == sorted(set(arrivals)) and arrivals[0] == 0 and arrivals[-1] == pytest.approx(1.27, rel=0.3)
    assert [ask.at for ask in mixed(200)] == pytest.approx([at / 2 for at in arrivals])


def test_lengths_can_be_chosen() -> None:
    given = {"--prompt-tokens": "5", "--output-tokens": "20..30"}
    found = batch.asks("mixed", 100, given)
    assert {ask.prompt for ask in found} == {5}
    assert {ask.new for ask in found} == set(range(20, 31))
    assert batch.asks("mixed", 100, {}) == mixed(100)
    with pytest.raises(ConfigError, match="--output-tokens"):
        batch.asks("mixed", 100, {"--output-tokens": "30..20"})


def test_lengths_of_a_workload_that_does_not_run_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "batch", "--only", "eighths", "--prompt-tokens", "5"]) == 2
    assert "--prompt-tokens is of mixed" in capsys.readouterr().err


def test_slots() -> None:
    sample = Sample(1.0, 40, (8, 8, 4, 0), (True, True, False, False))
    assert sample.steps == 4
    assert sample.slots_used(8) == 20 / 32
    assert sample.slots_used_while_waiting(8) == 1.0
    assert replace(sample, waited=(False,) * 4).slots_used_while_waiting(8) is None


def test_steps_and_slots_of_each_way(llm: LLM) -> None:
    found = every_way(llm)
    assert {sample.tokens for sample in found.values()} == {14}
    steps = {"continuous": 8, "static_to_longest": 10, "static_rows_out": 10, "single": 14}
    assert {name: sample.steps for name, sample in found.items()} == steps
    assert {sum(sample.used) for sample in found.values()} == {14}, "a row that has all it asked for uses no slot"
    assert found["continuous"].used == (2, 2, 2, 2, 2, 2, 1, 1)
    assert found["continuous"].waited == (True,) * 5 + (False,) * 3  # the last of them was let in by the fifth
    assert found["static_to_longest"].used == (2, 2, 1, 1, 1, 1, 1, 1, 2, 2)
    assert found["static_to_longest"].waited == (True,) * 9 + (False,)
    assert found["single"].slots_used_while_waiting(2) == 0.5


def test_static_batching_computes_every_row_to_the_longest_one_s_end(llm: LLM) -> None:
    rows = {}
    for name in ("static_to_longest", "static_rows_out"):
        before = llm.engine.counters.computed
        assert batch.sample(llm, WORK[:2], WAYS[name], 2, np.random.default_rng(0)).tokens == 10
        rows[name] = llm.engine.counters.computed - before
    assert rows == {"static_to_longest": 2 * (3 + 7), "static_rows_out": 3 + 7 + 3 + 1}


def test_a_part_of_a_prompt_uses_a_slot(tiny_model: MakeTiny) -> None:
    sizes = EngineSettings(max_seqs=2, max_batch_tokens=4)
    llm = LLM(str(tiny_model("llama3").path), backend="torch", threads=1, engine=sizes)
    found = batch.sample(llm, [Ask(10, 2), Ask(2, 1)], WAYS["continuous"], 2, np.random.default_rng(0))
    llm.close()
    assert found.used == (1, 1, 2, 1)  # 4 of 10; 4; 2 and the other one's 2; a token
    assert found.waited == (True, True, True, False)


class Clock:
    """Time passes where somebody sleeps, and by a second a step."""

    def __init__(self, llm: LLM) -> None:
        self.counters = llm.engine.counters
        self.slept = -float(self.counters.steps)

    def perf_counter(self) -> float:
        return self.slept + self.counters.steps

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


def test_arrivals(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not arrived waits for nothing, and is waited for where there is nothing else to do."""
    work = [Ask(3, 2), Ask(3, 3, at=5), Ask(3, 2, at=6)]
    used = {}
    for name, way in WAYS.items():
        monkeypatch.setattr(batch_run, "time", Clock(llm))
        found = batch.sample(llm, work, way, 2, np.random.default_rng(0))
        used[name] = found.used, found.waited
        assert found.seconds == (8 if name == "continuous" else 10)
    assert used["continuous"] == ((1, 1, 1, 2, 2), (True, False, True, True, False))
    alone = (1, 1, 1, 1, 1, 1, 1), (True, False, True, True, True, True, False)
    assert used["single"] == used["static_rows_out"] == used["static_to_longest"] == alone


def test_requests_that_end_too_soon_are_no_result(llm: LLM) -> None:
    with pytest.raises(GenerationError, match="after 44 of 50 tokens"):  # the context ends
        drive(llm.engine, [Ask(20, 50)], [[1] * 20], WAYS["continuous"], 2)


def test_goals_can_be_missed() -> None:
    full, half = Sample(1.0, 90, (8, 8), (True, True)), Sample(1.0, 30, (8, 4), (True, True))
    assert [goal.met for goal in batch_report.goals("mixed", {"continuous": [full], "single": [half]}, 8)] == [
        True,
        True,
    ]
    slow = replace(half, tokens=31)
    used, ratio = batch_report.goals("mixed", {"continuous": [replace(half, tokens=90)], "single": [slow]}, 8)
    assert (used.met, used.found) == (False, 75) and (ratio.met, ratio.found) == (False, pytest.approx(90 / 31))
    nobody = replace(full, waited=(False, False))
    eighths = {"continuous": [full, nobody], "static_rows_out": [replace(full, tokens=60)] * 2}
    unused, static = batch_report.goals("eighths", eighths, 8)
    assert unused.found is None and not unused.met
    assert (static.found, static.least, static.met) == (1.5, 1.7, False)
    assert not Goal("", 1, float("nan"), "×").met
    assert [row[2:] for row in table([unused, ratio]).rows] == [("", "no"), ("2.90×", "no")]


SMALL = Shared(requests=6, prefix=32, own=4, new=3)


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    work = {"eighths": [Ask(4, 10 if i % 4 else 20) for i in range(8)], "mixed": [Ask(4, 2), Ask(5, 3, at=0.01)]}
    monkeypatch.setattr(batch, "asks", lambda name, rate, given: work[name])
    monkeypatch.setattr(batch, "SHARED", SMALL)


def test_json(tiny_model: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small(monkeypatch)
    flags = ["--batch", "4", "--repeats", "2", "--only", "eighths", "--json"]
    assert main(["bench", "batch", str(tiny_model("llama3").path), "backend=torch", "threads=1", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["suite"] == "batch" and list(found["results"]["workloads"]) == ["eighths"]
    work = found["results"]["workloads"]["eighths"]
    assert (work["batch"], work["requests"], work["output_tokens"], work["last_arrival_s"]) == (4, 8, 100, 0)
    ways = work["ways"]
    assert list(ways) == ["continuous", "static_to_longest", "static_rows_out", "single"]
    assert ways["static_to_longest"]["steps"] == ways["static_rows_out"]["steps"] == [40, 40]
    assert ways["single"]["steps"] == [100, 100]
    assert ways["continuous"]["steps"][0] < 40
    assert ways["static_to_longest"]["slots"]["used"] == [100 / 160] * 2
    assert len(ways["single"]["tokens_per_s"]["samples"]) == 2
    goal, static = found["results"]["goals"]
    assert static["name"] == "eighths: tokens per second over static batching, ended rows taken out"
    assert goal["name"] == "eighths: slots used while requests wait" and goal["met"] and 95 < goal["found"] < 100


def test_text(tiny_model: MakeTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small(monkeypatch)
    argv = ["bench", "batch", str(tiny_model("qwen3").path), "backend=torch", "threads=1", "--repeats", "1"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    for text in (
        "2 requests, 16 at a time: 2 to 3 tokens after prompts of 4 to 5",
        "continuous batching",
        "static batching, ended rows taken out",
        "one by one",
        "a Poisson process",
        "6 requests: the same 32 tokens, 4 of their own, 3 new ones",
        "Goals",
    ):
        assert text in shown


def test_check_is_the_exit_code(tiny_model: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    argv = ["bench", "batch", str(tiny_model("llama3").path), "backend=torch", "threads=1", "--repeats", "1"]
    for met in (True, False):
        goals = [Goal("", 1, 2.0 * met, "×"), Goal("", 1, 1.0, "×")]
        monkeypatch.setattr(batch_report, "goals", lambda *_, goals=goals: goals)
        assert main([*argv, "--only", "eighths", "--check"]) == (0 if met else batch.MISSED)
        assert main([*argv, "--only", "eighths"]) == 0


@pytest.mark.parametrize(("only", "lengths"), [("eighths", "16 + 100"), ("mixed", "127 + 63"), ("shared", "528 + 16")])
def test_a_context_too_short(only: str, lengths: str, tiny_model: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "batch", str(tiny_model("llama3").path), "backend=torch", "threads=1", "--only", only]
    assert main(argv) == 2
    assert f"{lengths} tokens do not fit the context of 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rate", "0"], "--rate is '0'"),
        (["--rate", "1.5"], "--rate is '1.5'"),
        (["--batch", "x"], "--batch is 'x'"),
        (["--only", "mixd"], "did you mean 'mixed'"),
    ],
)
def test_refused(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "batch", "model=/nowhere", *flags]) == 2
    assert words in capsys.readouterr().err
