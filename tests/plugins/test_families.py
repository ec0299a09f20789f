"""Families turn published configs into specs, whichever generation of transformers wrote them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from helpers import configs
from helpers.tiny import FAMILIES, TinyModel
from llmcore.hookspecs import FamilyInfo
from llmcore.model_spec import ModelSpec, RopeSpec
from llmcore.plugins import resolve
from llmcore_llama import plugin as llama_plugin
from llmcore_llama.family import llama
from llmcore_qwen import plugin as qwen_plugin
from llmcore_qwen.family import qwen

Family = Callable[[Mapping[str, Any]], ModelSpec]

LLAMA_2_7B = ModelSpec(
    family="llama",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    layers=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    norm_eps=1e-5,
    rope=RopeSpec(128, 10000.0),
    max_positions=4096,
)
LLAMA_3_1_8B = ModelSpec(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    rope=RopeSpec(
        128, 500000.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192
    ),
    max_positions=131072,
)
LLAMA_3_2_1B = ModelSpec(
    family="llama",
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    layers=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    norm_eps=1e-5,
    rope=RopeSpec(
        64, 500000.0, "llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192
    ),
    max_positions=131072,
    tied=True,
)
SMOLLM2_135M = ModelSpec(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    norm_eps=1e-5,
    rope=RopeSpec(64, 100000.0),
    max_positions=8192,
    tied=True,
)
QWEN2_5_0_5B = ModelSpec(
    family="qwen",
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    layers=24,
    heads=14,
    kv_heads=2,
    head_dim=64,
    norm_eps=1e-6,
    rope=RopeSpec(64, 1000000.0),
    max_positions=32768,
    tied=True,
    qkv_bias=True,
)
QWEN2_5_7B = ModelSpec(
    family="qwen",
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    layers=28,
    heads=28,
    kv_heads=4,
    head_dim=128,
    norm_eps=1e-6,
    rope=RopeSpec(128, 1000000.0),
    max_positions=32768,
    qkv_bias=True,
)
QWEN3_0_6B = ModelSpec(
    family="qwen",
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    norm_eps=1e-6,
    rope=RopeSpec(128, 1000000.0),
    max_positions=40960,
    tied=True,
    qk_norm=True,
)
QWEN3_8B = ModelSpec(
    family="qwen",
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    norm_eps=1e-6,
    rope=RopeSpec(128, 1000000.0),
    max_positions=40960,
    qk_norm=True,
)


@pytest.mark.parametrize(
    ("family", "config", "spec"),
    [
        (llama, configs.LLAMA_2_7B, LLAMA_2_7B),
        (llama, configs.LLAMA_3_1_8B, LLAMA_3_1_8B),
        (llama, configs.LLAMA_3_2_1B, LLAMA_3_2_1B),
        (llama, configs.SMOLLM2_135M, SMOLLM2_135M),
        (qwen, configs.QWEN2_5_0_5B, QWEN2_5_0_5B),
        (qwen, configs.QWEN2_5_7B, QWEN2_5_7B),
        (qwen, configs.QWEN3_0_6B, QWEN3_0_6B),
        (qwen, configs.QWEN3_8B, QWEN3_8B),
    ],
    ids=["llama2-7b", "llama3.1-8b", "llama3.2-1b", "smollm2", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-0.6b", "qwen3-8b"],
)
def test_published_config(family: Family, config: dict[str, Any], spec: ModelSpec) -> None:
    assert family(config) == spec


def test_yarn_makes_the_context_longer() -> None:
    spec = qwen(configs.QWEN2_5_7B_YARN)
    assert (spec.rope.kind, spec.rope.factor, spec.rope.original_positions) == ("yarn", 4.0, 32768)
    assert spec.rope.attention_factor == pytest.approx(1.1386294361)  # 0.1 ln 4 + 1
    assert spec.max_positions == 131072


@pytest.mark.parametrize(
    ("plugin", "families"),
    [
        (llama_plugin, [FamilyInfo("llama", ("llama",), "llmcore_llama.family:llama", "llama_infer")]),
        (qwen_plugin, [FamilyInfo("qwen", ("qwen2", "qwen3"), "llmcore_qwen.family:qwen", "qwen_infer")]),
    ],
)
def test_plugin_names_its_function(plugin: Any, families: list[FamilyInfo]) -> None:
    assert plugin.llmcore_families() == families
    assert [resolve(family.target) for family in families] == [llama if plugin is llama_plugin else qwen]


def as_transformers_5(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config under the newer keys."""
    new = dict(config)
    rope = {"rope_type": "default", **(new.pop("rope_scaling", None) or {})}
    new["rope_parameters"] = {**rope, "rope_theta": new.pop("rope_theta", 10000.0)}
    new["dtype"] = new.pop("torch_dtype")
    if new["model_type"] != "llama":
        new["layer_types"] = ["full_attention"] * new["num_hidden_layers"]
    return new


