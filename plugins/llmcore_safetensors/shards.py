"""A model over several safetensors files, held together by an index (``model.safetensors.index.json``)."""

from __future__ import annotations

from pathlib import Path

from llmcore.errors import CheckpointError, LlmcoreError
from llmcore.weights.json_file import read_json_object
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor
from llmcore_safetensors.header import read_header

SHARD_LIMIT = 1000


def read_index(index: Path) -> dict[str, str]:
    """Tensor name → file name, as ``index`` says.

    Raises:
        CheckpointError: not JSON, no ``weight_map``, or a file name that leads out of the directory.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no 'weight_map' of tensors to files", file=index)
    for tensor, name in weight_map.items():
        if not _plain_name(name):
            raise CheckpointError(
                f"the index puts it into {str(name)[:200]!r}, which is not a .safetensors file beside the index",
                file=index,
                tensor=tensor[:200],
                remedy="do not trust this checkpoint: an index has no reason to point elsewhere",
            )
    if len(set(weight_map.values())) > SHARD_LIMIT:
        raise CheckpointError(f"names more than {SHARD_LIMIT} files", file=index)
    return weight_map


def _plain_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and not any(c in name for c in "/\\\0:")


def open_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str], tuple[MappedFile, ...]]:
    """All tensors that ``index`` names, the shards' metadata, and the mapped files.

    Raises:
        CheckpointError: a shard is missing or damaged, or holds other tensors than the index says.
    """
    weight_map = read_index(index)
    promised: dict[str, list[str]] = {}  # file name → the tensors that the index puts there
    for tensor, name in weight_map.items():
        promised.setdefault(name, []).append(tensor)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    files: list[MappedFile] = []
    try:
        for name, promise in promised.items():
            files.append(_map_shard(index, name))
            header = read_header(files[-1])
            _check_shard(index, name, promise, header.tensors)
            tensors.update(header.tensors)
            metadata.update(header.metadata)
    except LlmcoreError:
        for file in files:
            file.close()
        raise
    return {name: tensors[name] for name in weight_map}, metadata, tuple(files)


def _map_shard(index: Path, name: str) -> MappedFile:
    shard = index.parent / name
    if not shard.is_file():
        raise CheckpointError(
            f"the shard is missing; {index.name} names it", file=shard, remedy="download the whole model"
        )
    return MappedFile(shard)


def _check_shard(index: Path, name: str, promise: list[str], found: dict[str, Tensor]) -> None:
    missing = next((each for each in promise if each not in found), None)
    if missing is not None:
        raise CheckpointError(f"is not in {name}, where the index puts it", file=index, tensor=missing)
    extra = next(iter(found.keys() - set(promise)), None)
    if extra is not None:
        tensor = found[extra]
        message = f"is here, but {index.name} does not put it here"
        raise CheckpointError(message, file=tensor.file, tensor=extra, offset=tensor.offset)
