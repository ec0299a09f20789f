"""Llama: grouped-query attention, RoPE in any variant; biases only where the config asks for them.

Touvron et al. 2023 (arXiv:2307.09288), Grattafiori et al. 2024 (arXiv:2407.21783).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmcore.model_config import ConfigReader, decoder_spec
from llmcore.model_spec import ModelSpec


def llama(config: Mapping[str, Any], ignore: Sequence[str] = ()) -> ModelSpec:
    """The spec of a model of type ``llama``; ``ignore`` names config keys to treat as absent."""
    reader = ConfigReader(config, ignore)
    bias = reader.flag("attention_bias", False)
    mlp_bias = reader.flag("mlp_bias", False)
    neutral = {"model_type": ("llama",)}
    return decoder_spec(reader, "llama", qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias, neutral=neutral)
