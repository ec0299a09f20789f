"""Attention where every sequence has one new token: flash-decoding (Dao et al. 2023) over a paged cache.

A step of decode reads the whole cache once and computes little, so it is as fast as memory is read. All query heads of
a key head are rows of one program (GQA), which reads each key and value once for them; the tokens of a sequence are
split among programs, as many as keep the device busy. A split writes the mean of its values and the logarithm of the
sum of its weights, and a second kernel combines them.

Grids follow from shapes alone, for a step is captured in a CUDA graph: the number of splits follows from the longest
context that the block tables can hold, and how much of a sequence a split reads from the sequence's own length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore.registry.node import NodeView
from llmcore_triton.attention_step import LOG2E, attend, mean
from llmcore_triton.configs import Config, config
from llmcore_triton.device import INTERPRETING, target
from llmcore_triton.kv_pages import load_pages, scales_of, sizes
from llmcore_triton.operand_order import column_elements, summed_elements

LARGEST_HEAD = 256
MOST_SPLITS = 128
PROGRAMS = 3  # for each multiprocessor: what runs on it at a time, so that all of a grid does


def one_each(node: NodeView) -> str | None:
    """Why :func:`attention_decode` cannot run ``node``, or None."""
    if not node.one_each:
        return "sequences may have more than one new token each"
    return head_fits(node)


def head_fits(node: NodeView) -> str | None:
    """Why heads are too large for the attention kernels of this backend, or None."""
    size = node.attrs["head_dim"]
    return f"heads of {size} elements; the largest are {LARGEST_HEAD}" if size > LARGEST_HEAD else None


@triton.jit
def share(length, splits, BLOCK_N: tl.constexpr):
    """Tokens that each split of a sequence of ``length`` reads, in whole blocks; the last splits may have none."""
    return tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N


@triton.jit(do_not_specialize=["splits", "width"])
def _decode(
    q,
    kv,
    scales,
    kv_lens,
    block_tables,
    y,
    parts,
    logs,
    splits,
    width,
    scale,
    SPLIT: tl.constexpr,
    SHARING: tl.constexpr,
    ROWS: tl.constexpr,
    REORDER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Program (sequence, key head, split); ``SHARING`` query heads use a key head.

    One split writes ``y``; several write ``parts`` [S, heads, splits, HEAD_DIM] and ``logs`` [S, heads, splits].
    """
    sequence, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(kv_lens + sequence)
    start, end = 0, length
    if SPLIT:
        tokens = share(length, splits, BLOCK_N)
        start = split * tokens
        end = tl.minimum(length, start + tokens)
        if start >= length:
            return
    row = tl.arange(0, ROWS)
    query_head = sequence * (KV_HEADS * SHARING) + head * SHARING + row  # [ROWS]
    element = (summed_elements(DIM) if REORDER else tl.arange(0, DIM))[None, :]
    mine = (row < SHARING)[:, None] & (element < HEAD_DIM)
    queries = tl.load(q + query_head[:, None] * HEAD_DIM + element, mask=mine, other=0)
    total = tl.zeros([ROWS, DIM], tl.float32)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    visible = tl.zeros([ROWS], tl.int32) + length
    table = block_tables + sequence * width
    pages = load_pages(table, start, length, BLOCK_N, PAGE_SIZE)
    for at in range(start, end, BLOCK_N):
        total, largest, weight, pages = attend(
            *(queries, total, largest, weight, pages, visible, scale, kv, scales, table, head, at, length),
            *(True, REORDER, BLOCK_N, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES),
        )
    out = mean(total, weight)
    element = (column_elements(DIM) if REORDER else tl.arange(0, DIM))[None, :]
    mine = (row < SHARING)[:, None] & (element < HEAD_DIM)
    if SPLIT:
        part = query_head * splits + split
        tl.store(parts + part[:, None] * HEAD_DIM + element, out, mask=mine)
        tl.store(logs + part, largest + tl.log2(weight), mask=row < SHARING)
    else:
        tl.store(y + query_head[:, None] * HEAD_DIM + element, out.to(y.dtype.element_ty), mask=mine)


