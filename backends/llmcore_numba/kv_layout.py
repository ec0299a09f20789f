"""How this backend lays out the pages of the KV cache: ``numba-hpd``, for each key head its keys, then its values.

Within a page and head, keys are ``[position / 16][element][16 positions]``: the scores of 16 positions are one vector,
built without a horizontal sum. Values are ``[position][element]``: the output is one vector for 16 elements. Positions
are padded to a multiple of 16, and so are the elements of a head.
"""

from __future__ import annotations

from llmcore.cache.layout import KVLayout


def padded(size: int) -> int:
    """``size`` rounded up to a multiple of 16."""
    return (size + 15) & ~15


def page_shape(kv_heads: int, head_dim: int, page_size: int) -> tuple[int, int, int]:
    """Key heads, keys and values, floats of each."""
    return kv_heads, 2, padded(page_size) * padded(head_dim)


LAYOUT = KVLayout("numba-hpd", 1, "float32", page_shape)
