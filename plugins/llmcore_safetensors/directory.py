"""What lies beside the weights in a Hugging Face directory: the configs, the tokenizer, its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcore.errors import CheckpointError
from llmcore.weights.checkpoint import TokenizerKind, TokenizerSource
from llmcore.weights.json_file import read_json_object, read_text

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER_FILES: dict[TokenizerKind, str] = {"hf_json": "tokenizer.json", "sentencepiece": "tokenizer.model"}
TEMPLATE_LIMIT = 1 << 20


def read_config(directory: Path) -> dict[str, Any]:
    """``config.json`` as it is; raises :class:`CheckpointError` where it is missing or damaged."""
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{CONFIG} is missing", file=directory, remedy="download the whole model, not just its weights"
        )
    return read_json_object(path)


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, or an empty one where there is no such file."""
    return read_json_object(path) if path.is_file() else {}


def tokenizer_source(directory: Path) -> TokenizerSource:
    """The tokenizer of ``directory``: ``tokenizer.json`` before ``tokenizer.model``, kind ``"none"`` without either."""
    config_path = directory / "tokenizer_config.json"
    config = read_optional(config_path)
    special = _special_tokens(read_optional(directory / "special_tokens_map.json")) | _special_tokens(config)
    template = _chat_template(directory, config_path, config)
    for kind, name in TOKENIZER_FILES.items():
        if (directory / name).is_file():
            return TokenizerSource(kind, directory / name, {}, config, template, special)
    return TokenizerSource("none", None, {}, config, template, special)


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """``*_token`` → its text; older files wrap the text in an object with other properties of the token."""
    tokens: dict[str, str] = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


def _chat_template(directory: Path, config_path: Path, config: dict[str, Any]) -> str | None:
    """The template from its own file, or from the tokenizer's config; of several named ones, "default"."""
    jinja, wrapped = directory / "chat_template.jinja", directory / "chat_template.json"
    if jinja.is_file():
        return read_text(jinja, TEMPLATE_LIMIT)
    path, value = config_path, config.get("chat_template")
    if wrapped.is_file():
        path, value = wrapped, read_json_object(wrapped).get("chat_template")
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        named = {each.get("name"): each.get("template") for each in value}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise CheckpointError("'chat_template' is neither a template nor a list of named ones", file=path)
    if value is not None and len(value) > TEMPLATE_LIMIT:
        raise CheckpointError(f"'chat_template' is longer than {TEMPLATE_LIMIT} characters", file=path)
    return value