@triton.jit(do_not_specialize=["splits"])
def _combine(
    parts,
    logs,
    kv_lens,
    y,
    splits,
    heads,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Program (sequence, query head): its splits' means by their weights. ``SPLITS``: at least ``splits``."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(kv_lens + sequence)
    used = tl.cdiv(length, tl.maximum(share(length, splits, BLOCK_N), 1))
    row = sequence * heads + head
    every = tl.arange(0, SPLITS)
    largest = tl.max(tl.load(logs + row * splits + every, mask=every < used, other=float("-inf")), axis=0)
    element = tl.arange(0, DIM)
    total = tl.zeros([1, DIM], tl.float32)
    weight = tl.zeros([1], tl.float32)
    for first in range(0, used, STEP):
        split = first + tl.arange(0, STEP)
        log = tl.load(logs + row * splits + split, mask=split < used, other=float("-inf"))
        here = (split < used)[:, None] & (element < HEAD_DIM)[None, :]
        part = tl.load(parts + (row * splits + split)[:, None] * HEAD_DIM + element[None, :], mask=here, other=0)
        weights = tl.exp2(log - largest)  # [STEP]
        total += tl.sum(weights[:, None] * part, axis=0, keep_dims=True)
        weight += tl.sum(weights, axis=0, keep_dims=True)
    out = mean(total, weight).to(y.dtype.element_ty)
    tl.store(y + row * HEAD_DIM + element[None, :], out, mask=(element < HEAD_DIM)[None, :])


def split_count(sequences: int, kv_heads: int, blocks: int, programs: int = PROGRAMS) -> int:
    """Programs among which the tokens of one key head are split, where contexts may have ``blocks`` blocks.

    So many that ``programs`` of the grid's fall to each multiprocessor; no more than there are blocks.
    """
    wanted = triton.cdiv(programs * target().multiprocessors, sequences * kv_heads)
    return max(1, min(wanted, blocks, MOST_SPLITS))


def decode_config(head_dim: int, sharing: int, dtype: torch.dtype, kv: torch.Tensor) -> Config:
    """Block and launch of :func:`_decode`, and ``PROGRAMS`` for :func:`split_count`.

    A block of floating-point keys is about 16 KiB, and two are under way while one is used.
    """
    if INTERPRETING:
        return Config({"BLOCK_N": 32, "PROGRAMS": PROGRAMS})
    dim = max(16, triton.next_power_of_2(head_dim))
    int8, wide = kv.element_size() == 1, kv.element_size() == 4
    block = max(16, min(64 if int8 else 128, (4096 if wide else 8192) // dim))
    stages = 2 if wide or not target().cuda else 4 if int8 and dim <= 64 else 3
    default = Config({"BLOCK_N": block, "PROGRAMS": PROGRAMS}, num_warps=4, num_stages=stages)
    fitted = fitting(default, 16, head_dim, dtype, kv)
    return config(f"attention_decode_{str(kv.dtype).removeprefix('torch.')}", (head_dim, sharing), fitted)


def fitting(default: Config, rows: int, head_dim: int, dtype: torch.dtype, kv: torch.Tensor) -> Config:
    """``default`` with as few stages, and then as small a block, as the device's shared memory asks for.

    A stage has a block of keys or values as the cache keeps them; what is narrower than ``rows`` queries is there in
    their type, ``dtype``, as well.
    """
    dim, block, stages = max(16, triton.next_power_of_2(head_dim)), default.meta["BLOCK_N"], default.num_stages
    wide = dtype.itemsize if dtype.itemsize > kv.element_size() else 0

    def taken() -> int:
        buffers = stages if target().cuda else max(stages - 1, 1)
        return dim * (rows * dtype.itemsize + 2 * block * (buffers * kv.element_size() + wide))

    while taken() > 0.9 * target().shared and (stages > 1 or block > 16):
        stages, block = (stages - 1, block) if stages > 1 else (stages, block // 2)
    return Config({**default.meta, "BLOCK_N": block}, default.num_warps, stages)


def attention_decode(
    q: torch.Tensor,
    _query_starts: torch.Tensor,
    _query_lens: torch.Tensor,
    kv_lens: torch.Tensor,
    block_tables: torch.Tensor,
    kv: torch.Tensor,
    y: torch.Tensor,
    *,
    head_dim: int,
    kv_heads: int,
    page_size: int,
    scale: float,
) -> None:
    """Attends from row ``s`` of ``q`` [S, H · head_dim], the last token of sequence ``s``, to all of its tokens."""
    sequences, width = block_tables.shape
    if sequences == 0:
        return
    heads = q.shape[1] // head_dim
    sharing = heads // kv_heads
    chosen = decode_config(head_dim, sharing, q.dtype, kv)
    options = chosen.options
    block, programs = options["BLOCK_N"], options.pop("PROGRAMS")
    splits = split_count(sequences, kv_heads, triton.cdiv(width * page_size, block), programs)
    parts = logs = y
    if splits > 1:
        parts = q.new_empty((sequences, heads, splits, head_dim), dtype=torch.float32)
        logs = q.new_empty((sequences, heads, splits), dtype=torch.float32)
    shape = sizes(head_dim, kv_heads, page_size, kv)
    rows = max(16, triton.next_power_of_2(sharing))  # tensor cores multiply 16 at a time
    _decode[(sequences, kv_heads, splits)](
        *(q, kv, scales_of(kv), kv_lens, block_tables, y, parts, logs, splits, width, scale * LOG2E),
        SPLIT=splits > 1,
        SHARING=sharing,
        ROWS=rows,
        REORDER=kv.dtype == torch.int8 and q.dtype != torch.float32 and not target().name.startswith("gfx"),
        **shape,
        **options,
    )
    if splits > 1:
        _combine[(sequences, heads)](
            *(parts, logs, kv_lens, y, splits, heads, block, head_dim, shape["DIM"]),
            SPLITS=MOST_SPLITS,
            STEP=16,
            num_warps=4,
        )
