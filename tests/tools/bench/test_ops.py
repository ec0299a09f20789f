"""``llmcore bench ops``: every node is in the table once, with the cost of all its calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore.engine.load import EngineSettings
from llmcore.errors import ConfigError
from llmcore.llm import LLM
from llmcore_tools.bench import ops, roofline, steps
from llmcore_tools.bench.costs import Cost
from llmcore_tools.bench.measure import Series
from llmcore_tools.bench.roofline import Roofline
from llmcore_tools.bench.steps import Anatomy, OpRow, Step

MakeTiny = Callable[..., TinyModel]
LIMITS = Roofline(2, bandwidth=1e9, peaks={"f32": 1e9, "int8": 4e9})


def row(op: str, cost: Cost, *seconds: float, kind: str = "f32", calls: int = 2) -> OpRow:
    """A row with a path, without dims."""
    return OpRow(op, "model.layers.*.mlp", "numba", "k:f", ("Q4_1", "Q4_1"), kind, {}, calls, cost, Series(seconds))


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_every_node_is_there_once(backend: str, tiny_model: MakeTiny) -> None:
    llm = LLM(str(tiny_model("llama3").path), backend=backend, threads=2, engine=EngineSettings(page_size=16))
    try:
        free = llm.engine.scheduler.pool.free
        found = steps.anatomy(llm, Step(new=3, batch=2, depth=9), 2, 0)
        assert llm.engine.scheduler.pool.free == free, "the pages are given back"
        assert sum(r.calls for r in found.rows) == len(llm.runner.bound("ids", 6))
        layers = llm.spec.layers
        assert {r.calls for r in found.rows if r.op == "attention"} == {layers}
        attention = next(r for r in found.rows if r.op == "attention")
        pairs = 2 * (3 * 9 + 6)
        assert attention.cost.operations == layers * 4 * 64 * pairs, "64 is the hidden size"
        token = 2 * 2 * 16 * 4  # keys and values of two heads of 16 float32
        assert steps.token_bytes(llm) == token
        tables = 2 * (3 * 4 + llm.runner.sizes.limits.blocks * 4)
        assert attention.cost.reads == layers * (6 * 64 * 4 + tables + 2 * 12 * token)
        assert all(len(r.seconds.samples) == 2 and r.seconds.low > 0 for r in found.rows)
        assert len(found.step_s.samples) == len(found.program_s.samples) == 2
        assert (found.start_s > 0) == (backend == "numba")
    finally:
        llm.close()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step(new=20), "20 tokens in a step, but the engine has 16"),
        (Step(depth=64), "65 tokens in a sequence, but the engine has 64"),
        (Step(depth=63, batch=3), "24 KV pages, but the engine has 16"),
    ],
)
def test_steps_that_do_not_fit(step: Step, words: str, tiny_model: MakeTiny) -> None:
    settings = EngineSettings(page_size=8, max_batch_tokens=16, kv_pages=16)
    llm = LLM(str(tiny_model("llama3").path), backend="torch", threads=1, engine=settings)
    try:
        with pytest.raises(ConfigError, match=words), steps.prepared(llm, step, 0):
            pass
    finally:
        llm.close()


def test_the_roofline_bounds_by_what_is_scarcer() -> None:
    assert LIMITS.seconds(2e9, 1e9, "f32") == 2.0
    assert LIMITS.seconds(1e9, 3e9, "f32") == 3.0
    assert LIMITS.seconds(1e9, 8e9, "int8") == 2.0
    assert LIMITS.peak("bf16") == 1e9, "what was not measured counts as float32"
    assert row("linear", Cost(1e9, 0, 0), 4.0).share_of(LIMITS) == 0.25


def test_arithmetic_follows_weights_and_kernel() -> None:
    assert steps.arithmetic(("Q4_1", "F32"), exact=False) == "int8"
    assert steps.arithmetic(("Q4_1",), exact=True) == "f32"
    assert steps.arithmetic(("BF16",), exact=False) == "f32"
    assert steps.arithmetic((), exact=False) == "f32"


def test_table() -> None:
    rows = (
        row("add", Cost(8, 4, 1), 1e-6),
        row("linear", Cost(9e6, 1e6, 3e6), 20e-3, 40e-3, 30e-3, kind="int8"),
    )
    found = Anatomy(rows, Series((40e-3,)), Series((39e-3,)), 2e-6)
    table = ops.op_table(Step(1, 2, 5), found, LIMITS)
    assert [cells[0] for cells in table.rows] == ["linear", "add", "sum"], "the slowest first"
    assert table.rows[0] == (
        *("linear", "layers.*.mlp", "Q4_1", "numba", "2", "15,000", "30,000", "100", "0.33", "0.10", "33.3"),
    )
    assert table.rows[1][-3:] == ("", "", ""), "less than it takes to start a node says nothing"
    assert "A step of 2 sequences with 1 token each after 5: 40,000 µs, of which 1,000 outside" in table.note


def test_json(tiny_model: MakeTiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "measure", lambda threads, nbytes: (LIMITS, {"read": [], "compute": []}))
    argv = ["--tokens", "2", "--batch", "2", "--depth", "3", "--repeats", "1", "--json", "threads=1", "backend=numba"]
    assert main(["bench", "ops", str(tiny_model("qwen3").path), *argv]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["suite"] == "ops" and found["results"]["step"] == {"tokens": 2, "batch": 2, "depth": 3}
    assert found["machine"]["state"]["round_trip_ns"] is None, "one thread has nobody to hand a cache line to"
    for one in found["results"]["ops"]:
        assert set(one) >= {"op", "node", "backend", "formats", "dims", "calls", "bytes", "operations", "seconds"}
        assert one["of_roofline"] > 0


def test_the_measured_roofline_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "IN_MEMORY", 4 << 20)
    limits, measured = roofline.measure(2, 1 << 20)
    assert limits.bandwidth > 0 and limits.peaks["f32"] > 0
    assert {record["threads"] for record in measured["read"]} == {1, 2}
    assert {record["bytes"] for record in measured["read"]} == {1 << 20, 4 << 20}
    state = roofline.machine_state(2, 1 << 20)
    assert state["round_trip_ns"] is None or state["round_trip_ns"] > 0


@pytest.mark.parametrize("argv", [["--tokens", "0"], ["--batch", "x"], ["--depth", "-1"]])
def test_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops", "model=/nowhere", *argv]) == 2
    assert f"{argv[0]} is '{argv[1]}'" in capsys.readouterr().err