@pytest.mark.parametrize(
    ("family", "config"),
    [
        (llama, configs.LLAMA_2_7B),
        (llama, configs.LLAMA_3_1_8B),
        (llama, configs.SMOLLM2_135M),
        (qwen, configs.QWEN2_5_0_5B),
        (qwen, {**configs.QWEN2_5_7B, "rope_scaling": {"factor": 4.0, "rope_type": "yarn"}}),
        (qwen, configs.QWEN3_0_6B),
    ],
)
def test_both_generations_mean_the_same(family: Family, config: dict[str, Any]) -> None:
    assert family(as_transformers_5(config)) == family(config)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("old_config", [False, True])
def test_what_transformers_writes_is_read(tiny_model: Callable[..., TinyModel], name: str, old_config: bool) -> None:
    config = tiny_model(name, old_config=old_config).config
    family = llama if config["model_type"] == "llama" else qwen
    spec = family(config)
    assert spec == family(tiny_model(name).config)
    kinds = {"llama3": "llama3", "llama_linear": "linear", "llama_dynamic": "dynamic", "llama_yarn": "yarn"}
    assert spec.rope.kind == kinds.get(name, "default")
    assert spec.tied == (name in ("llama3", "qwen2"))


def test_qwen3_heads_have_a_size_of_their_own() -> None:
    without = {key: value for key, value in configs.QWEN3_0_6B.items() if key != "head_dim"}
    assert qwen(without).head_dim == 128 != 1024 // 16


def test_biases_of_llama() -> None:
    spec = llama({**configs.LLAMA_2_7B, "attention_bias": True, "mlp_bias": True})
    assert spec.qkv_bias and spec.out_bias and spec.mlp_bias


def test_qwen3_bias_includes_the_output() -> None:
    spec = qwen({**configs.QWEN3_0_6B, "attention_bias": True})
    assert spec.qkv_bias and spec.out_bias and spec.qk_norm


def test_llama_1_has_a_key_head_for_every_query_head() -> None:
    config = {**configs.LLAMA_2_7B, "num_key_value_heads": None}
    assert llama(config).kv_heads == 32


def test_gguf_keys() -> None:
    factors = [1.0 + i for i in range(32)]
    config = {**configs.SMOLLM2_135M, "rope_interleaved": True, "rope_freq_factors": factors}
    rope = llama(config).rope
    assert rope.interleaved and rope.freq_factors == tuple(factors)


def test_partial_rotation() -> None:
    assert llama({**configs.LLAMA_2_7B, "partial_rotary_factor": 0.25}).rope.dim == 32
    inside = {"rope_type": "default", "partial_rotary_factor": 0.25}
    assert llama({**configs.LLAMA_2_7B, "rope_parameters": inside}).rope.dim == 32


def test_dynamic_scales_the_context_that_the_config_has() -> None:
    spec = llama({**configs.LLAMA_2_7B, "rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert (spec.rope.original_positions, spec.max_positions) == (4096, 8192)


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({}, 1.3465735903),  # 0.1 ln 32 + 1
        ({"attention_factor": 0.75}, 0.75),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, 1.1476934675),  # (0.1 ln 32 + 1) / (0.05 ln 32 + 1)
        ({"mscale": 0.5}, 1.3465735903),  # one alone means nothing
        ({"mscale": 0.5, "mscale_all_dim": 0}, 1.3465735903),
    ],
)
def test_yarn_attention_factor(fields: dict[str, float], factor: float) -> None:
    scaling = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, **fields}
    rope = llama({**configs.LLAMA_2_7B, "max_position_embeddings": 131072, "rope_scaling": scaling}).rope
    assert rope.attention_factor == pytest.approx(factor, rel=1e-7)
