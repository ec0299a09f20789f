"""How kernels divide a thread's scratch memory, and which nodes would not fit into it.

Unpacked weight rows come first, then the results of a few tokens; the end of thread 0's is shared by all threads.
"""

from __future__ import annotations

from collections.abc import Callable

from llmcore.native import SCRATCH_BYTES
from llmcore.registry.node import NodeView
from llmcore_numba.kv_layout import BLOCK, padded
from llmcore_numba.packing import PANEL, quantized_bytes
from llmcore_numba.packing import ROWS as ROWS_OF_BLOCK

SHARED_BYTES = 256 << 10
SHARED = SCRATCH_BYTES - SHARED_BYTES
FOR_ROWS = SHARED - (64 << 10)

LONGEST_ROW = FOR_ROWS // 8 & ~15  # in float32; gate_up_swiglu unpacks two at a time
MOST_TOKENS = SHARED_BYTES // 8  # of classifier_argmax: a value and an index for each, at least

OWN_TOKEN = 1 << 17  # where a thread prepares a token for itself: behind the results of all tokens of a strip
LONGEST_NORMED = (SHARED - 4096) // (4 * PANEL) & ~31
LONGEST_ALONE = (SHARED - OWN_TOKEN - 4096) // 8 & ~31  # float32, codes, and a list of a quarter of it

ROWS = 48  # query rows of a chunk of attention
PART_BLOCKS = 16  # of 16 positions that attention sums by themselves
RECORD_HEAD = 128  # bytes before the values of a record
LONGEST_LIST = 256  # of the largest values of a row: it is kept in order by moving what is smaller
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
    """Why a thread cannot prepare the tokens of ``node`` for itself, or None."""
    tokens, length = _tokens(node), node.dims["K"]
    if tokens > 1:
        return f"steps of {tokens} tokens, made for one"
    return f"a token of {length} elements, at most {LONGEST_ALONE}" if length > LONGEST_ALONE else None


def heads_of_32(node: NodeView) -> str | None:
    """Why heads are not whole blocks of packed weights, or None."""
    size = node.attrs["head_dim"]
    return f"heads of {size} elements, no multiple of {ROWS_OF_BLOCK}" if size % ROWS_OF_BLOCK else None


def multiplies_pairs(_node: NodeView) -> str | None:
    """Why this processor does not multiply pairs of bfloat16, or None."""
    from llmcore.native.machine import machine  # asks LLVM

    return None if machine().has("avx512bf16") else "needs AVX512 BF16"


def head_fits(node: NodeView) -> str | None:
    """Why ``attention`` cannot run ``node``, or None."""
    size = node.attrs["head_dim"]
    return f"heads of {size} elements, at most {WIDEST_HEAD}" if size > WIDEST_HEAD else None


def list_fits(node: NodeView) -> str | None:
    """Why ``largest`` cannot keep its list in order fast enough, or None."""
    length = node.attrs["n"]
    return f"the {length} largest, at most {LONGEST_LIST}" if length > LONGEST_LIST else None


class Every:
    """Why a node does not meet one of several conditions, or None: ``every.row_fits.few_enough_tokens``."""

    def __init__(self, *conditions: Callable[[NodeView], str | None]) -> None:
        self.conditions = conditions

    def __getattr__(self, name: str) -> Every:
        if name.startswith("_") or name not in globals():
            raise AttributeError(name)
        return Every(*self.conditions, globals()[name])

    def __call__(self, node: NodeView) -> str | None:
        return next((reason for condition in self.conditions if (reason := condition(node))), None)


every = Every()


def _tokens(node: NodeView) -> int:
    return node.dims.get("T", node.dims.get("M", 0))


def _waiting(node: NodeView) -> int:
    """Bytes of keys and values that wait in the workspace of the ops before attention."""
    return node.dims["T"] * node.dims["G"] * 8 + 63 & ~63 if "G" in node.dims else 0


def quantized_tokens(node: NodeView) -> int:
    """Bytes of workspace for an op whose tokens are quantized, see :mod:`llmcore_numba.tokens`."""
    return _waiting(node) + quantized_bytes(_tokens(node), node.dims["K"])


def float_tokens(node: NodeView) -> int:
    """Bytes of workspace for an op whose tokens are normed, see :mod:`llmcore_numba.float_tokens`."""
    return _waiting(node) + _tokens(node) * node.dims["K"] * 4


def rounded_tokens(node: NodeView) -> int:
    """Bytes of workspace for an op whose tokens are rounded."""
    return _waiting(node) + _tokens(node) * (node.dims["K"] + 1 & ~1) * 2


def waiting_keys(node: NodeView) -> int:
    """Bytes of workspace for an op whose tokens need none."""
    return _waiting(node)


def partial_records(node: NodeView) -> int:
    """Bytes of workspace for ``attention``: a record for each head and part of every sequence."""
    heads, page_size = node.dims["D"] // node.attrs["head_dim"], node.attrs["page_size"]
    parts = -(-node.dims["B"] * -(-page_size // BLOCK) // PART_BLOCKS)
    return node.dims["S"] * heads * parts * (RECORD_HEAD + padded(node.attrs["head_dim"]) * 4)
