"""Strictness: a model takes exactly the tensors that it needs, in the shapes that it needs, or refuses the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from llmcore.errors import CheckpointError
from llmcore.weights.checkpoint import Checkpoint
from llmcore.weights.formats import computable
from llmcore.weights.tensor import Tensor

SHOWN = 3  # names listed in a message before "and n more"


def claim(
    checkpoint: Checkpoint, wanted: Mapping[str, tuple[int, ...]], ignorable: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The tensors that a model needs, in the order of ``wanted``.

    Args:
        wanted: name → shape, every tensor of the model.
        ignorable: regular expressions; a surplus tensor whose whole name matches one is passed over.

    Raises:
        CheckpointError: a tensor is missing, surplus, of another shape, or stored in a format that no op computes with.
    """
    tensors = checkpoint.tensors
    missing = [name for name in wanted if name not in tensors]
    surplus = _not_ignorable((name for name in tensors if name not in wanted), ignorable)
    if missing:
        near = difflib.get_close_matches(missing[0], surplus or list(tensors), n=SHOWN, cutoff=0.6)
        raise CheckpointError(
            f"missing{_more(missing)}; shape wanted {_shape(wanted[missing[0]])}",
            file=checkpoint.files[0].path if len(checkpoint.files) == 1 else checkpoint.path,
            tensor=missing[0],
            remedy=f"the file has {len(tensors)} tensors" + (f", nearest: {', '.join(near)}" if near else ""),
        )
    if surplus:
        tensor = tensors[surplus[0]]
        near = difflib.get_close_matches(surplus[0], wanted, n=SHOWN, cutoff=0.6)
        raise CheckpointError(
            f"the model has no place for it{_more(surplus)}; its shape is {_shape(tensor.shape)}",
            file=tensor.file,
            tensor=surplus[0],
            offset=tensor.offset,
            remedy="the config and the weights do not belong together"
            + (f"; nearest names that the model has: {', '.join(near)}" if near else ""),
        )
    for name, shape in wanted.items():
        _check(tensors[name], shape)
    return {name: tensors[name] for name in wanted}


def _not_ignorable(names: Iterable[str], ignorable: Sequence[str]) -> list[str]:
    patterns = [re.compile(pattern) for pattern in ignorable]
    return [name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)]


def _check(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"shape is {_shape(tensor.shape)}, the config asks for {_shape(shape)}",
            file=tensor.file,
            tensor=tensor.name,
            offset=tensor.offset,
            remedy="the config and the weights do not belong together",
        )
    if tensor.format.decode is None:
        raise CheckpointError(
            f"is stored as {tensor.format.name}, which we do not compute with",
            file=tensor.file,
            tensor=tensor.name,
            offset=tensor.offset,
            remedy=computable(),
        )


def _more(names: Sequence[str]) -> str:
    if len(names) == 1:
        return ""
    others = ", ".join(names[1 : 1 + SHOWN])
    rest = len(names) - 1 - SHOWN
    return f", as are {others}" + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))
