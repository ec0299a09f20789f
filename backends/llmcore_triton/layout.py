"""Pages of the KV cache as the kernels of this backend read them. Imports neither torch nor Triton.

A decode kernel reads all tokens of one head at a time, so the tokens of a head lie together in a page: in whole
lines of memory, and for usual sizes at addresses that 16-byte loads may begin at.

Floating-point pages are ``[key / value, kv_head, token, element]``. An int8 page is ``[key / value, kv_head, byte]``:
the codes ``[token, element]``, then the float16 scales ``[token, group]`` of each ``INT8_GROUP`` neighbouring elements
(:mod:`llmcore.cache.layout` says what they mean), each part padded to :data:`ALIGNMENT` bytes.
"""

from __future__ import annotations

from llmcore.cache.layout import INT8_GROUP, KVLayout

ALIGNMENT = 16  # bytes: the widest load


def groups(head_dim: int) -> int:
    """How many scales one head of one token has in an int8 page."""
    return -(-head_dim // INT8_GROUP)


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def code_bytes(head_dim: int, page_size: int) -> int:
    """Bytes of the codes of one head of an int8 page, of its keys or its values: where its scales begin."""
    return _padded(page_size * head_dim)


def head_bytes(head_dim: int, page_size: int) -> int:
    """Bytes of one head of an int8 page, of its keys or its values, scales included."""
    return code_bytes(head_dim, page_size) + _padded(2 * page_size * groups(head_dim))


def float_page(kv_heads: int, head_dim: int, page_size: int) -> tuple[int, ...]:
    """``[key / value, kv_head, token, element]``."""
    return 2, kv_heads, page_size, head_dim


def int8_page(kv_heads: int, head_dim: int, page_size: int) -> tuple[int, ...]:
    """``[key / value, kv_head, byte]``."""
    return 2, kv_heads, head_bytes(head_dim, page_size)


FLOAT32, FLOAT16, BFLOAT16 = (
    KVLayout(f"triton-{dtype}", 1, dtype, float_page) for dtype in ("float32", "float16", "bfloat16")
)
INT8 = KVLayout("triton-int8", 1, "int8", int8_page)
