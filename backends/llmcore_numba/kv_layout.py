"""How this backend lays out the pages of the KV cache: for each key head of a page its keys, then its values.

Both lie in blocks of 16 positions. A block of keys is ``[element][16 positions]``: the scores of 16 positions are one
vector, built without a horizontal sum. A block of values is ``[position][element]``: the output is one vector for 16
elements. Pages are padded to whole blocks, and heads to a multiple of 16 elements.

=========  ====================================================================================================
float32    as it is
bfloat16   in pairs, which ``vdpbf16ps`` multiplies: keys ``[element / 2][16 positions][2 elements]``, values
           ``[position / 2][element][2 positions]``
int8       8 elements share a scale. Keys: for each 8 elements the scales of the 16 positions (f16), then the codes
           ``[8 elements][16 positions]``. Values: the scales ``[16 positions][group]``, then the codes.
=========  ====================================================================================================
"""

from __future__ import annotations

from functools import partial

from llmcore.cache.layout import INT8_GROUP, KVLayout

BLOCK = 16  # positions


def padded(head_dim: int) -> int:
    """Elements of a head with its padding: ``head_dim`` rounded up to a multiple of 16."""
    return (head_dim + 15) & ~15


def block_bytes(kv_dtype: str, pitch: int) -> int:
    """Bytes of 16 positions' keys, or values, of ``pitch`` elements each."""
    elements = BLOCK * pitch
    return {"float32": 4 * elements, "bfloat16": 2 * elements, "int8": elements + elements // INT8_GROUP * 2}[kv_dtype]


def page_shape(kv_dtype: str, kv_heads: int, head_dim: int, page_size: int) -> tuple[int, int, int]:
    """Key heads, keys and values, bytes of each."""
    return kv_heads, 2, -(-page_size // BLOCK) * block_bytes(kv_dtype, padded(head_dim))


def _layout(kv_dtype: str, name: str) -> KVLayout:
    return KVLayout(f"numba-{name}", 3, "uint8", partial(page_shape, kv_dtype))


FLOAT32, BFLOAT16, INT8 = _layout("float32", "f32"), _layout("bfloat16", "bf16"), _layout("int8", "int8-g8")
