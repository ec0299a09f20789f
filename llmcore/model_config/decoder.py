"""What all families of decoder-only transformers read from a config."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from llmcore.model_config.keys import HARMLESS, NEUTRAL
from llmcore.model_config.reader import ConfigReader
from llmcore.model_config.rope import rope_spec
from llmcore.model_spec import ModelSpec


def decoder_spec(
    reader: ConfigReader,
    family: str,
    *,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    harmless: Collection[str] = (),
    neutral: Mapping[str, tuple[object, ...]] | None = None,
) -> ModelSpec:
    """The spec of a model, after its family has read what only it knows.

    Args:
        head_dim: where the config does not say; None derives it from the hidden size.
        harmless, neutral: the family's additions to :data:`~llmcore.model_config.keys.HARMLESS` and ``NEUTRAL``.

    Raises:
        UnsupportedModelError: the config asks for something that is not implemented; ``key`` names it.
        CheckpointError: a key is missing, of the wrong type, or impossible.
    """
    _check_class(reader)
    heads, kv_heads, size = _heads(reader, head_dim)
    layers = reader.count("num_hidden_layers")
    _check_layers(reader, layers)
    rope, context = rope_spec(reader, size)
    spec = ModelSpec(
        family=family,
        vocab_size=reader.count("vocab_size"),
        hidden_size=reader.count("hidden_size"),
        intermediate_size=reader.count("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        norm_eps=reader.number("rms_norm_eps"),
        rope=rope,
        max_positions=context,
        tied=reader.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
    )
    reader.finish(HARMLESS.union(harmless), {**NEUTRAL, **(neutral or {})})
    return spec


def _heads(reader: ConfigReader, head_dim: int | None) -> tuple[int, int, int]:
    """Query heads, key heads, and the size of each."""
    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    kv_heads = reader.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise reader.damaged("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} query heads")
    if reader.get("head_dim") is None and head_dim is None and hidden % heads:
        raise reader.damaged("num_attention_heads", f"is {heads}, which does not divide hidden_size {hidden}")
    return heads, kv_heads, reader.count("head_dim", head_dim or hidden // heads)


def _check_class(reader: ConfigReader) -> None:
    """Refuses classifiers, embedders and the like, which have no head over the vocabulary."""
    classes = reader.get("architectures") or []
    if not isinstance(classes, list):
        raise reader.damaged("architectures", "is not a list of class names")
    for name in classes:
        if not isinstance(name, str) or not name.endswith("ForCausalLM"):
            raise reader.unsupported("architectures", name, "is not a causal language model")


def _check_layers(reader: ConfigReader, layers: int) -> None:
    """Refuses layers of any kind but full attention."""
    kinds = reader.get("layer_types") or ["full_attention"] * layers
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise reader.damaged("layer_types", f"is not a list of {layers} names, one for each layer")
    for kind in kinds:
        if kind != "full_attention":
            raise reader.unsupported("layer_types", kind)
