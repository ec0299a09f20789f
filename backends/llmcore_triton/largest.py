"""The largest of each row, in order: each chunk's, then those of all chunks (a bitonic top-k of both)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import warps
from llmcore_triton.sampling import chunked, index_of, key, ordered

MOST = 128  # beyond, the lists of all chunks would be too many for one program
LISTED = 16384  # the same, of the longest vocabularies


@triton.jit
def _largest_of_chunk(logits_ptr, lists_ptr, V, CHUNK: tl.constexpr, N: tl.constexpr):
    """The keys of a chunk's ``N`` largest, the largest first; NaN are as small as minus infinity."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row * V + column, mask=column < V, other=float("-inf"))
    x = tl.where(x != x, float("-inf"), x)  # noqa: PLR0124
    best = tl.topk(key(ordered(x), column), N)
    tl.store(lists_ptr + (row * tl.num_programs(1) + chunk) * N + tl.arange(0, N), best)


@triton.jit
def _largest_of_row(lists_ptr, ids_ptr, listed, count, LISTED: tl.constexpr, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, LISTED)
    keys = tl.load(lists_ptr + row * listed + at, mask=at < listed, other=-(2**63))
    best = tl.topk(keys, N)
    place = tl.arange(0, N)
    tl.store(ids_ptr + row * count + place, index_of(best), mask=place < count)


def largest(logits: torch.Tensor, ids: torch.Tensor, *, n: int) -> None:
    """The indices of the ``n`` largest of each row of ``logits`` [R, V] into ``ids`` [R, n], the lowest first among
    equals; ``n`` beyond :data:`MOST` is a stable sort by torch."""
    rows, vocab = logits.shape
    if not rows or not n:
        return
    chosen, chunks, _ = chunked("largest", vocab)
    width = max(2, triton.next_power_of_2(n))  # lists of one are not merged by tl.topk's own way
    listed = chunks * width
    if n > MOST or listed > LISTED or width > chosen.meta["CHUNK"]:
        known = torch.where(logits.isnan(), float("-inf"), logits)
        ids.copy_(known.sort(dim=-1, descending=True, stable=True).indices[:, :n])
        return
    lists = torch.empty((rows, listed), dtype=torch.int64, device=logits.device)
    _largest_of_chunk[(rows, chunks)](logits, lists, vocab, N=width, **chosen.options)
    block = triton.next_power_of_2(listed)
    _largest_of_row[(rows,)](lists, ids, listed, n, LISTED=block, N=width, num_warps=warps(block, each=16))
