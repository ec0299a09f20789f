"""A GGUF's metadata becomes the config that transformers would have written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import container_bytes as raw
from helpers.gguf_files import llama3_divisors, write_gguf
from helpers.tiny import TinyModel
from llmcore.errors import UnsupportedModelError
from llmcore_gguf.checkpoint import open_gguf

Tiny = Callable[..., TinyModel]
SAME = (
    "model_type",
    "architectures",
    "hidden_act",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def config_of(folder: Path, change: dict[str, bytes | None]) -> dict[str, Any]:
    (folder / "m.gguf").write_bytes(raw.gguf(change))
    return open_gguf(folder / "m.gguf").config


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama2", "qwen2", "qwen3"])
def test_the_config_is_that_of_the_original(family: str, tied: bool, tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    config = open_gguf(write_gguf(model, tmp_path / "m.gguf").path).config
    assert {key: config[key] for key in SAME} == {key: model.config[key] for key in SAME}
    assert config["rms_norm_eps"] == pytest.approx(model.config["rms_norm_eps"], rel=1e-6)
    assert config["rope_theta"] == model.config["rope_parameters"]["rope_theta"]
    heads = model.config["num_attention_heads"]
    assert config["head_dim"] == (model.config.get("head_dim") or model.config["hidden_size"] // heads)
    assert config["rope_interleaved"] == (family == "llama2")
    assert config["attention_bias"] == (family == "qwen2")
    assert config["rope_scaling"] is None and "rope_freq_factors" not in config


def test_what_the_file_leaves_out_has_the_formats_defaults(tmp_path: Path) -> None:
    config = config_of(tmp_path, {})
    assert (config["rope_theta"], config["num_key_value_heads"], config["head_dim"]) == (10000.0, 4, 8)
    assert config["vocab_size"] == 4  # the rows of the embedding


def test_linear_scaling(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    kind, factor = "llama.rope.scaling.type", "llama.rope.scaling.factor"
    four = raw.scalar(raw.F32, 4.0)
    assert config_of(tmp_path, {kind: raw.scalar(raw.STRING, "linear"), factor: four})["rope_scaling"] == linear
    assert config_of(tmp_path, {factor: four})["rope_scaling"] == linear
    assert config_of(tmp_path, {"llama.rope.scale_linear": four})["rope_scaling"] == linear
    assert config_of(tmp_path, {factor: raw.scalar(raw.F32, 1.0)})["rope_scaling"] is None
    assert config_of(tmp_path, {kind: raw.scalar(raw.STRING, "none"), factor: four})["rope_scaling"] is None


def test_yarn_scaling(tmp_path: Path) -> None:
    change: dict[str, bytes | None] = {
        "llama.rope.scaling.type": raw.scalar(raw.STRING, "yarn"),
        "llama.rope.scaling.factor": raw.scalar(raw.F32, 4.0),
        "llama.rope.scaling.original_context_length": raw.scalar(raw.U32, 16),
        "llama.rope.scaling.finetuned": raw.scalar(raw.BOOL, True),
    }
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert config_of(tmp_path, change)["rope_scaling"] == yarn
    change["llama.rope.scaling.yarn_beta_fast"] = raw.scalar(raw.F32, 16.0)
    assert config_of(tmp_path, change)["rope_scaling"] == {**yarn, "beta_fast": 16.0}
    change["llama.rope.scaling.attn_factor"] = raw.scalar(raw.F32, 1.5)
    with pytest.raises(UnsupportedModelError, match=r"rope\.scaling\.attn_factor = 1\.5") as caught:
        config_of(tmp_path, change)
    assert caught.value.key == "llama.rope.scaling.attn_factor"


def test_llama3_scaling_comes_as_factors(tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model("llama3")
    checkpoint = open_gguf(write_gguf(model, tmp_path / "m.gguf").path)
    wanted = llama3_divisors(model.config["rope_parameters"], checkpoint.config["head_dim"])
    assert np.array_equal(np.float32(checkpoint.config["rope_freq_factors"]), wanted)
    assert "rope_freqs.weight" not in checkpoint.tensors


def test_features_that_are_switched_off_pass(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        {
            "llama.expert_count": raw.scalar(raw.U32, 0),
            "llama.attention.sliding_window": raw.scalar(raw.U32, 0),
            "llama.attention.causal": raw.scalar(raw.BOOL, True),
            "llama.attention.head_count_kv": raw.array(raw.U32, [2]),  # per layer, all alike
            "qwen2.expert_count": raw.scalar(raw.U32, 8),  # of another architecture
        },
    )
    assert config["num_key_value_heads"] == 2


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'qwen3moe' is not implemented(.|\n)*'qwen3'") as caught:
        config_of(tmp_path, {"general.architecture": raw.scalar(raw.STRING, "qwen3moe")})
    assert caught.value.key == "general.architecture"
