"""The torch backend's pages, of any float type: the layout of the references in :mod:`llmcore.ops.attention`."""

from __future__ import annotations

from llmcore.cache.layout import KVLayout


def page_shape(kv_heads: int, head_dim: int, page_size: int) -> tuple[int, ...]:
    """``[key / value, offset, head, element]``."""
    return 2, page_size, kv_heads, head_dim


FLOAT32, FLOAT16, BFLOAT16 = (
    KVLayout(f"torch-{dtype}", 1, dtype, page_shape) for dtype in ("float32", "float16", "bfloat16")
)
