"""What ``llmcore gpu-check`` measures: floors, shares and ratios; and what a run that is no rehearsal asks for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmcore.device import HOST, Place
from llmcore.device.accelerator import Accelerator
from llmcore.plugins import plugins, resolve
from llmcore_tools.gpu import (
    check_attention,
    check_decode,
    check_environment,
    check_models,
    check_prefill,
    check_timing,
    peers,
)
from llmcore_tools.gpu.check_attention import Layers, Shape
from llmcore_tools.gpu.check_context import Context, Verdict, read_part
from llmcore_tools.gpu.check_random import (
    alike,
    load,
    read_bytes,
    shapes_of,
    sizes_for,
    spec_of,
)
from llmcore_tools.gpu.check_shapes import MODELS, TOY

DEVICE = Accelerator("cpu")
TORCH = {"linear": "torch"}  # in the interpreter products take seconds
SMALL = sizes_for(tokens=8, seqs=2, rows=8, context=16, buckets=())
SMALL = sizes_for(tokens=8, seqs=2, rows=8, context=16, buckets=())


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("stage", tmp_path, True, time.monotonic() + 100)


def findings(context: Context) -> list[dict[str, Any]]:
    return read_part(context.out, context.stage)[1]


# -- figures


def test_seconds_of_a_call() -> None:
    calls: list[int] = []
    series = check_timing.seconds(DEVICE, lambda: calls.append(time.sleep(0.01) or 1), repeats=3, inner=2, warm=1)
    assert len(calls) == 7 and len(series.samples) == 3 and 0.01 <= series.low < 0.1


def test_bandwidth_and_peaks_are_those_of_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second a call: GB/s are its bytes, Tera/s its operations."""
    one = check_timing.Series((1.0,))
    monkeypatch.setattr(check_timing, "seconds", lambda *_, **__: one)
    assert check_timing.read_gb_s(DEVICE, 1 << 17) == (1 << 17) / 1e9
    assert check_timing.copy_gb_s(DEVICE, 1000) == 2000 / 1e9
    for probe in (check_timing.mm_tflops, check_timing.int8_tops, check_timing.fp8_tflops):
        assert probe(DEVICE, 32) == 2 * 32**3 / 1e12


def test_floors_come_from_the_first_stage_of_the_run(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "known", lambda _, stage, name: {"read_gb_s": 4300.0, "mm_tflops": 700.0}[name])
    assert check_timing.bandwidth(context) == 4300 and check_timing.matrix_peak(context) == 700


class Noting:
    """A context that keeps findings, and judges as on a GPU."""

    def __init__(self) -> None:
        self.device, self.rehearse, self.ops, self.found = DEVICE, True, TORCH, []

    def judged(self, value: float, goal: float) -> Verdict:
        return "holds" if value >= goal else "short"

    def add(self, finding: Any) -> None:
        self.found.append(finding)


