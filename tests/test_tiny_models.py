"""The tiny checkpoints tell right formulas from wrong ones: each mistake here moves logits far beyond the tolerance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.gguf_files import llama3_divisors, permute, unpermute, write_gguf
from helpers.tiny import FAMILIES, YARN_ROPE, TinyModel

NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")
VISIBLE = 0.05  # logits; the families are compared within 1e-4
MakeTiny = Callable[..., TinyModel]


def rope(kind: str, theta: float = 10000.0, **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **fields}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_spread(tiny_model: MakeTiny, family: str) -> None:
    model = tiny_model(family)
    logits = model.logits(model.ids(40))
    assert logits.shape == (40, model.vocab_size) and logits.dtype == np.float32
    assert 1 < logits.std() < 8
    assert len(set(logits.argmax(axis=1))) > 5


@pytest.mark.parametrize(
    ("family", "mistake"),
    [
        ("llama2", rope("default", 20000.0)),
        ("llama3", rope("default")),
        ("llama3", rope("linear", factor=8.0)),
        ("llama_linear", rope("default")),
        ("llama_dynamic", rope("default")),
        ("llama_dynamic", rope("linear", factor=2.0)),
        ("llama_yarn", rope("default", 1000.0)),
        ("llama_yarn", rope("linear", 1000.0, factor=4.0)),
        ("llama_yarn", rope("yarn", 1000.0, **YARN_ROPE, attention_factor=1.0)),
        ("llama_yarn", rope("yarn", 1000.0, **YARN_ROPE, truncate=False)),
        ("llama_yarn", rope("yarn", 1000.0, **{**YARN_ROPE, "beta_fast": 32.0})),
    ],
)
def test_wrong_rope_is_visible(tiny_model: MakeTiny, family: str, mistake: dict[str, Any]) -> None:
    right, wrong = tiny_model(family), tiny_model(family, rope_parameters=mistake)
    ids = right.ids(40)
    assert np.abs(right.logits(ids) - wrong.logits(ids)).max() > VISIBLE


@pytest.mark.parametrize(
    ("family", "part", "value"),
    [
        *[("qwen2", f"{part}_proj.bias", 0.0) for part in "qkv"],
        *[("qwen3", f"{part}_norm.weight", 1.0) for part in "qk"],
        *[
            ("llama2", norm, 1.0)
            for norm in ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")
        ],
    ],
)
def test_missing_part_is_visible(tiny_model: MakeTiny, family: str, part: str, value: float) -> None:
    import torch

    model = tiny_model(family)
    ids = model.ids(40)
    changed = model.reference()
    parts = [tensor for name, tensor in changed.named_parameters() if name.endswith(part)]
    assert parts
    with torch.no_grad():
        for tensor in parts:
            tensor.fill_(value)
        wrong = changed(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(model.logits(ids) - wrong).max() > VISIBLE


def test_old_config_means_the_same(tiny_model: MakeTiny) -> None:
    new, old = tiny_model("llama3"), tiny_model("llama3", old_config=True)
    assert {"rope_theta", "rope_scaling", "torch_dtype"} <= old.config.keys() and "rope_parameters" not in old.config
    np.testing.assert_array_equal(new.logits(new.ids(40)), old.logits(new.ids(40)))


def test_shards_hold_the_same(tiny_model: MakeTiny) -> None:
    one, many = tiny_model("qwen3"), tiny_model("qwen3", shards=3)
    assert len(list(many.path.glob("*.safetensors"))) >= 3
    assert set(json.loads((many.path / "model.safetensors.index.json").read_text())["weight_map"].values()) > set()
    np.testing.assert_array_equal(one.logits(one.ids(20)), many.logits(one.ids(20)))


def test_permutation_is_undone() -> None:
    rows = np.arange(24.0).reshape(8, 3)
    assert not np.array_equal(permute(rows, 2), rows)
    np.testing.assert_array_equal(unpermute(permute(rows, 2), 2), rows)
    np.testing.assert_array_equal(
        permute(rows, 2)[:4, 0] / 3, [0, 2, 1, 3]
    )  # pairs (0, 2) and (1, 3) become neighbours


@pytest.mark.parametrize("family", ["llama2", "llama3", "qwen2", "qwen2_untied", "qwen3"])
def test_gguf_reads_back_in_transformers(tiny_model: MakeTiny, tmp_path: Path, family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    # Of a GGUF, transformers ignores scaled rope, and for qwen3 the head size (it takes 128).
    changes = {"head_dim": 128} if family == "qwen3" else {}
    model = tiny_model(family, rope_parameters=rope("default"), **changes)
    written = write_gguf(model, tmp_path / "tiny.gguf", "Q8_0", types={"ffn_down": "F16"})
    load = AutoModelForCausalLM.from_pretrained
    read = load(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32, attn_implementation="eager").eval()
    ids = model.ids(40)
    with torch.inference_mode():
        theirs = read(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(written.logits(ids), theirs, atol=1e-5)
    assert np.abs(written.logits(ids) - model.logits(ids)).max() > 1e-3  # the reference has the quantized weights


@pytest.mark.parametrize("quant", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_keep_the_scale(tiny_model: MakeTiny, tmp_path: Path, quant: str) -> None:
    model = tiny_model("llama2", hidden_size=256, intermediate_size=256)
    written = write_gguf(model, tmp_path / "tiny.gguf", quant, types={"token_embd": "Q8_0"})
    assert 0.5 < written.logits(model.ids(20)).std() < 10


def test_llama3_divisors_are_transformers(tiny_model: MakeTiny) -> None:
    model = tiny_model("llama3")
    rotary = model.reference().model.rotary_emb
    plain = tiny_model("llama3", rope_parameters=rope("default")).reference().model.rotary_emb
    divisors = llama3_divisors(model.config["rope_parameters"], 16)
    np.testing.assert_allclose(divisors, (plain.inv_freq / rotary.inv_freq).numpy(), rtol=1e-5)
    assert 1.0 in divisors and 8.0 in divisors and len(set(divisors.tolist())) > 2  # all three bands
