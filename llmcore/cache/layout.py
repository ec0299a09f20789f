"""How a backend lays the keys and values of one layer out in pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class KVLayout:
    """A page layout, declared by the backend whose ``kv_write`` and ``attention`` use it.

    Attributes:
        name, version: identity; bytes are reused only where both match.
        dtype: numpy name of one element.
        page_shape: ``f(kv_heads, head_dim, page_size)`` → the shape of one page, keys and values together.
    """

    name: str
    version: int
    dtype: str
    page_shape: Callable[[int, int, int], tuple[int, ...]]