@pytest.mark.parametrize(("bandwidth", "verdict"), [(1e-9, "holds"), (1e9, "short")])
def test_decode_against_its_floor(bandwidth: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 2 sequences of about 5 tokens reads the weights once and, of one layer, 16 elements twice a token."""
    monkeypatch.setitem(check_decode.GOALS, "toy", {"Q8_0": (0.7, 0.5)})  # type: ignore[index]
    noting: Any = Noting()
    monkeypatch.setattr(check_decode, "engine_step_s", lambda *_: (0.5, 5.0))
    monkeypatch.setattr(check_decode, "replayed_s", lambda *_: 0.25)
    check_decode.measure(noting, "toy", TOY, "Q8_0", (check_decode.Load(2, 3, 1, 1),), bandwidth)
    (found,) = noting.found
    nbytes = read_bytes(alike(TOY, "Q8_0")) + 2 * 5 * (2 * 16 * 2)
    floor_s = nbytes / bandwidth / 1e9
    assert found.verdict == verdict and found.what == "toy, Q8_0, batch 2, 5 tokens"
    assert found.values == pytest.approx(
        {
            "tok/s": 4,
            "floor tok/s": 2 / floor_s,
            "ms/step": 500,
            "ms/replay": 250,
            "% of floor": 100 * floor_s / 0.5,
            "goal %": 50,
            "% replayed": 100 * floor_s / 0.25,
        }
    )


def test_a_decode_step_is_timed_over_whole_steps_of_the_engine() -> None:
    model = load(alike(TOY, "F32"), Place(DEVICE, "float32"), SMALL, shared=True, ops=TORCH, batches=(2,))
    before = model.engine.counters.generated
    step_s, depth = check_decode.engine_step_s(model, check_decode.Load(2, 3, 2, 2))
    assert 0.001 < step_s < 5 and 5 <= depth <= 9
    assert model.engine.counters.generated - before >= 2 * (2 * 2 + 2)
    assert not model.engine.busy and model.engine.scheduler.pool.free == model.runner.sizes.pages
    assert check_decode.replayed_s(model, 2) > 0.001


def test_operations_of_a_prompt() -> None:
    """Of the toy: two for each weight and token; each of two query heads of 16 with 1 + 2 + 3 tokens, twice."""
    blocks = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64
    attention = 2 * 2 * (2 * 16) * 6
    assert check_prefill.operations(spec_of(TOY), shapes_of(TOY), 3) == 2 * 3 * blocks + attention + 2 * 96 * 32


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_attention_that_is_timed_is_attention(kv_dtype: str) -> None:
    """Over all of the tokens, in every layer: what is timed must be what is said."""
    shape = Shape(2, 20, (4, 2, 16), kv_dtype, "float32")
    kernels = {op: check_attention.kernel_of(op, shape, "cpu") for op in ("kv_write", "attention")}
    layout = resolve(plugins().backend("triton").kv_layouts[kv_dtype])
    torch.manual_seed(0)
    layers = Layers(shape, kernels, layout, 2, torch.device("cpu"))
    assert sorted(layers.tables.flatten().tolist()) == list(range(2 * shape.pages))
    for cache in layers.caches:
        layers.caches, kept = [cache], layers.caches
        layers.y.fill_(torch.nan)
        layers()
        layers.caches = kept
        slots = layers.tables.long().repeat_interleave(16, 1) * 16 + torch.arange(16).repeat(shape.pages)
        seen = layers.new[slots[:, : shape.length]].view(2, shape.length, 2, 16).repeat_interleave(2, 2)
        weights = torch.softmax(torch.einsum("shd,sthd->sht", layers.q.view(2, 4, 16), seen) / 4, -1)
        wanted = torch.einsum("sht,sthd->shd", weights, seen).reshape(2, 64)
        torch.testing.assert_close(layers.y, wanted, atol=0.03, rtol=0)


def test_shapes_of_attention() -> None:
    every = list(check_attention.shapes(False))
    assert {(s.length, s.batch) for s in every} == {(n, b) for n in (8192, 32768) for b in (1, 8, 64)}
    assert {s.kv_dtype for s in every} == {"bfloat16", "int8"} and len(every) == len(set(every)) == 36


# -- peers


def series(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, tuple[float, float]], batch: int) -> list[Any]:
    """What is found where each task takes so long for its first token, and for all 11."""
    clock = [0.0]
    monkeypatch.setattr(peers, "settled", lambda _: clock[0])

    def task(first: float, whole: float) -> peers.Answer:
        def answer(_: Any, tokens: int) -> None:
            clock[0] += first if tokens == 1 else whole

        return answer

    noting: Any = Noting()
    tasks = {name: task(*each) for name, each in seconds.items()}
    peers.compare_speed(noting, "toy", tasks, [[1]] * batch, peers.Asked(answer=11, samples=2))
    return noting.found


@pytest.mark.parametrize(("whole", "verdict"), [(8.6, "holds"), (8.4, "short")])
def test_peers_are_compared_by_tokens_behind_the_first(
    whole: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = series(monkeypatch, {peers.OURS: (1, 6), peers.COMPILED: (1, whole)}, 1)
    assert ours.values == {"tok/s": 2.0, "first token ms": 1000.0} and ours.verdict == ""
    assert theirs.values["times as fast"] == pytest.approx((whole - 1) / 5) and theirs.values["goal"] == 1.5
    assert theirs.verdict == verdict


def test_a_peer_that_cannot_run_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler")

    noting: Any = Noting()
    monkeypatch.setattr(peers, "settled", lambda _: time.perf_counter())
    asked = peers.Asked(answer=2, samples=1)
    peers.compare_speed(noting, "toy", {peers.OURS: lambda *_: None, peers.COMPILED: fail}, [[1]], asked)
    assert [(f.verdict, f.note) for f in noting.found][:1] == [("not run", "RuntimeError: no compiler")]
    with pytest.raises(RuntimeError, match="no compiler"):
        peers.compare_speed(noting, "toy", {peers.OURS: fail}, [[1]], asked)


@pytest.mark.parametrize(("ours", "verdict"), [(0.01, "holds"), (0.02, "wrong")])
def test_logits_are_judged_by_their_distance_from_float32(
    ours: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    model, loaded = torch.nn.Linear(1, 1).to(torch.bfloat16), SimpleNamespace(logits=lambda _: exact - ours * noise)
    rounded = {torch.bfloat16: exact + 0.01 * noise, torch.float32: exact}
    monkeypatch.setattr(peers, "logits_of", lambda m, _: rounded[m.weight.dtype])
    noting: Any = Noting()
    peers.compare_logits(noting, "toy", model, loaded, 4, 16)  # type: ignore[arg-type]
    (found,) = noting.found
    assert found.verdict == verdict and model.weight.dtype == torch.bfloat16
    assert found.values["our error"] / found.values["their error"] == pytest.approx(ours / 0.01, rel=1e-3)
    assert found.values["rms difference"] == pytest.approx((ours + 0.01) * np.sqrt(np.mean(noise**2)), rel=1e-3)


# -- what a real run asks for, and the ways that only a GPU takes, with a GPU that is made up


@pytest.fixture
def asked(context: Context, monkeypatch: pytest.MonkeyPatch) -> tuple[Context, list[tuple[Any, ...]]]:
    """A run that is no rehearsal, whose measurements are noted only."""
    context.rehearse, context.deadline = False, time.monotonic() + 30
    noted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Context, "known", lambda *_: 4000.0)
    monkeypatch.setattr(Context, "_release", lambda _: None)
    monkeypatch.setattr(Context, "device", HOST)
    for module, name in ((check_decode, "measure"), (check_prefill, "measure"), (check_attention, "measure")):
        monkeypatch.setattr(module, name, lambda _, *args: noted.append(args))
    monkeypatch.setattr(check_models, "compare", lambda _, *args: noted.append(args))
    monkeypatch.setattr(peers, "compare", lambda _, *args: noted.append(args))
    return context, noted


def test_a_run_asks_for_every_shape(asked: tuple[Context, list[tuple[Any, ...]]]) -> None:
    context, noted = asked
    check_decode.run(context)
    assert {(name, form) for name, _, form, _, _ in noted} == {(n, f) for n in MODELS for f in ("BF16", "Q8_0", "Q4_0")}
    assert all([load.batch for load in loads] == [1, 64] for *_, loads, _ in noted)
    assert all(config is MODELS[name] for name, config, *_ in noted)
    middle = {load.prompt + load.tokens * (load.samples + 1) / 2 for *_, loads, _ in noted for load in loads}
    assert middle == {992 + 128}  # about 1k tokens of context
    noted.clear()
    check_prefill.run(context)
    assert sorted(name for name, *_ in noted) == sorted(MODELS) and {peak for *_, peak in noted} == {4000.0}
    noted.clear()
    check_attention.run(context)
    assert len(noted) == 36
    noted.clear()
    check_models.run(context)
    cases = {(what, dtype) for what, _, dtype in noted}
    assert len(cases) == len(noted) == 4 * 4 * 3 and {dtype for _, dtype in cases} == set(check_models.BOUNDS)
    noted.clear()
    assert findings(context) == []
    peers.run(context)
    assert noted == []  # 40 s and 90 s were not left
    assert {f["verdict"] for f in findings(context)} == {"not run"}
    context.deadline += 100
    peers.run(context)
    assert [(name, asked.batches, asked.prompt, asked.answer) for name, _, asked in noted] == [
        *(("Llama-3.2-1B", (1, 16), 256, 128), ("Llama-3.1-8B", (1, 16), 256, 128))
    ]


def test_facts_about_a_gpu(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    context.rehearse = False
    found = {"name": "GPU", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 150754820096}
    monkeypatch.setattr(Context, "device", SimpleNamespace(device=torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**found))
    monkeypatch.setattr(check_environment.shutil, "which", lambda _: "/bin/nvidia-smi")
    said = SimpleNamespace(returncode=0, stdout="580.1, 1980 MHz, 3201 MHz, 700.00 W\nof another one\n")
    monkeypatch.setattr(check_environment.subprocess, "run", lambda *_, **__: said)
    machine = check_environment.machine(context)
    assert (machine["device"], machine["capability"], machine["memory"]) == ("GPU", "9.0", "140 GiB")
    assert machine["multiprocessors"] == 132 and machine["driver"] == "580.1, 1980 MHz, 3201 MHz, 700.00 W"
    said.returncode = 1
    assert check_environment.driver() == ""


def test_a_gpus_own_clock_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two milliseconds between two events around four calls: half a millisecond each."""
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, _: Event) -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: order.append("settle"))
    device: Any = SimpleNamespace(asynchronous=True, device="cuda:0")
    series = check_timing.seconds(device, lambda: order.append("call"), repeats=1, inner=4, warm=1)
    assert series.samples == (0.0005,)
    assert order == ["call", "settle", "record", *["call"] * 4, "record", "wait"]


def test_a_step_that_waits_for_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    device: Any = SimpleNamespace(asynchronous=True)

    class Runner:
        outputs: Mapping[str, int] = {"ids": 7}

        def start(self, work: Any, follows: Any = None) -> Any:
            if follows == 7 and modes == ["error"] and self.waits:
                raise RuntimeError("called a synchronizing CUDA operation")
            return lambda: [1]

    model: Any = SimpleNamespace(runner=Runner())
    Runner.waits = False  # type: ignore[attr-defined]
    assert check_models._steady_step(model, device) == [] and modes == ["error", "default"]
    modes.clear()
    Runner.waits = True  # type: ignore[attr-defined]
    (complaint,) = check_models._steady_step(model, device)
    assert "synchronizing" in complaint and modes == ["error", "default"]
