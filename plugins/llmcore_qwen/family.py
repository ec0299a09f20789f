"""Qwen2 has a bias on Q, K and V; Qwen3 instead normalises every query and key head, of a size of its own.

Yang et al. 2024 (arXiv:2407.10671), Yang et al. 2025 (arXiv:2505.09388).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmcore.model_config import ConfigReader, decoder_spec
from llmcore.model_spec import ModelSpec

WINDOW = ("sliding_window", "max_window_layers")  # mean nothing without use_sliding_window, which is refused
QWEN2 = {"model_type": ("qwen2",), "attention_bias": (True,), "mlp_bias": (False,)}
QWEN3 = {"model_type": ("qwen3",), "mlp_bias": (False,)}


def qwen(config: Mapping[str, Any], ignore: Sequence[str] = ()) -> ModelSpec:
    """The spec of a model of type ``qwen2`` or ``qwen3``; ``ignore`` names config keys to treat as absent."""
    reader = ConfigReader(config, ignore)
    if config.get("model_type") == "qwen2":
        return decoder_spec(reader, "qwen", qkv_bias=True, harmless=WINDOW, neutral=QWEN2)
    bias = reader.flag("attention_bias", False)
    return decoder_spec(
        reader, "qwen", head_dim=128, qkv_bias=bias, out_bias=bias, qk_norm=True, harmless=WINDOW, neutral=QWEN3
    )
