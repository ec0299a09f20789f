"""The torch backend's pages: plain float32, the layout of the references in :mod:`llmcore.ops.attention`."""

from __future__ import annotations

from llmcore.cache.layout import KVLayout


def page_shape(kv_heads: int, head_dim: int, page_size: int) -> tuple[int, ...]:
    """``[key / value, offset, head, element]``."""
    return 2, page_size, kv_heads, head_dim


KV = KVLayout("torch-kv", 1, "float32", page_shape)
