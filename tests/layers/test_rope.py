"""RoPE's frequencies and tables against transformers', variant by variant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import configs
from helpers.gguf_files import llama3_divisors
from llmcore.layers.rope import RoPE, inverse_frequencies, tables
from llmcore.model_spec import RopeSpec
from llmcore_llama.family import llama

ULPS = 5 * 2.0**-24  # relative: three roundings of float32, and a power that torch gets right to 1 ulp with AVX512
BLENDED = 2e-6  # of the unscaled frequency: a blend's weight is a difference, less exact the narrower its band


def config_with(rope: dict[str, Any], head_dim: int = 64, positions: int = 4096) -> dict[str, Any]:
    heads = {"head_dim": head_dim, "max_position_embeddings": positions}
    return {**configs.LLAMA_2_7B, **heads, "rope_scaling": None, "rope_parameters": rope}


def theirs(rope: dict[str, Any], head_dim: int = 64, positions: int = 4096) -> tuple[np.ndarray, float]:
    """transformers' inverse frequencies, float32 [head_dim / 2], and what it multiplies cosine and sine by."""
    from transformers import LlamaConfig, logging
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    logging.set_verbosity_error()  # it warns of every unusual ratio of contexts
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=positions,
        rope_parameters=dict(rope),
    )
    kind = rope["rope_type"]
    function = LlamaRotaryEmbedding.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    frequencies, factor = function(config)
    return frequencies.numpy(), factor


def rope_of(rope: dict[str, Any], head_dim: int = 64, positions: int = 4096) -> RopeSpec:
    return llama(config_with(rope, head_dim, positions)).rope


def check(rope: dict[str, Any], head_dim: int, positions: int, blend: float = 0.0) -> None:
    spec = rope_of(rope, head_dim, positions)
    frequencies, factor = theirs(rope, head_dim, positions)
    ours, unscaled = inverse_frequencies(spec, 8), inverse_frequencies(RopeSpec(head_dim, spec.theta), 8)
    for row in np.atleast_2d(ours):  # dynamic: equal rows while the context is no longer than the original one
        assert (np.abs(row - frequencies) <= ULPS * frequencies + blend * unscaled).all()
    assert ours.dtype == np.float32
    assert spec.attention_factor == pytest.approx(factor, rel=1e-12)


thetas = st.sampled_from([500.0, 1e4, 1e5, 5e5, 1e6, 5e6])
head_dims = st.sampled_from([16, 32, 64, 80, 96, 128])
factors = st.floats(1.0, 64.0)
lengths = st.sampled_from([32, 512, 2048, 4096, 8192, 32768])


@settings(max_examples=60, deadline=None)
@given(theta=thetas, head_dim=head_dims, kind=st.sampled_from(["default", "linear", "dynamic"]), factor=factors)
def test_simple_variants(theta: float, head_dim: int, kind: str, factor: float) -> None:
    scaling = {} if kind == "default" else {"factor": factor}
    check({"rope_type": kind, "rope_theta": theta, **scaling}, head_dim, 4096)


@settings(max_examples=60, deadline=None)
@given(
    theta=thetas, head_dim=head_dims, factor=factors, original=lengths, low=st.floats(0.5, 4.0), gap=st.floats(0.5, 8.0)
)
def test_llama3(theta: float, head_dim: int, factor: float, original: int, low: float, gap: float) -> None:
    bands = {"low_freq_factor": low, "high_freq_factor": low + gap, "original_max_position_embeddings": original}
    check({"rope_type": "llama3", "rope_theta": theta, "factor": factor, **bands}, head_dim, 131072, BLENDED)


