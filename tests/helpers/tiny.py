"""Tiny random-weight checkpoints of every family, written by transformers, whose logits are the reference.

The weights are scaled so that logits spread over several units and every formula matters: swapping a rope variant or
dropping a bias or a norm moves them by far more than comparisons tolerate (``tests/test_tiny_models.py`` measures it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from helpers.tiny_tokenizer import VOCAB, write_tokenizer

MAX_POSITIONS = 64

# Small, yet every size differs from every other one that it could be confused with.
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def _rope(kind: str, theta: float = 10000.0, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **fields}}


# Frequencies fall into all three of Llama 3's bands, and yarn's ramp has a start, a slope and an end.
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN_ROPE = {"factor": 4.0, "beta_fast": 2.0, "beta_slow": 1.0, "original_max_position_embeddings": 32}
YARN_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 4}),
    "llama3": ("llama", {"tie_word_embeddings": True, **_rope("llama3", **LLAMA3_ROPE)}),
    "llama_linear": ("llama", _rope("linear", factor=4.0)),
    "llama_dynamic": ("llama", {"max_position_embeddings": 16, **_rope("dynamic", factor=2.0)}),
    "llama_yarn": ("llama", {**YARN_HEADS, **_rope("yarn", 1000.0, **YARN_ROPE)}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, **_rope("default", 1000000.0)}),
    "qwen2_untied": ("qwen2", _rope("default", 1000000.0)),
    "qwen3": ("qwen3", {"head_dim": 32, **_rope("default", 1000000.0)}),
}
"""name → (``model_type``, what differs from :data:`BASE`)."""


@dataclass(frozen=True)
class TinyModel:
    """A tiny checkpoint on disk.

    Attributes:
        path: its directory: ``config.json``, safetensors, tokenizer.
        family: its key in :data:`FAMILIES`.
    """

    path: Path
    family: str
    config: dict[str, Any] = field(repr=False)  # config.json as written

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the embedding, columns of the logits."""
        return int(self.config["vocab_size"])

    def ids(self, count: int, seed: int = 0) -> list[int]:
        """``count`` random token ids."""
        return [int(i) for i in np.random.default_rng(seed).integers(0, self.vocab_size, count)]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """transformers' logits for one prefill of ``ids``: float32, [T, V]; fp32 weights, eager attention."""
        import torch

        # Loaded anew each time: dynamic rope keeps the longest length that a model object has seen.
        with torch.inference_mode():
            found: np.ndarray = self.reference()(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
        return found

    def reference(self) -> Any:
        """The transformers model, in fp32 with eager attention."""
        import torch
        from transformers import AutoModelForCausalLM

        load = AutoModelForCausalLM.from_pretrained
        return load(self.path, dtype=torch.float32, attn_implementation="eager", local_files_only=True).eval()


def make_tiny(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    old_config: bool = False,
    **changes: Any,
) -> TinyModel:
    """Writes a tiny checkpoint of ``family`` into ``folder``.

    Args:
        folder: where to; created.
        family: a key of :data:`FAMILIES`.
        seed: of the weights.
        dtype: of the stored weights: ``float32``, ``bfloat16`` or ``float16``.
        shards: at least this many safetensors files, with an index.
        old_config: write ``rope_theta``, ``rope_scaling`` and ``torch_dtype`` as transformers 4 did.
        changes: config keys to set differently.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, differing = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**BASE, **differing, **changes})
    model = AutoModelForCausalLM.from_config(config)
    _randomize(model, torch.Generator().manual_seed(seed))
    model = model.to(getattr(torch, dtype))
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    model.save_pretrained(folder, max_shard_size=size + 1 if shards == 1 else size // shards)
    if old_config:
        _write_old_config(folder / "config.json")
    write_tokenizer(folder)
    return TinyModel(folder, family, json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _randomize(model: Any, generator: Any) -> None:
    """Norms around 1, biases of the size of what they are added to, activations and logits around 1."""
    import torch

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                tensor.copy_(0.7 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(0.15 * noise)  # it may be the classifier too
            elif name.startswith("lm_head"):
                tensor.copy_(0.15 * noise)
            else:
                tensor.copy_(noise * 1.3 / tensor.shape[1] ** 0.5)


def _write_old_config(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
