"""Ops over the KV cache. Its layout is the backend's secret, so writes are judged by what its attention reads.

What attention should read is computed here, from the keys and values as a cache of its type keeps them: a plain causal
softmax per sequence in float64, without pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore import ops
from llmcore.cache.layout import KV_DTYPES, KVLayout
from llmcore.device.base import numpy_dtype
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.ops import Case, tolerances
from llmcore.plugins import resolve
from llmcore.registry.node import NodeView
from llmcore.testing.buffers import FILL, Array, Guarded, KernelMismatch
from llmcore.testing.invoke import Setting, execute, why_not
from llmcore.testing.judge import compare, compare_bits
from llmcore.testing.operands import Values, expected_writes

NEIGHBOUR = 1e-2  # what a kernel makes a little differently may be rounded to the next value that a cache can hold
SPARE_PAGES = 2  # beyond the highest that a case uses; none where a forbidden page is to follow that


@dataclass(frozen=True)
class Heads:
    """Sizes of an attention."""

    kv_heads: int
    head_dim: int
    page_size: int


def dense_attention(q: Array, keys: Array, values: Array, heads: Heads, scale: float) -> Array:
    """``q`` [n, H · head_dim] are the last n of the tokens whose ``keys`` and ``values`` are [L, G · head_dim]."""
    count, length = len(q), len(keys)
    sharing = q.shape[1] // (heads.kv_heads * heads.head_dim)
    grouped = q.astype(np.float64).reshape(count, heads.kv_heads, sharing, heads.head_dim)  # [n, G, H / G, head_dim]
    k, v = (x.astype(np.float64).reshape(length, heads.kv_heads, heads.head_dim) for x in (keys, values))
    scores = np.einsum("ngrd,lgd->ngrl", grouped, k) * scale
    future = np.arange(length) > np.arange(length - count, length)[:, None]  # [n, L]
    scores = np.where(future[:, None, None], -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
    weights /= weights.sum(-1, keepdims=True)
    y: Array = np.einsum("ngrl,lgd->ngrd", weights, v).reshape(q.shape)
    return y


class Cache:
    """One layer's pages in a backend's layout, written and read by its own kernels.

    Args:
        attention: the kernel that reads; by default the one that the registry would take, and an exact one if it can.
    """

    def __init__(
        self, backend: BackendInfo, heads: Heads, pages: int, setting: Setting, attention: KernelInfo | None = None
    ) -> None:
        if setting.kv_dtype not in backend.kv_layouts:
            raise KernelMismatch(f"backend {backend.name} names no layout of a KV cache of {setting.kv_dtype}")
        layout: KVLayout = resolve(backend.kv_layouts[setting.kv_dtype])
        self.backend, self.heads, self.setting = backend, heads, setting
        self.attention = attention
        page_shape = tuple(layout.page_shape(heads.kv_heads, heads.head_dim, heads.page_size))
        fence = setting.fence_of("kv")
        self.memory = Guarded("kv", (pages, *page_shape), layout.numpy, fence=fence)
        self.memory.array.view(np.uint8)[...] = FILL

    def write(self, keys: Array, values: Array, slots: Array) -> None:
        """Stores tokens [T, G · head_dim] through the backend's ``kv_write``."""
        attrs = {"head_dim": self.heads.head_dim, "page_size": self.heads.page_size}
        dims = {"T": keys.shape[0], "G": keys.shape[1]}
        self._call("kv_write", None, {"k": keys, "v": values, "slots": slots}, dims, attrs)

    def attend(self, q: Array, index: Mapping[str, Array], scale: float) -> Array:
        """Attention of ``q`` [T, H · head_dim] over a ragged batch."""
        sequences, width = index["block_tables"].shape
        dims = {"T": q.shape[0], "D": q.shape[1], "S": sequences, "B": width}
        attrs = {
            "head_dim": self.heads.head_dim,
            "kv_heads": self.heads.kv_heads,
            "page_size": self.heads.page_size,
            "scale": scale,
        }
        return self._call("attention", self.attention, {"q": q, **index}, dims, attrs)["y"]

    def _call(
        self,
        op: str,
        kernel: KernelInfo | None,
        arrays: Mapping[str, Array],
        dims: Mapping[str, int],
        attrs: Mapping[str, Any],
    ) -> dict[str, Array]:
        if kernel is None:
            node = NodeView(op, "", self.setting.device.kind, self.setting.dtype, dims=dims, attrs=attrs)
            exact = tuple(kernel for kernel in self.backend.kernels if kernel.exact)
            kernel, why = why_not(self.backend, exact, node, self.setting.kv_dtype)
            if kernel is None:
                kernel, why = why_not(self.backend, self.backend.kernels, node, self.setting.kv_dtype)
            if kernel is None:
                raise KernelMismatch(f"the backend's own {op} is needed to test its cache: {why}")
        return execute(kernel, Values(dict(arrays)), dims, attrs, self.setting, self.memory)

    def kept(self, rows: Array) -> Array:
        """What the cache holds of keys or values [T, G · head_dim]: all but what its type cannot tell apart."""
        heads = rows.astype(np.float32).reshape(len(rows), self.heads.kv_heads, self.heads.head_dim)
        return KV_DTYPES[self.setting.kv_dtype](heads).reshape(rows.shape)

    def check_untouched(self, slots: Array) -> None:
        """Raises :class:`KernelMismatch` where a page that holds none of ``slots`` has changed."""
        pages = self.memory.array.reshape(len(self.memory.array), -1).view(np.uint8)
        changed = np.flatnonzero((pages != FILL).any(1))
        strange = sorted(set(changed.tolist()) - set((slots // self.heads.page_size).tolist()))
        if strange:
            raise KernelMismatch(f"kv: pages {strange} were written, though no slot is in them")


def check_attention(
    kernel: KernelInfo,
    backend: BackendInfo,
    case: Case,
    values: Values,
    setting: Setting,
    *,
    batch_invariance: bool = False,
) -> None:
    """Fills a cache through the backend's ``kv_write``, past and new tokens apart, and judges ``kernel`` by it."""
    attrs = case.attrs
    heads = Heads(attrs["kv_heads"], attrs["head_dim"], attrs["page_size"])
    index = {name: array for name, array in values.arrays.items() if name != "q"}
    q = values.arrays["q"]
    tables, lens, counts = index["block_tables"], index["kv_lens"], index["query_lens"]
    slots = [_slots(table, length, heads) for table, length in zip(tables, lens, strict=True)]
    pages = int(tables.max(initial=0)) + 1 + _spare_pages(setting)
    cache = Cache(backend, heads, pages, setting, kernel)
    rng = np.random.default_rng(0)
    shape = pages * heads.page_size, heads.kv_heads * heads.head_dim
    keys, vals = (rng.standard_normal(shape).astype(q.dtype) for _ in "kv")  # by slot
    _fill(cache, keys, vals, slots, counts)
    keys, vals = cache.kept(keys), cache.kept(vals)
    got = cache.attend(q, index, attrs["scale"])
    want = np.zeros(q.shape)
    for own, start, count in zip(slots, index["query_starts"], counts, strict=True):
        rows = slice(start, start + count)
        want[rows] = dense_attention(q[rows], keys[own], vals[own], heads, attrs["scale"])
    compare("y", got, want, tolerances.relative(setting.dtype, exact=kernel.exact))
    if batch_invariance:
        _check_each_alone(cache, q, index, attrs["scale"], got)


def _spare_pages(setting: Setting) -> int:
    return 0 if setting.fence else SPARE_PAGES


def _slots(table: Array, length: int, heads: Heads) -> Array:
    token = np.arange(length)
    return (table[token // heads.page_size] * heads.page_size + token % heads.page_size).astype(np.int32)


def _fill(cache: Cache, keys: Array, values: Array, slots: list[Array], new: Array) -> None:
    """Two writes, as a prefill and the next chunk make them; a page that sequences share is written once."""
    nothing = np.empty(0, np.int32)
    split = [(own[: len(own) - count], own[len(own) - count :]) for own, count in zip(slots, new, strict=True)]
    for step in (0, 1):
        chosen = np.unique(np.concatenate([nothing, *(parts[step] for parts in split)]))
        cache.write(keys[chosen], values[chosen], chosen)
    cache.check_untouched(np.concatenate([nothing, *slots]))


def _check_each_alone(cache: Cache, q: Array, index: Mapping[str, Array], scale: float, together: Array) -> None:
    for row, (start, count) in enumerate(zip(index["query_starts"], index["query_lens"], strict=True)):
        one = {name: np.ascontiguousarray(array[row : row + 1]) for name, array in index.items()}
        one["query_starts"] = np.zeros(1, np.int32)
        alone = cache.attend(q[start : start + count], one, scale)
        compare_bits("y", alone, together[start : start + count], "who shares the batch")


def check_writer(
    kernel: KernelInfo, backend: BackendInfo, case: Case, values: Values, setting: Setting, *, slack: float = 1.0
) -> None:
    """Runs an op that writes to the cache, compares its outputs, and reads every page that it wrote."""
    factor = slack * tolerances.relative(setting.dtype, exact=kernel.exact)
    attrs, slots = case.attrs, values.arrays["slots"]
    heads = Heads(case.dims["G"] // attrs["head_dim"], attrs["head_dim"], attrs["page_size"])
    pages = int(slots.max(initial=0)) // heads.page_size + 1 + _spare_pages(setting)
    cache = Cache(backend, heads, pages, setting)
    outputs = execute(kernel, values, case.dims, attrs, setting, cache.memory)
    want, keys, vals = expected_writes(ops.get(kernel.op), values, attrs)
    for name, array in want.items():
        compare(name, outputs[name], array, factor)
    cache.check_untouched(slots)
    if want and setting.kv_dtype != "float32":
        factor += slack * NEIGHBOUR
    _read_back(cache, cache.kept(keys), cache.kept(vals), slots, factor)


def _read_back(cache: Cache, keys: Array, values: Array, slots: Array, factor: float) -> None:
    """Each page as a sequence of its own, seen by one query: the cases fill pages from their beginning.

    Scores are about 1 however large the keys are: a softmax of large ones is a choice that roundings make.
    """
    heads, size = cache.heads, float(np.sqrt(np.mean(keys.astype(np.float64) ** 2))) if keys.size else 1.0
    scale = heads.head_dim**-0.5 / max(size, 1e-6)
    used, counts = np.unique(slots // heads.page_size, return_counts=True)
    index = {
        "query_starts": np.arange(len(used), dtype=np.int32),
        "query_lens": np.ones(len(used), np.int32),
        "kv_lens": counts.astype(np.int32),
        "block_tables": used.astype(np.int32)[:, None],
    }
    q = np.random.default_rng(1).standard_normal((len(used), keys.shape[1])).astype(numpy_dtype(cache.setting.dtype))
    got = cache.attend(q, index, scale)
    of_page = np.split(np.argsort(slots), np.cumsum(counts)[:-1])  # the tokens of each page in the order of offsets
    for row, tokens in zip(range(len(used)), of_page, strict=False):
        want = dense_attention(q[row : row + 1], keys[tokens], values[tokens], heads, scale)
        compare(f"y (attention reading page {used[row]})", got[row : row + 1], want, factor)
