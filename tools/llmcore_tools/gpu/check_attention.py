"""Stage ``attention``: decode attention alone over long contexts, against the memory's speed.

A step of a model meets every layer's keys and values once, so the cache of one layer, called again and again, would
come out of the GPU's own cache: several layers take turns, larger than that together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llmcore.cache.layout import KVLayout
from llmcore.hookspecs import KernelInfo
from llmcore.plugins import plugins, resolve
from llmcore.registry.node import NodeView
from llmcore.testing.invoke import why_not
from llmcore_tools.gpu.check_context import Context, Finding
from llmcore_tools.gpu.check_timing import bandwidth, seconds

PAGE_SIZE = 16
GOAL = 0.80  # from 8,192 tokens on
CACHED = 1 << 30  # bytes that all layers together have at least: far more than a GPU's own cache
NEEDS_S = 1.5
HEADS = ((32, 8, 128), (32, 8, 64), (28, 4, 128))  # query heads, key heads, their size: Llama 8B, Llama 1B, Qwen2.5 7B


@dataclass(frozen=True)
class Shape:
    """A step of decode: one new token of each of ``batch`` sequences of ``length`` tokens."""

    batch: int
    length: int
    heads: tuple[int, int, int]
    kv_dtype: str
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        query, key, size = self.heads
        return f"{query}/{key} heads of {size}, {self.kv_dtype} cache, batch {self.batch}, {self.length} tokens"

    @property
    def attrs(self) -> dict[str, Any]:
        """Those of the op."""
        _, key, size = self.heads
        return {"head_dim": size, "kv_heads": key, "page_size": PAGE_SIZE, "scale": size**-0.5}

    @property
    def pages(self) -> int:
        """Pages of a sequence."""
        return -(-self.length // PAGE_SIZE)


def shapes(rehearse: bool) -> Iterator[Shape]:
    """The most telling first."""
    if rehearse:
        yield from (Shape(2, 20, (2, 1, 16), kv_dtype) for kv_dtype in ("bfloat16", "int8"))
        return
    for heads in HEADS:
        for kv_dtype in ("bfloat16", "int8"):
            for length, batches in ((8192, (1, 8, 64)), (32768, (1, 8, 64))):
                yield from (Shape(batch, length, heads, kv_dtype) for batch in batches)


def run(context: Context) -> None:
    """Every shape."""
    read = bandwidth(context)
    for shape in shapes(context.rehearse):
        context.attempt(str(shape), partial(measure, context, shape, read), NEEDS_S)


def measure(context: Context, shape: Shape, read: float) -> None:
    """Times recorded calls, one for each layer."""
    kernels = {op: kernel_of(op, shape, context.device.kind) for op in ("kv_write", "attention")}
    layout: KVLayout = resolve(plugins().backend("triton").kv_layouts[shape.kv_dtype])
    page = layout.page_shape(*shape.heads[1:], PAGE_SIZE)
    one = torch.empty(page, dtype=getattr(torch, layout.dtype), device="meta")
    layer_bytes = shape.batch * shape.pages * one.numel() * one.element_size()
    layers = 2 if context.rehearse else min(max(-(-CACHED // layer_bytes), 2), 64)
    call = Layers(shape, kernels, layout, layers, context.device.device)
    call()  # compiles; what is recorded must have run before
    replay = context.device.capture(call)
    taken = seconds(context.device, replay, repeats=3, inner=1 if context.rehearse else 4).median / layers
    _, key, size = shape.heads
    element = {"bfloat16": 2.0, "int8": 1.25}[shape.kv_dtype]  # int8: a float16 scale for each 8
    nbytes = 2 * shape.batch * shape.length * key * size * element
    floor = nbytes / read / 1e9
    values = {
        "µs": 1e6 * taken,
        "floor µs": 1e6 * floor,
        "GB/s": nbytes / taken / 1e9,
        "% of floor": 100 * floor / taken,
        "goal %": 100 * GOAL,
    }
    context.add(Finding(str(shape), context.judged(floor / taken, GOAL), values))


def kernel_of(op: str, shape: Shape, device: str) -> KernelInfo:
    """The backend's own choice for this shape. Raises ``LookupError`` where it has none."""
    backend = plugins().backend("triton")
    query, key, size = shape.heads
    dims = {"T": shape.batch, "D": query * size, "G": key * size, "S": shape.batch, "B": shape.pages}
    node = NodeView(op, "", device, shape.dtype, dims=dims, attrs=shape.attrs, one_each=True)
    kernel, reason = why_not(backend, tuple(k for k in backend.kernels if k.op == op), node, shape.kv_dtype)
    if kernel is None:
        raise LookupError(f"{op}: {reason}")
    return kernel


class Layers:
    """Attention of one step in several layers, each with a cache full of random keys and values."""

    def __init__(
        self, shape: Shape, kernels: dict[str, KernelInfo], layout: KVLayout, layers: int, device: torch.device
    ) -> None:
        query, key, size = shape.heads
        make = partial(torch.randn, device=device)
        dtype, count = getattr(torch, shape.dtype), shape.batch * shape.pages
        self.q = make(shape.batch, query * size).to(dtype)
        self.y = torch.empty_like(self.q)
        ints = partial(torch.arange, dtype=torch.int32, device=device)
        self.starts, self.ones = ints(shape.batch), torch.ones_like(ints(shape.batch))
        self.lengths = torch.full_like(self.ones, shape.length)
        order = torch.randperm(count, device=device).to(torch.int32)  # as pages lie after a while
        self.tables = order.view(shape.batch, shape.pages).contiguous()
        self.attrs, self.attend = shape.attrs, resolve(kernels["attention"].target)
        write, tokens = resolve(kernels["kv_write"].target), PAGE_SIZE * min(count, 4096)
        new = make(tokens, key * size).to(dtype)
        full = (count, *layout.page_shape(key, size, PAGE_SIZE))
        self.caches = [torch.zeros(full, dtype=getattr(torch, layout.dtype), device=device) for _ in range(layers)]
        for cache in self.caches:
            for first in range(0, count * PAGE_SIZE, tokens):
                slots = ints(first, min(first + tokens, count * PAGE_SIZE))
                rows = new[: len(slots)]
                write(rows, rows, slots, cache, head_dim=size, page_size=PAGE_SIZE)

    def __call__(self) -> None:
        """One step."""
        for cache in self.caches:
            self.attend(self.q, self.starts, self.ones, self.lengths, self.tables, cache, self.y, **self.attrs)