@settings(max_examples=100, deadline=None)
@given(
    theta=thetas,
    head_dim=head_dims,
    factor=factors,
    original=lengths,
    slow=st.sampled_from([1.0, 0.5, 2.0]),
    fast=st.sampled_from([2.0, 32.0, 64.0]),
    more=st.fixed_dictionaries(
        {},
        optional={
            "truncate": st.booleans(),
            "attention_factor": st.floats(0.5, 2.0),
            "mscale": st.floats(0.5, 2.0),
            "mscale_all_dim": st.sampled_from([0.0, 0.5, 1.0]),
        },
    ),
)
def test_yarn(
    theta: float, head_dim: int, factor: float, original: int, slow: float, fast: float, more: dict[str, Any]
) -> None:
    rope = {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "beta_fast": fast, "beta_slow": slow, **more}
    check({**rope, "original_max_position_embeddings": original}, head_dim, 131072, BLENDED)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {**configs.LLAMA3_SCALING, "rope_theta": 5e5},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_tables(rope: dict[str, Any]) -> None:
    """Angles are float32 products: a last bit of a frequency, times the position, is how far the two may be apart."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    positions = 2048
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=rope)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(positions)[None])
    ours = tables(rope_of(rope), positions)
    assert all(table.shape == (positions, 32) and table.dtype == np.float32 for table in ours)
    allowed = 2.0**-22 * (1 + np.arange(positions))[:, None]
    for mine, reference in zip(ours, (cos, sin), strict=True):
        assert (np.abs(mine - reference[0, :, :32].numpy()) <= allowed).all()


def test_dynamic_is_what_token_by_token_generation_sees() -> None:
    """Beyond the original context, transformers turns each new key by the base of the length at that moment."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=16, rope_parameters=rope)
    module = LlamaRotaryEmbedding(config)
    steps = [module(torch.zeros(1), torch.tensor([[position]])) for position in range(40)]
    for mine, reference in zip(tables(rope_of(rope, positions=16), 40), zip(*steps, strict=True), strict=True):
        np.testing.assert_allclose(mine, torch.cat(reference, 1)[0, :, :32].numpy(), atol=2e-5)


def test_dynamic_rows_do_not_depend_on_the_table_s_length() -> None:
    spec = rope_of({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, positions=16)
    np.testing.assert_array_equal(inverse_frequencies(spec, 64)[:24], inverse_frequencies(spec, 24))


def test_ready_made_divisors_are_llama3() -> None:
    """GGUF stores Llama 3's scaling as one divisor for each frequency of the unscaled rope."""
    scaling = {**configs.LLAMA3_SCALING, "rope_theta": 5e5}
    divisors = [float(each) for each in llama3_divisors(scaling, 64)]
    plain = llama({**config_with({"rope_type": "default", "rope_theta": 5e5}), "rope_freq_factors": divisors}).rope
    np.testing.assert_allclose(inverse_frequencies(plain, 1), inverse_frequencies(rope_of(scaling), 1), rtol=1e-6)


def test_attention_factor_multiplies_both() -> None:
    spec = RopeSpec(16, attention_factor=1.5)
    cos, sin = tables(spec, 10)
    np.testing.assert_allclose(cos**2 + sin**2, 2.25, rtol=1e-6)


def test_layer_turns_pairs_by_position() -> None:
    """Written out from the definition: pair f of position p is multiplied by exp(i p theta^(-2f / dim))."""
    import torch

    from llmcore import ops

    class Eager(ops.Eager):
        def input(self, name: str) -> Any:
            assert name == "positions"
            return torch.tensor([0, 3, 1])

        def op(self, name: str, /, **arguments: Any) -> Any:
            tensors = {key: torch.from_numpy(arguments.pop(key).array) for key in ("cos", "sin")}
            return super().op(name, **arguments, **tensors)

    x = np.random.default_rng(0).standard_normal((3, 2 * 12)).astype(np.float32)
    for interleaved in (False, True):
        layer = RoPE.of(RopeSpec(8, theta=100.0, interleaved=interleaved), head_dim=12, positions=4)
        turned = layer(Eager(), torch.from_numpy(x)).numpy().reshape(3, 2, 12)
        heads = x.reshape(3, 2, 12)
        assert (turned[..., 8:] == heads[..., 8:]).all()  # only the first 8 of 12 elements are turned
        for f in range(4):
            a, b = (2 * f, 2 * f + 1) if interleaved else (f, f + 4)
            before = heads[..., a] + 1j * heads[..., b]
            angles = np.array([0, 3, 1]) * 100.0 ** (-2 * f / 8)
            after = before * np.exp(1j * angles)[:, None]
            np.testing.assert_allclose(turned[..., a] + 1j * turned[..., b], after, atol=1e-6)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    """Pairs that turn more often than beta_fast within the original context stay, rarer than beta_slow are divided."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 4096}
    ratio = inverse_frequencies(rope_of(rope), 1) / inverse_frequencies(RopeSpec(64), 1)
    turns = 4096 * inverse_frequencies(RopeSpec(64), 1) / (2 * math.pi)
    assert ratio[turns > 64] == pytest.approx(1.0) and ratio[turns < 0.5] == pytest.approx(1 / 8)
    assert (np.diff(ratio) <= 0).all()
