"""A config that asks for something that we lack, or that cannot be, is refused by its key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import configs
from llmcore.errors import CheckpointError, LlmcoreError, UnsupportedModelError
from llmcore.model_spec import ModelSpec
from llmcore_llama.family import llama
from llmcore_qwen.family import qwen

Family = Callable[..., ModelSpec]
SCALING = configs.LLAMA3_SCALING
YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("architectures", ["LlamaModel"]),
        ("auto_map", {"AutoModelForCausalLM": "modeling_x.X"}),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("sliding_window", 4096),
        ("layer_types", ["full_attention"] * 31 + ["sliding_attention"]),
        ("layer_types", ["linear_attention"] * 32),
        ("pruned_heads", {"0": [1]}),
        ("is_encoder_decoder", True),
        ("add_cross_attention", True),
        ("num_experts", 8),
        ("num_local_experts", 8),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.0625),
        ("embedding_multiplier", 12.0),
        ("attention_multiplier", 0.0078125),
        ("residual_multiplier", 0.22),
        ("query_pre_attn_scalar", 256),
        ("qk_layernorm", True),
        ("parallel_attn", True),
        ("alibi", True),
        ("no_rope_layers", [1, 1, 1, 0]),
        ("vision_config", {}),
        ("a_key_from_the_future", False),
    ],
)
def test_unsupported_key(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=key) as caught:
        llama({**configs.LLAMA_2_7B, key: value})
    assert caught.value.key == key and caught.value.remedy


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (configs.QWEN2_5_7B, "use_sliding_window", True),
        (configs.QWEN2_5_7B, "attention_bias", False),  # a GGUF without its biases
        (configs.QWEN2_5_7B, "mlp_bias", True),
        (configs.QWEN2_5_7B, "use_mrope", True),
        (configs.QWEN3_8B, "use_sliding_window", True),
        (configs.QWEN3_8B, "mlp_bias", True),
        (configs.QWEN3_8B, "num_experts_per_tok", 8),
        (configs.QWEN3_8B, "model_type", "qwen3_moe"),
    ],
)
def test_unsupported_key_of_qwen(config: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=key) as caught:
        qwen({**config, key: value})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("scaling", "key", "said"),
    [
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, "rope_type", "'longrope'"),
        ({"type": "su", "factor": 4.0}, "type", "'su'"),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, "type", "'mrope'"),
        ({"rope_type": ["yarn"]}, "rope_type", "yarn"),
        ({"type": ""}, "type", "''"),
        ({"rope_type": "default", "factor": 2.0}, "factor", "2.0"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 32.0}, "beta_fast", "32.0"),
        ({**YARN, "attn_factor": 0.5}, "attn_factor", "0.5"),
        ({**SCALING, "attention_factor": 1.2}, "attention_factor", "1.2"),
    ],
)
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_unsupported_rope(scaling: dict[str, Any], key: str, said: str, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said) as caught:
        llama({**configs.LLAMA_3_1_8B, "rope_scaling": None, name: scaling})
    assert caught.value.key == f"{name}.{key}"


def test_layers_with_a_rope_each() -> None:
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    with pytest.raises(UnsupportedModelError) as caught:
        llama({**configs.LLAMA_2_7B, "rope_parameters": nested})
    assert caught.value.key == "rope_parameters.full_attention"


def test_two_sources_of_rope() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        llama({**configs.LLAMA_3_1_8B, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    assert caught.value.key == "rope_scaling"


REQUIRED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "rms_norm_eps"),
)


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize(
    "value", [None, "many", [1], True, -1, 0, float("nan"), float("inf"), pytest.param(10**5000, id="huge")]
)
def test_impossible_value(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^config: {key} ") as caught:
        llama({**configs.LLAMA_2_7B, key: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_hidden_layers": 1 << 40}, "num_hidden_layers"),
        ({"num_hidden_layers": 1024}, "num_hidden_layers"),
        ({"num_hidden_layers": 32.0}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_key_value_heads": 64}, "num_key_value_heads"),
        ({"num_attention_heads": 30, "num_key_value_heads": 30}, "num_attention_heads"),
        ({"head_dim": 127}, "head_dim"),
        ({"head_dim": 1024}, "head_dim"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.001}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.0}, "partial_rotary_factor"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"rope_theta": "1e4"}, "rope_theta"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "rope_parameters.rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "rope_scaling.type"),
        ({"rope_scaling": {"type": "dynamic", "factor": -2.0}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim"),
        ({"rope_scaling": {**SCALING, "high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor"),
        ({"rope_scaling": {**SCALING, "low_freq_factor": None}}, "rope_scaling.low_freq_factor"),
        ({"rope_scaling": {**YARN, "beta_fast": 0.5}}, "rope_scaling.beta_fast"),
        ({"rope_scaling": {**YARN, "truncate": 0}}, "rope_scaling.truncate"),
        ({"rope_scaling": {**YARN, "attention_factor": "auto"}}, "rope_scaling.attention_factor"),
        (
            {"rope_scaling": {**YARN, "factor": 1e300, "mscale": 1e308, "mscale_all_dim": 1e308}},
            "rope_scaling.attention_factor",
        ),
        ({"rope_freq_factors": [1.0] * 63}, "rope_freq_factors"),
        ({"rope_freq_factors": [0.0] * 64}, "rope_freq_factors"),
        ({"rope_interleaved": "yes"}, "rope_interleaved"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"attention_bias": "none"}, "attention_bias"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config: {key} "):
        llama({**configs.LLAMA_2_7B, **changes})


def test_user_may_ignore_a_key() -> None:
    config = {**configs.LLAMA_2_7B, "sparkle": 3, "rope_scaling": {**YARN, "glitter": 1}}
    with pytest.raises(UnsupportedModelError, match=r"ignore_config_keys=\[rope_scaling\.glitter\]"):
        llama(config, ignore=["sparkle"])
    assert llama(config, ignore=["sparkle", "rope_scaling.glitter"]).rope.kind == "yarn"
    assert qwen({**configs.QWEN3_8B, "sparkle": 3}, ignore=["sparkle"]) == qwen(configs.QWEN3_8B)


def test_null_means_absent() -> None:
    config = {**configs.LLAMA_2_7B, "sliding_window": None, "head_dim": None, "quantization_config": None}
    assert llama(config) == llama(configs.LLAMA_2_7B)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SCALING, "x"]), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from([(llama, configs.LLAMA_3_1_8B), (qwen, configs.QWEN2_5_7B_YARN), (qwen, configs.QWEN3_8B)]),
    data=st.data(),
)
def test_any_damage_gives_a_spec_or_a_typed_error(
    family: tuple[Family, Mapping[str, Any]], data: st.DataObject
) -> None:
    function, config = family
    keys = data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3))
    damaged = {**json.loads(json.dumps(config)), **{key: data.draw(VALUES) for key in keys}}
    if isinstance(damaged.get("rope_scaling"), dict):
        damaged["rope_scaling"][data.draw(st.sampled_from(sorted(SCALING)))] = data.draw(VALUES)
    try:
        assert isinstance(function(damaged), ModelSpec)
    except LlmcoreError as error:
        assert error.remedy and len(str(error)) < 400
