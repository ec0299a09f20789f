"""Opens a directory of safetensors files as a :class:`~llmcore.weights.checkpoint.Checkpoint`."""

from __future__ import annotations

from pathlib import Path

from llmcore.errors import CheckpointError, LlmcoreError, UnsupportedModelError
from llmcore.weights.checkpoint import Checkpoint
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor
from llmcore_safetensors.directory import GENERATION, read_config, read_optional, tokenizer_source
from llmcore_safetensors.header import read_header
from llmcore_safetensors.shards import open_shards

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
PREFERRED = ("model.safetensors", "model.safetensors.index.json")


def matches(path: Path) -> bool:
    """Whether ``path`` is a safetensors file or index by its name, or a directory with one."""
    if path.is_dir():
        return any(path.glob("*" + SUFFIX)) or any(path.glob("*" + INDEX_SUFFIX))
    return path.name.endswith((SUFFIX, INDEX_SUFFIX))


def open_safetensors(path: Path) -> Checkpoint:
    """Opens the directory, file or index ``path``; tensors stay on disk until they are touched.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedModelError: the directory holds an adapter, not a model.
    """
    weights = _weights_in(path) if path.is_dir() else path
    directory = weights.parent
    config = read_config(directory)
    generation = read_optional(directory / GENERATION)
    tokenizer = tokenizer_source(directory)
    if weights.name.endswith(INDEX_SUFFIX):
        tensors, metadata, files = open_shards(weights)
    else:
        tensors, metadata, files = _open_single(weights)
    return Checkpoint(path, "safetensors", config, tensors, tokenizer, generation, dict(metadata), files)


def _open_single(path: Path) -> tuple[dict[str, Tensor], dict[str, str], tuple[MappedFile, ...]]:
    mapping = MappedFile(path)
    try:
        header = read_header(mapping)
    except LlmcoreError:
        mapping.close()
        raise
    return header.tensors, header.metadata, (mapping,)


def _weights_in(directory: Path) -> Path:
    """The file in ``directory`` that holds the model or lists its shards."""
    for name in PREFERRED:
        if (directory / name).is_file():
            return directory / name
    if (directory / "adapter_config.json").is_file() or (directory / "adapter_model.safetensors").is_file():
        raise UnsupportedModelError(
            f"{directory}: this is an adapter, not a model",
            key="adapter_config.json",
            remedy="merge it into its base model first (peft: merge_and_unload, then save_pretrained)",
        )
    found = sorted(directory.glob("*" + INDEX_SUFFIX)) or sorted(directory.glob("*" + SUFFIX))
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(
            f"several files, and none of them is {' or '.join(PREFERRED)}: {names}",
            file=directory,
            remedy="name the file itself, or restore the index",
        )
    return found[0]
