"""What ``llmcore gpu-check`` compares and measures: its models, its floors, and that its comparisons can fail."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmcore.device import Place
from llmcore.device.accelerator import Accelerator
from llmcore.plugins import plugins, resolve
from llmcore.weights.checkpoint import Checkpoint
from llmcore.weights.tensor import check_finite
from llmcore_tools.gpu import check_attention, check_decode, check_models, check_prefill, check_timing, peers
from llmcore_tools.gpu.check_attention import Layers, Shape
from llmcore_tools.gpu.check_context import Context, Verdict, read_part
from llmcore_tools.gpu.check_random import (
    MeasuredRunner,
    SharedWeights,
    alike,
    distinct,
    load,
    read_bytes,
    shapes_of,
    sizes_for,
    spec_of,
)
from llmcore_tools.gpu.check_shapes import GOALS, MODELS, TOY

DEVICE = Accelerator("cpu")
TORCH = {"linear": "torch"}  # in the interpreter products take seconds
SMALL = sizes_for(tokens=8, seqs=2, rows=8, context=16, buckets=())
QWEN2 = {**TOY, "model_type": "qwen2"}  # with biases


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("stage", tmp_path, True, time.monotonic() + 100)


def findings(context: Context) -> list[dict[str, Any]]:
    return read_part(context.out, context.stage)[1]


# -- models of random weights


@pytest.mark.parametrize("name", MODELS)
def test_the_models_have_the_sizes_of_their_names(name: str) -> None:
    """Weights in 10⁹, as published, and to read for a token: all but an embedding that is not the classifier."""
    shapes = shapes_of(MODELS[name])
    total = sum(math.prod(shape) for shape in shapes.values()) / 1e9
    assert round(total, 2) == {"Llama-3.2-1B": 1.24, "Llama-3.1-8B": 8.03, "Qwen2.5-7B": 7.62, "Qwen3-8B": 8.19}[name]
    assert set(GOALS[name]) == {"BF16", "Q8_0", "Q4_0"} and spec_of(MODELS[name]).tied == (name == "Llama-3.2-1B")


@pytest.mark.parametrize("form", ["F32", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("make", [alike, distinct])
def test_random_weights_are_valid_and_complete(form: str, make: Any) -> None:
    checkpoint = make(TOY, form)
    assert {name: t.shape for name, t in checkpoint.tensors.items()} == shapes_of(TOY)
    check_finite(checkpoint.tensors.values())
    for name, tensor in checkpoint.tensors.items():
        assert tensor.format.name == ("F32" if len(tensor.shape) == 1 else form)
        values = tensor.dequantize()
        assert values.std() > (0.2 if len(tensor.shape) == 1 else 0.01), name
    again = make(TOY, form).tensors["lm_head.weight"]
    assert np.array_equal(again.raw(), checkpoint.tensors["lm_head.weight"].raw())


def test_models_to_be_timed_take_the_memory_of_one_tensor_and_others_repeat_nothing() -> None:
    """All matrices view one block on the host, as large as the largest."""
    same, other = (make(TOY, "Q8_0").tensors for make in (alike, distinct))
    matrices = [t.raw() for t in same.values() if len(t.shape) == 2]
    assert len({raw.ctypes.data for raw in matrices}) == 1
    a, b = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(same[a].raw(), same[b].raw()) and not np.array_equal(other[a].raw(), other[b].raw())


def test_bytes_that_a_step_must_read() -> None:
    tied = {**TOY, "tie_word_embeddings": True}
    sizes = {name: t.nbytes for name, t in alike(TOY, "Q8_0").tensors.items()}
    embedding = sizes["model.embed_tokens.weight"]
    assert embedding == 96 * 32 // 32 * 34
    assert read_bytes(alike(TOY, "Q8_0")) == sum(sizes.values()) - embedding
    assert read_bytes(alike(tied, "Q8_0")) == read_bytes(alike(TOY, "Q8_0"))  # then the classifier is the embedding


def test_weights_of_one_shape_are_packed_once_and_lie_apart() -> None:
    """On the device: else a cache that holds one layer would stand for all."""
    checkpoint = alike({**TOY, "num_hidden_layers": 3}, "Q8_0")
    kernel = next(k for k in plugins().backend("triton").kernels if k.op == "linear" and "Q8_0" in k.formats)
    keys = [f"model.layers.{layer}.mlp.gate_proj.weight" for layer in range(3)]
    store = SharedWeights(dict(checkpoint.tensors), device=DEVICE)
    packed: list[str] = []
    pack = resolve(kernel.pack)
    make = store._own
    store._own = lambda name, layout, made: make(  # type: ignore[method-assign]
        name, layout, lambda: packed.append(name) or made()
    )
    store.prepare([(key, kernel) for key in (*keys, *keys)])
    arrays = [store.operand(key, kernel) for key in keys]
    assert packed == keys[:1] and len(store.made) == 3
    assert len({array.data_ptr() for array in arrays}) == 3
    assert all(np.array_equal(array.numpy(), pack(checkpoint.tensors[keys[0]])) for array in arrays)
    assert (
        store.float32("model.norm.weight").data_ptr()
        != store.float32("model.layers.0.input_layernorm.weight").data_ptr()
    )


def test_steps_that_are_measured_are_the_ones_that_are_recorded() -> None:
    place = Place(DEVICE, "float32")
    model = load(alike(TOY, "F32"), place, replace(SMALL, seqs=4), shared=True, ops=TORCH, batches=(1, 4))
    assert isinstance(model.runner, MeasuredRunner)
    assert {tokens for _, tokens, one_each in model.runner.programs if one_each} == {1, 4}
    assert [len(ids) for ids in model.generate([[1, 2], [3]], 3)] == [3, 3]


# -- comparisons with transformers


def test_a_model_that_is_right_and_one_with_a_wrong_weight(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias in another's place is found in the logits of every way."""
    checkpoint = distinct(QWEN2, "F32")
    check_models.compare(context, "right", checkpoint, "float32")
    real = check_models.transformers_model
    changed = _with(checkpoint, "model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.v_proj.bias")
    monkeypatch.setattr(check_models, "transformers_model", lambda _: real(changed))
    check_models.compare(context, "wrong", checkpoint, "float32")
    right, wrong = findings(context)
    assert (right["verdict"], right["note"]) == ("holds", "") and right["values"]["error"] < 1e-5
    assert wrong["verdict"] == "wrong" and wrong["values"]["error"] > 0.01
    assert "prefill" in wrong["note"] and "in chunks of 3" in wrong["note"]


