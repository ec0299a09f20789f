"""The models of ``llmcore gpu-check``, and that its comparisons with transformers can fail."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcore.device import Place
from llmcore.device.accelerator import Accelerator
from llmcore.plugins import plugins, resolve
from llmcore.weights.checkpoint import Checkpoint
from llmcore.weights.tensor import check_finite
from llmcore_tools.gpu import check_models
from llmcore_tools.gpu.check_context import Context, read_part
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
    model = load(checkpoint, Place(DEVICE, "float32"), SMALL, ops=TORCH)
    monkeypatch.setattr(check_models, "load", lambda *_, **__: model)  # once for both
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
