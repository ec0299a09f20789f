"""Turns a GGUF's metadata into the keys of Hugging Face's ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore.errors import CheckpointError, UnsupportedModelError, near
from llmcore_gguf import names
from llmcore_gguf.container import Container, shown


@dataclass(frozen=True)
class Architecture:
    """What the metadata of one architecture leaves unsaid."""

    model_type: str
    model_class: str
    rope_interleaved: bool  # converters reorder the rows of Q and K to suit interleaved RoPE


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", rope_interleaved=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", rope_interleaved=False),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", rope_interleaved=False),
}
DEFAULT_ROPE_THETA = 10_000.0  # of the format, where rope.freq_base is absent


def translate(container: Container) -> dict[str, Any]:
    """The config of ``container``.

    Raises:
        UnsupportedModelError: the architecture, or a metadata key of it, is not implemented; ``key`` names it.
        CheckpointError: a required key is missing or of the wrong type.
    """
    name = _architecture(container)
    traits = ARCHITECTURES[name]
    prefix = f"{name}."
    keys = {key.removeprefix(prefix): value for key, value in container.metadata.items() if key.startswith(prefix)}
    _refuse_unknown(container, prefix, keys)
    config: dict[str, Any] = {
        "model_type": traits.model_type,
        "architectures": [traits.model_class],
        "hidden_act": "silu",
        "rope_theta": DEFAULT_ROPE_THETA,
        "rope_interleaved": traits.rope_interleaved,
    }
    for key in names.REQUIRED:
        if key not in keys:
            raise _error(container, prefix + key, "is missing")
    for key, target in names.COUNTS.items():
        if key in keys:
            config[target] = _count(container, prefix + key, keys[key])
    for key, target in names.NUMBERS.items():
        if key in keys:
            config[target] = _number(container, prefix + key, keys[key])
    _complete(container, prefix, keys, config)
    config["rope_scaling"] = _rope_scaling(container, prefix, keys)
    return config


def _architecture(container: Container) -> str:
    """``general.architecture``, after refusing files that are no whole model of one that we know."""
    metadata = container.metadata
    kind = metadata.get("general.type", "model")
    if kind not in ("model", "vocab"):
        raise UnsupportedModelError(
            f"{container.path}: this GGUF holds a {kind!r}, not a model",
            key="general.type",
            remedy="give the model's file",
        )
    if _scalar(metadata.get("split.count", 1)) not in (0, 1):
        raise UnsupportedModelError(
            f"{container.path}: one part of a model split over {metadata['split.count']} GGUF files",
            key="split.count",
            remedy="join them with llama-gguf-split --merge",
        )
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise _error(container, "general.architecture", "is missing or not a string")
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{container.path}: architecture {name!r} is not implemented for GGUF",
            key="general.architecture",
            remedy=near(name, ARCHITECTURES),
        )
    return name


def _refuse_unknown(container: Container, prefix: str, keys: dict[str, Any]) -> None:
    known = names.ROPE | names.DERIVED | names.INFORMATIVE | set(names.COUNTS) | set(names.NUMBERS)
    for key, value in keys.items():
        if key in known or _scalar(value) in names.NEUTRAL.get(key, ()):
            continue
        raise UnsupportedModelError(
            f"{container.path}: {prefix}{key} = {shown(value)} is not implemented",
            key=prefix + key,
            remedy="use a checkpoint without this feature",
        )


def _complete(container: Container, prefix: str, keys: dict[str, Any], config: dict[str, Any]) -> None:
    """Fills in what follows from other keys and from which tensors there are."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    config.setdefault("num_key_value_heads", heads)
    if "head_dim" not in config:
        if hidden % heads:
            raise _error(container, prefix + "attention.head_count", f"{heads} heads do not divide {hidden}")
        config["head_dim"] = hidden // heads
    for key in sorted(names.DERIVED & set(keys)):
        if keys[key] != config["head_dim"]:
            raise UnsupportedModelError(
                f"{container.path}: {prefix}{key} = {shown(keys[key])} differs from the head size {config['head_dim']}",
                key=prefix + key,
                remedy="partial RoPE and values of another size are not implemented",
            )
    shapes = {entry.name: entry.shape for entry in container.tensors}
    tokens = container.metadata.get("tokenizer.ggml.tokens", ())
    config.setdefault("vocab_size", shapes.get("token_embd.weight", (len(tokens),))[0])
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config["attention_bias"] = any(name.endswith(".attn_q.bias") for name in shapes)
    config["mlp_bias"] = any(name.endswith(".ffn_down.bias") for name in shapes)


def _rope_scaling(container: Container, prefix: str, keys: dict[str, Any]) -> dict[str, Any] | None:
    """``rope_scaling`` as transformers writes it. Llama 3's scaling is not here: it comes as a tensor of factors."""
    factor_key = "rope.scaling.factor" if "rope.scaling.factor" in keys else "rope.scale_linear"
    kind = keys.get("rope.scaling.type", "linear" if factor_key in keys else "none")
    if kind == "none" or (kind == "linear" and keys.get(factor_key, 0.0) in (0.0, 1.0)):
        return None
    if kind not in ("linear", "yarn"):
        key = prefix + "rope.scaling.type"
        raise UnsupportedModelError(
            f"{container.path}: {key} = {shown(kind)} is not implemented", key=key, remedy="known: none, linear, yarn"
        )
    if factor_key not in keys:
        raise _error(container, prefix + "rope.scaling.factor", f"is missing, and {kind} scaling needs it")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _number(container, prefix + factor_key, keys[factor_key])}
    if kind == "yarn":
        original = "rope.scaling.original_context_length"
        if original not in keys:
            raise _error(container, prefix + original, "is missing, and yarn scaling needs it")
        scaling["original_max_position_embeddings"] = _count(container, prefix + original, keys[original])
        for name in ("beta_fast", "beta_slow"):
            key = f"rope.scaling.yarn_{name}"
            if key in keys:
                scaling[name] = _number(container, prefix + key, keys[key])
    return scaling


def _scalar(value: Any) -> Any:
    """``value``, or the one number that a per-layer array repeats; arrays of several numbers become None."""
    if not isinstance(value, np.ndarray):
        return value if not isinstance(value, list) else None
    return value[0].item() if value.size and (value == value[0]).all() else None


def _count(container: Container, key: str, value: Any) -> int:
    if isinstance(value, np.ndarray) and _scalar(value) is None:
        raise UnsupportedModelError(
            f"{container.path}: {key} differs from layer to layer",
            key=key,
            remedy="layers of one shape are implemented",
        )
    number = _scalar(value)
    if type(number) is not int or not 0 < number < 1 << 31:
        raise _error(container, key, f"is {shown(value)}, not a positive integer")
    return number


def _number(container: Container, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise _error(container, key, f"is {shown(value)}, not a positive number")
    return float(value)


def _error(container: Container, key: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"metadata key {key!r} {what}", file=container.path, remedy="convert the model to GGUF again"
    )
