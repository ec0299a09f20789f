"""Weight formats: for each, the function that makes 16 float32 of the bytes in the checkpoint.

``unpack(block, part)`` gives the weights ``16 * part`` … ``16 * part + 15`` of the block at address ``block``. A new
format is one such function and one line in :data:`FORMATS`. Formats without blocks are read 16 elements at a time;
theirs also have ``unpack_first(block, count)``, for the end of a row whose length is no multiple of 16: ``count``
weights and zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llmcore.native.abi import inlined
from llmcore.native.vector import load, load_first


class Format(NamedTuple):
    """One format, as kernels are compiled for it.

    Attributes:
        unpack, unpack_first: see above.
        block, block_bytes: elements and bytes of one block.
        mapped: whether a row in the checkpoint is float32 already, and need not be unpacked.
    """

    unpack: Callable[..., Any]
    unpack_first: Callable[..., Any]
    block: int
    block_bytes: int
    mapped: bool = False


@inlined
def f32(block, _part):
    return load(block)


@inlined
def f32_first(block, count):
    return load_first(block, count)


@inlined
def no_rest(block, _count):
    """In place of ``unpack_first``: rows of this format are whole blocks."""
    return load_first(block, 0)


FORMATS = {
    "F32": Format(f32, f32_first, 16, 64, mapped=True),
}
