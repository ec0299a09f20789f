"""The tokenizer that a GGUF's metadata describes, as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcore.errors import CheckpointError
from llmcore.weights.checkpoint import TokenizerSource
from llmcore_gguf.container import Container, shown

PREFIX = "tokenizer.ggml."
IDS = {  # our name → GGUF's
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "unk_id": "unknown_token_id",
    "pad_id": "padding_token_id",
    "eot_id": "eot_token_id",
    "eom_id": "eom_token_id",
}
FLAGS = {
    "add_bos": "add_bos_token",
    "add_eos": "add_eos_token",
    "add_space_prefix": "add_space_prefix",
    "remove_extra_whitespaces": "remove_extra_whitespaces",
}
SPECIAL = {"bos_token": "bos_id", "eos_token": "eos_id", "unk_token": "unk_id", "pad_token": "pad_id"}


def tokenizer_source(container: Container) -> TokenizerSource:
    """The tokenizer data of ``container``, kind ``"none"`` where it has none.

    Raises:
        CheckpointError: a key is of the wrong type, a list of the wrong length, an id out of range.
    """
    metadata = container.metadata
    if PREFIX + "tokens" not in metadata:
        return TokenizerSource("none", path=container.path)
    tokens = _strings(container, "tokens")
    data: dict[str, Any] = {
        "model": _optional(container, PREFIX + "model", str) or "",
        "pre": _optional(container, PREFIX + "pre", str) or "default",
        "tokens": tokens,
        "scores": _numbers(container, "scores", "f", len(tokens)),
        "token_types": _numbers(container, "token_type", "iu", len(tokens)),
        "merges": _strings(container, "merges") if PREFIX + "merges" in metadata else [],
    }
    for name, key in IDS.items():
        data[name] = _token_id(container, PREFIX + key, len(tokens))
    for name, key in FLAGS.items():
        data[name] = _optional(container, PREFIX + key, bool)
    special = {role: tokens[data[name]] for role, name in SPECIAL.items() if data[name] is not None}
    template = _optional(container, "tokenizer.chat_template", str)
    return TokenizerSource("gguf", container.path, data, {}, template, special)


def stop_ids(source: TokenizerSource) -> list[int]:
    """The ids that end a generation: end of sequence, of turn, of message."""
    ids = [source.data.get(name) for name in ("eos_id", "eot_id", "eom_id")]
    return list(dict.fromkeys(each for each in ids if each is not None))


def _error(container: Container, key: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"metadata key {key!r} {what}", file=container.path, remedy="convert the model to GGUF again"
    )


def _optional(container: Container, key: str, kind: type) -> Any:
    value = container.metadata.get(key)
    if value is not None and type(value) is not kind:
        raise _error(container, key, f"is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _strings(container: Container, key: str) -> list[str]:
    value = container.metadata[PREFIX + key]
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise _error(container, PREFIX + key, "is not a list of strings")
    return value


def _numbers(container: Container, key: str, kinds: str, length: int) -> list[Any]:
    value = container.metadata.get(PREFIX + key)
    if value is None:
        return []
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        raise _error(container, PREFIX + key, "is not an array of numbers of its kind")
    if len(value) != length:
        raise _error(container, PREFIX + key, f"has {len(value)} entries for {length} tokens")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise _error(container, PREFIX + key, f"is not finite at token {int((~np.isfinite(value)).argmax())}")
    numbers: list[Any] = value.tolist()
    return numbers


def _token_id(container: Container, key: str, tokens: int) -> int | None:
    value = container.metadata.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < tokens:
        raise _error(container, key, f"is {shown(value)}, not a token id below {tokens}")
    return value
