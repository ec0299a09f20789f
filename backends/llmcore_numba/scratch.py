"""How kernels divide a thread's scratch memory, and which nodes would not fit into it.

Unpacked weight rows come first, then the results of a few tokens; the end of thread 0's is shared by all threads.
"""

from __future__ import annotations

from llmcore.native import SCRATCH_BYTES
from llmcore.registry.node import NodeView
from llmcore_numba.kv_layout import BLOCK, padded
from llmcore_numba.packing import PANEL, quantized_bytes

SHARED_BYTES = 256 << 10
SHARED = SCRATCH_BYTES - SHARED_BYTES
FOR_ROWS = SHARED - (64 << 10)

LONGEST_ROW = FOR_ROWS // 8 & ~15  # in float32; gate_up_swiglu unpacks two at a time
MOST_TOKENS = SHARED_BYTES // 8  # of classifier_argmax: a value and an index for each, at least

OWN_TOKEN = 4096  # where a thread quantizes a token for itself: behind the results of a strip

LONGEST_NORMED = (SHARED - 4096) // (4 * PANEL) & ~31
LONGEST_ALONE = (SHARED - OWN_TOKEN - 4096) // 8 & ~31  # float32, codes, and a list of a quarter of it
HEAD_ROWS = 16

ROWS = 48  # query rows of a chunk of attention
PART_BLOCKS = 16  # of 16 positions that attention sums by themselves
RECORD_HEAD = 128  # bytes before the values of a record
WIDEST_HEAD = 1024  # attention keeps 48 queries and twice as many records


def row_fits(node: NodeView) -> str | None:
    """Why a row of the weight cannot be unpacked, or None."""
    length = node.dims["K"]
    return f"rows of {length} weights, at most {LONGEST_ROW}" if length > LONGEST_ROW else None


def few_enough_tokens(node: NodeView) -> str | None:
    """Why ``classifier_argmax`` cannot keep a best value for each token, or None."""
    tokens = node.dims["M"]
    return f"{tokens} tokens, at most {MOST_TOKENS}" if tokens > MOST_TOKENS else None


def normed_tokens_fit(node: NodeView) -> str | None:
    """Why the tokens of a panel cannot be normed together, or None."""
    length = node.dims["K"]
    return f"tokens of {length} elements, at most {LONGEST_NORMED}" if length > LONGEST_NORMED else None


def comes_alone(node: NodeView) -> str | None:
    """Why a thread cannot quantize the tokens of ``node`` for itself, or None."""
    tokens, length = node.dims.get("T", node.dims.get("M", 0)), node.dims["K"]
    if tokens > 1:
        return f"steps of {tokens} tokens, made for one"
    return f"a token of {length} elements, at most {LONGEST_ALONE}" if length > LONGEST_ALONE else None


def head_comes_alone(node: NodeView) -> str | None:
    """Why a thread cannot make a head of ``node`` and turn it, or None."""
    size = node.attrs["head_dim"]
    return f"heads of {size} elements, no multiple of {HEAD_ROWS}" if size % HEAD_ROWS else comes_alone(node)


def multiplies_pairs(_node: NodeView) -> str | None:
    """Why this processor does not multiply pairs of bfloat16, or None."""
    from llmcore.native.machine import machine  # asks LLVM

    return None if machine().has("avx512bf16") else "needs AVX512 BF16"


def classifier_multiplies_pairs(node: NodeView) -> str | None:
    """Why ``classifier_argmax`` cannot run ``node`` with pairs of bfloat16, or None."""
    return few_enough_tokens(node) or multiplies_pairs(node)


def rounded_tokens(node: NodeView) -> int:
    """Bytes of workspace for the input of a linear op, see :mod:`llmcore_numba.rounding`."""
    return node.dims["M"] * (node.dims["K"] + 1 & ~1) * 2


def classifier_fits(node: NodeView) -> str | None:
    """Why ``classifier_argmax`` cannot run ``node``, or None."""
    return few_enough_tokens(node) or row_fits(node)


def head_fits(node: NodeView) -> str | None:
    """Why ``attention`` cannot run ``node``, or None."""
    size = node.attrs["head_dim"]
    return f"heads of {size} elements, at most {WIDEST_HEAD}" if size > WIDEST_HEAD else None


def attention_multiplies_pairs(node: NodeView) -> str | None:
    """Why ``attention`` cannot run ``node`` with pairs of bfloat16, or None."""
    return head_fits(node) or multiplies_pairs(node)


def quantized_tokens(node: NodeView) -> int:
    """Bytes of workspace for the quantized input of a linear op, see :mod:`llmcore_numba.quantize`."""
    return quantized_bytes(node.dims["M"], node.dims["K"])


def projections(node: NodeView) -> int:
    """Bytes of workspace for ``qkv_rope_kv_write``: the quantized input, then keys and values."""
    return quantized_bytes(node.dims["T"], node.dims["K"]) + 2 * node.dims["T"] * node.dims["G"] * 4


def partial_records(node: NodeView) -> int:
    """Bytes of workspace for ``attention``: a record for each head and part of every sequence."""
    heads, page_size = node.dims["D"] // node.attrs["head_dim"], node.attrs["page_size"]
    parts = -(-node.dims["B"] * -(-page_size // BLOCK) // PART_BLOCKS)
    return node.dims["S"] * heads * parts * (RECORD_HEAD + padded(node.attrs["head_dim"]) * 4)
