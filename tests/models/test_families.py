"""Whole models against transformers at float32: every family and rope variant, on every backend, cut up anyhow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny import FAMILIES, TinyModel
from llmcore.errors import CheckpointError
from llmcore.layers import Decoder
from llmcore.llm import LLM

BACKENDS = ("torch", "numba")
AGREES = 1e-4  # logits against transformers
SAME = 1e-5  # the same backend in other pieces
MakeTiny = Callable[..., TinyModel]
OpenLLM = Callable[..., LLM]


def check_chunks(llm: LLM, ids: list[int], whole: np.ndarray, chunks: tuple[int, ...]) -> None:
    """One prefill, chunked prefill and token by token give the same logits."""
    for chunk in chunks:
        np.testing.assert_allclose(llm.logits(ids, chunk), whole, rtol=0, atol=SAME)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama_dynamic"])
def test_logits(tiny_model: MakeTiny, open_llm: OpenLLM, family: str, backend: str) -> None:
    model = tiny_model(family)
    ids = model.ids(60)
    llm = open_llm(model, backend)
    whole = llm.logits(ids)
    np.testing.assert_allclose(whole, model.logits(ids), rtol=0, atol=AGREES)
    check_chunks(llm, ids, whole, (17, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dynamic_within_the_original_context(tiny_model: MakeTiny, open_llm: OpenLLM, backend: str) -> None:
    model = tiny_model("llama_dynamic")
    ids = model.ids(model.config["max_position_embeddings"])
    np.testing.assert_allclose(open_llm(model, backend).logits(ids), model.logits(ids), rtol=0, atol=AGREES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dynamic_beyond_the_original_context(tiny_model: MakeTiny, open_llm: OpenLLM, backend: str) -> None:
    """transformers' answer depends on how the tokens were fed; ours is always that of one token after the other."""
    model = tiny_model("llama_dynamic")
    llm = open_llm(model, backend)
    ids = model.ids(llm.spec.max_positions)
    assert len(ids) == 2 * model.config["max_position_embeddings"]
    whole = llm.logits(ids)
    np.testing.assert_allclose(whole, _one_by_one(model, ids), rtol=0, atol=AGREES)
    assert np.abs(whole - model.logits(ids)).max() > 0.05
    check_chunks(llm, ids, whole, (7, 1))


def _one_by_one(model: TinyModel, ids: list[int]) -> np.ndarray:
    """transformers' logits, each token fed with the cache of those before it."""
    import torch

    reference, cache, rows = model.reference(), None, []
    with torch.inference_mode():
        for token in ids:
            out = reference(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama2", {"attention_bias": True, "mlp_bias": True}),
        ("llama3", {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 40, "head_dim": 24}),
        ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
        ("qwen2", {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48, "intermediate_size": 80}),
    ],
    ids=["llama-biases", "llama-mqa", "qwen3-biases", "qwen2-odd-sizes"],
)
def test_unusual_shapes(
    tiny_model: MakeTiny, open_llm: OpenLLM, family: str, changes: dict[str, object], backend: str
) -> None:
    model = tiny_model(family, **changes)
    ids = model.ids(40)
    np.testing.assert_allclose(open_llm(model, backend).logits(ids), model.logits(ids), rtol=0, atol=AGREES)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights(tiny_model: MakeTiny, open_llm: OpenLLM, dtype: str, backend: str) -> None:
    """Half-precision weights are widened exactly; activations stay float32."""
    model = tiny_model("qwen2", dtype=dtype)
    ids = model.ids(40)
    np.testing.assert_allclose(open_llm(model, backend).logits(ids), model.logits(ids), rtol=0, atol=AGREES)


def test_old_config_and_shards_change_nothing(tiny_model: MakeTiny, open_llm: OpenLLM) -> None:
    plain = tiny_model("llama3")
    ids = plain.ids(20)
    expected = open_llm(plain, "torch").logits(ids)
    for other in (tiny_model("llama3", old_config=True), tiny_model("llama3", shards=3)):
        np.testing.assert_array_equal(open_llm(other, "torch").logits(ids), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_know_their_keys(tiny_model: MakeTiny, open_llm: OpenLLM, family: str) -> None:
    """The graph asks for exactly the tensors that transformers wrote, in their shapes."""
    from safetensors.numpy import load_file

    from llmcore.graph.graph import Graph
    from llmcore.graph.inputs import input_shapes

    model = tiny_model(family)
    graph = Graph(input_shapes(4))
    Decoder(open_llm(model, "torch").spec, 32, 8)(graph)
    written = load_file(model.path / "model.safetensors")
    assert graph.weights == {name: array.shape for name, array in written.items()}


def _with_tensors(model: TinyModel, folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of ``model`` in ``folder`` whose tensors ``change`` has edited."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model.path / "model.safetensors")
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model.path / name).read_bytes())
    return folder


def test_leftover_buffers_are_passed_over(tiny_model: MakeTiny, open_llm: OpenLLM, tmp_path: Path) -> None:
    """Old converters stored rope's frequencies; a tied head may be stored a second time."""
    model = tiny_model("qwen2")

    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.full(8, 7, np.float32)
        tensors["lm_head.weight"] = np.zeros_like(tensors["model.embed_tokens.weight"])

    changed = _with_tensors(model, tmp_path / "leftovers", add)
    ids = model.ids(10)
    np.testing.assert_array_equal(open_llm(changed, "torch").logits(ids), open_llm(model, "torch").logits(ids))


@pytest.mark.parametrize(
    ("name", "replacement", "said"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "missing"),
        ("model.layers.1.mlp.up_proj.weight", np.ones((96, 63), np.float32), "shape"),
        ("model.layers.3.mlp.up_proj.weight", np.ones((96, 64), np.float32), "no place"),
        ("model.norm.weight", np.full(64, np.nan, np.float32), "not finite"),
        ("model.norm.weight", np.ones(64, np.int32), "I32"),
    ],
)
def test_wrong_tensor_is_named(
    tiny_model: MakeTiny, open_llm: OpenLLM, tmp_path: Path, name: str, replacement: np.ndarray | None, said: str
) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors.pop(name, None)
        if replacement is not None:
            tensors[name] = replacement

    changed = _with_tensors(tiny_model("llama2"), tmp_path / "wrong", change)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_llm(changed, "torch")
    assert caught.value.tensor == name


def test_config_and_weights_must_fit(tiny_model: MakeTiny, open_llm: OpenLLM, tmp_path: Path) -> None:
    """A config that says "untied" beside a tied file: the head is missing."""
    folder = _with_tensors(tiny_model("qwen2"), tmp_path / "untied", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match="missing") as caught:
        open_llm(folder, "torch")
    assert caught.value.tensor == "lm_head.weight"
