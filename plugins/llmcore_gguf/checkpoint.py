"""Opens a GGUF file as a :class:`~llmcore.weights.checkpoint.Checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmcore.errors import CheckpointError, LlmcoreError, UnsupportedModelError
from llmcore.weights.checkpoint import Checkpoint
from llmcore.weights.tensor import Tensor
from llmcore_gguf import names
from llmcore_gguf.config import translate
from llmcore_gguf.container import MAGIC, Container, read_container
from llmcore_gguf.tokenizer import stop_ids, tokenizer_source

QUANTIZATION_VERSION = 2  # of the block layouts; files of version 1 hold other bytes under the same type numbers


def matches(path: Path) -> bool:
    """Whether ``path`` is a GGUF file by its name or first bytes, or a directory of GGUF files and no safetensors."""
    if path.is_dir():
        return any(path.glob("*.gguf")) and not any(path.glob("*.safetensors"))
    if path.suffix.lower() == ".gguf" or not path.is_file():
        return path.suffix.lower() == ".gguf"
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_gguf(path: Path) -> Checkpoint:
    """Opens ``path``; tensors stay on disk until they are touched.

    Raises:
        CheckpointError: the file is damaged.
        UnsupportedModelError: its architecture, or something that its metadata asks for, is not implemented.
    """
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            found = ", ".join(file.name for file in files)
            raise CheckpointError(f"several GGUF files: {found}", file=path, remedy="name one of them")
        path = files[0]
    container = read_container(path)
    try:
        return _checkpoint(container)
    except LlmcoreError:
        container.mapping.close()
        raise


def _checkpoint(container: Container) -> Checkpoint:
    config = translate(container)
    tensors = _tensors(container)
    if names.ROPE_FREQS in tensors:
        config["rope_freq_factors"] = _rope_factors(tensors.pop(names.ROPE_FREQS), config["head_dim"])
    tokenizer = tokenizer_source(container)
    generation: dict[str, Any] = {}
    if tokenizer.data.get("bos_id") is not None:
        generation["bos_token_id"] = tokenizer.data["bos_id"]
    if stops := stop_ids(tokenizer):
        generation["eos_token_id"] = stops
    return Checkpoint(
        path=container.path,
        format="gguf",
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        generation=generation,
        metadata={k: v for k, v in container.metadata.items() if k.startswith("general.")},
        files=(container.mapping,),
    )


def _tensors(container: Container) -> dict[str, Tensor]:
    version = container.metadata.get("general.quantization_version", QUANTIZATION_VERSION)
    tensors: dict[str, Tensor] = {}
    for entry in container.tensors:
        name = names.canonical(entry.name)
        if name in tensors:
            other = tensors[name].stored_name
            raise CheckpointError(
                f"is stored twice, as {other!r} and as {entry.name!r}",
                file=container.path,
                tensor=name,
                offset=entry.offset,
            )
        if entry.format.quantized and version != QUANTIZATION_VERSION:
            raise UnsupportedModelError(
                f"{container.path}: blocks of quantization version {version}; {QUANTIZATION_VERSION} is read",
                key="general.quantization_version",
                remedy="quantize the model again",
            )
        tensors[name] = Tensor(name, entry.shape, entry.format, container.mapping, entry.offset, entry.name)
    return tensors


def _rope_factors(tensor: Tensor, head_dim: int) -> list[float]:
    """The divisors of the head_dim/2 RoPE frequencies; converters compute Llama 3's scaling into this tensor."""
    if tensor.shape != (head_dim // 2,) or tensor.format.name != "F32":
        raise CheckpointError(
            f"is {list(tensor.shape)} {tensor.format.name}; [{head_dim // 2}] F32 is wanted",
            file=tensor.file,
            tensor=tensor.name,
            offset=tensor.offset,
        )
    tensor.check_finite()
    factors = tensor.dequantize()
    if not np.all(factors > 0):
        raise CheckpointError(
            "holds a factor that is not positive", file=tensor.file, tensor=tensor.name, offset=tensor.offset
        )
    return [float(each) for each in factors]
