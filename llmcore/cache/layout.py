"""What the pages of the KV cache hold, and how a backend lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore.device.base import numpy_dtype

Array = np.ndarray[Any, Any]
INT8_GROUP = 8  # neighbouring elements of a head that share a scale
INT8_LARGEST = 127


@dataclass(frozen=True)
class KVLayout:
    """A page layout, declared by the backend whose ``kv_write`` and ``attention`` use it.

    Attributes:
        name, version: identity; bytes are reused only where both match.
        dtype: numpy name of the type of the array that pages are given as.
        page_shape: ``f(kv_heads, head_dim, page_size)`` → the shape of one page, keys and values together.
    """

    name: str
    version: int
    dtype: str
    page_shape: Callable[[int, int, int], tuple[int, ...]]

    @property
    def numpy(self) -> np.dtype[Any]:
        """:attr:`dtype`, bfloat16 included."""
        return numpy_dtype(self.dtype)


def _bfloat16(heads: Array) -> Array:
    import ml_dtypes

    return heads.astype(ml_dtypes.bfloat16).astype(np.float32)


def _int8(heads: Array) -> Array:
    """Each group's codes times its scale; the scale is a float16, the nearest to the largest element over 127."""
    groups = -(-heads.shape[-1] // INT8_GROUP)
    wide = np.zeros((*heads.shape[:-1], groups * INT8_GROUP), np.float32)
    wide[..., : heads.shape[-1]] = heads
    x = wide.reshape(*heads.shape[:-1], groups, INT8_GROUP)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scale = (np.abs(x).max(-1, keepdims=True) / np.float32(INT8_LARGEST)).astype(np.float16).astype(np.float32)
        inverse = np.where(scale == 0, np.float32(0), 1 / scale)
        codes = np.clip(np.rint(x * inverse), -INT8_LARGEST, INT8_LARGEST)
    kept: Array = (codes * scale).reshape(wide.shape)[..., : heads.shape[-1]]
    return kept


KV_DTYPES: Mapping[str, Callable[[Array], Array]] = {
    "float32": lambda heads: heads.astype(np.float32),
    "float16": lambda heads: heads.astype(np.float16).astype(np.float32),
    "bfloat16": _bfloat16,
    "int8": _int8,
}
"""Element type of a cache → what it keeps of keys or values: ``f(float32 [..., head_dim])`` → float32 of that shape."""