def _with(checkpoint: Checkpoint, name: str, other: str) -> Checkpoint:
    return replace(checkpoint, tensors={**checkpoint.tensors, name: checkpoint.tensors[other]})


def test_errors_are_relative_and_nan_is_the_largest() -> None:
    wanted = np.array([[1.0, -1.0, 3.0, -3.0]])
    assert check_models.relative(wanted, wanted) == 0
    assert check_models.relative(wanted + 0.1, wanted) == pytest.approx(0.1 / wanted.std())
    assert check_models.relative(np.where(wanted > 2, np.nan, wanted), wanted) == math.inf


class Answers:
    """A model with the given answers, batch by batch."""

    def __init__(self, *batches: Sequence[Sequence[int]]) -> None:
        self.batches = list(batches)

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        return [list(answer) for answer in self.batches.pop(0)]


@pytest.mark.parametrize(
    ("together", "alone", "exact", "said"),
    [
        ([[1, 2]], [[1, 2]], True, []),
        ([[1, 2]], [[1, 3]], True, ["answers depend on the batch", "greedy answers alone"]),
        ([[1, 2]], [[1, 3]], False, ["greedy answers alone"]),
        ([[0, 2]], [[1, 2]], False, ["greedy answers together"]),
        ([[1, 4]], [[1, 2]], False, []),  # as good, but for rounding
    ],
)
def test_greedy_tokens(
    together: list[list[int]], alone: list[list[int]], exact: bool, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference's best after ``[7]`` is 1, and after that 2, with 4 right behind it."""
    logits = np.zeros((3, 8), np.float32)
    logits[0, 1], logits[1, 2], logits[1, 4] = 1, 1, 0.999
    monkeypatch.setattr(check_models, "logits_of", lambda _, ids: logits[: len(ids)])
    model: Any = Answers(together, alone)
    found = check_models.greedy_complaints(model, None, [[7]], 2, 0.01, exact=exact)
    assert len(found) == len(said) and all(text.startswith(start) for text, start in zip(found, said, strict=True))


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
    model, loaded = torch.nn.Linear(1, 1).to(torch.bfloat16), Answers()
    rounded = {torch.bfloat16: exact + 0.01 * noise, torch.float32: exact}
    monkeypatch.setattr(peers, "logits_of", lambda m, _: rounded[m.weight.dtype])
    loaded.logits = lambda _: exact - ours * noise  # type: ignore[attr-defined]
    noting: Any = Noting()
    peers.compare_logits(noting, "toy", model, loaded, 4, 16)  # type: ignore[arg-type]
    (found,) = noting.found
    assert found.verdict == verdict and model.weight.dtype == torch.bfloat16
    assert found.values["our error"] / found.values["their error"] == pytest.approx(ours / 0.01, rel=1e-3)
    assert found.values["rms difference"] == pytest.approx((ours + 0.01) * np.sqrt(np.mean(noise**2)), rel=1e-3)
