"""Triton's kernels beyond element 2**31 of an operand, where an index of 32 bits is negative.

Operands are memory that nobody touches but for their last row. A GPU runs whole grids; the interpreter only the
programs at that end, for there are too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from helpers.accelerator import INTERPRETING, NAME, here, there
from llmcore import ops
from llmcore.plugins import resolve
from llmcore.testing.operands import random_weight
from llmcore.weights.formats import FORMATS

pytest.importorskip("triton")

from llmcore_triton import layout
from llmcore_triton.attention import attention, attention_decode
from llmcore_triton.elementwise import add, gather, swiglu
from llmcore_triton.embedding import embedding
from llmcore_triton.kv_write import kv_write
from llmcore_triton.qkv import qkv_finish
from llmcore_triton.rms_norm import add_rms_norm, rms_norm
from llmcore_triton.rope import rope

FAR = 1 << 31
WIDTH = 1024  # of rows: 8 heads of 128
HEADS = {"head_dim": 128, "page_size": 16}
END = Callable[[int], None]


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Given back after each test: other processes may use the same GPU."""
    yield
    if NAME == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> END:
    """``only(-1)``: of each grid's first axis the interpreter runs the last program; ``only(0)``: the first."""

    def choose(end: int) -> None:
        if not INTERPRETING:
            return
        from triton.runtime import interpreter

        builder, run = interpreter.interpreter_builder, interpreter.GridExecutor.__call__

        def run_one(executor: Any, *args: Any, **options: Any) -> None:
            size, *others = executor.grid
            executor.grid = (1, *others)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(builder, "set_grid_dim", lambda _, *yz: setattr(builder, "grid_dim", (size, *yz)))
                patch.setattr(builder, "set_grid_idx", lambda _, *yz: setattr(builder, "grid_idx", (end % size, *yz)))
                run(executor, *args, **options)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", run_one)

    return choose


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _far(row: torch.Tensor) -> torch.Tensor:
    """float16 rows of which the last is ``row`` and begins at element 2**31; the others are whatever was there."""
    rows = torch.empty(FAR // row.numel() + 1, row.numel(), dtype=torch.float16, device=NAME)
    rows[-1] = there(row)
    return rows


def _indices(count: int, last: int) -> torch.Tensor:
    """Zeros, and ``last`` at the end."""
    indices = torch.zeros(count, dtype=torch.int32, device=NAME)
    indices[-1] = last
    return indices


def _same(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-3) -> None:
    torch.testing.assert_close(here(got).float(), want.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("operation", [add, swiglu])
def test_elementwise(operation: Callable[..., None], only: END) -> None:
    only(-1)
    a, b = (_random(WIDTH, seed=seed).half() for seed in (1, 2))
    left = _far(a)
    operation(left, _far(b), left)
    _same(left[-1], ops.get(operation.__name__).reference(a, b))


@pytest.mark.parametrize(("width", "group"), [(WIDTH, WIDTH), (WIDTH, 128), (32768, 32768)])
def test_norms(width: int, group: int, only: END) -> None:
    """Of rows, of heads, and of rows wider than a program."""
    only(-1)
    a, b = (_random(width, seed=seed).half() for seed in (1, 2))
    weight = _random(group)
    x, y = _far(a), _far(torch.zeros(width))
    norm = ops.get("rms_norm").reference
    rms_norm(x, there(weight), y, eps=1e-5)
    _same(y[-1:], norm(a[None], weight, eps=1e-5))
    add_rms_norm(x, _far(b), there(weight), x, y, eps=1e-5)
    _same(x[-1], a + b)
    _same(y[-1:], norm((a + b)[None], weight, eps=1e-5), 4e-3)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(interleaved: bool, only: END) -> None:
    """Of a part of each head, so that some elements pass unchanged."""
    only(-1)
    row, cos, sin = _random(WIDTH).half(), *_random(2, 4, 32)
    x, attrs = _far(row), {"head_dim": 128, "interleaved": interleaved}
    rope(x, _indices(len(x), 3), there(cos), there(sin), x, **attrs)
    _same(x[-1:], ops.get("rope").reference(row[None], torch.tensor([3]), cos, sin, **attrs))


@pytest.mark.parametrize("gathers", [gather, embedding])
def test_rows_that_are_read_and_written(gathers: Callable[..., None], only: END) -> None:
    only(-1)
    row = _random(WIDTH).half()
    x, y = _far(row), _far(torch.zeros(WIDTH))
    ids = _indices(len(y), len(x) - 1)
    gathers(*((x, ids) if gathers is gather else (ids, x)), y)
    _same(y[-1], row, 0)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
def test_quantized_embeddings(name: str, only: END) -> None:
    only(-1)
    tensor = random_weight("w", (1, WIDTH), FORMATS[name], np.random.default_rng(0))
    raw = torch.from_numpy(tensor.raw().reshape(-1).copy())
    weight = torch.empty(FAR // len(raw) + 2, len(raw), dtype=torch.uint8, device=NAME)
    weight[-1] = there(raw)
    y = _far(torch.zeros(WIDTH))
    resolve(f"llmcore_triton.embedding:{name.lower()}")(_indices(len(y), len(weight) - 1), weight, y)
    _same(y[-1:], torch.from_numpy(tensor.dequantize()))


# -- the cache -----------------------------------------------------------------------------------------------------


def _pages(kv_dtype: str, kv_heads: int) -> torch.Tensor:
    """So many that the last begins beyond 2**31, in units of 2 bytes: as such the scales of int8 are found."""
    form = {"float16": layout.FLOAT16, "int8": layout.INT8}[kv_dtype]
    dtype = getattr(torch, kv_dtype)
    shape = form.page_shape(kv_heads, HEADS["head_dim"], HEADS["page_size"])
    return torch.empty(2 * FAR // (int(np.prod(shape)) * dtype.itemsize) + 2, *shape, dtype=dtype, device=NAME)


def _attended(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What one token [heads, 128] attends to."""
    return (q.float() @ keys.float().T * 128**-0.5).softmax(-1) @ values.float()


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("kernel", [attention, attention_decode])
def test_attention_to_a_far_page(kernel: Callable[..., None], kv_dtype: str, only: END) -> None:
    """The last of two million queries, which others attend as well, over a page at the end of a cache."""
    queries, keys, values = _random(8, 128).half(), *_random(2, 3, 128, seed=1).half()
    kv = _pages(kv_dtype, 1)
    page = len(kv) - 1
    slots = there(torch.tensor([16 * page, 16 * page + 1, 16 * page + 2], dtype=torch.int32))
    kv_write(there(keys), there(values), slots, kv, **HEADS)
    only(-1 if kernel is attention_decode else 0)  # prefill begins with the last block
    q, y = _far(queries.view(-1)), _far(torch.zeros(WIDTH))
    count = len(q)
    starts, ones = (
        torch.arange(count, dtype=torch.int32, device=NAME),
        torch.ones(count, dtype=torch.int32, device=NAME),
    )
    lens, tables = _indices(count, 3), _indices(count, page)[:, None]
    kernel(q, starts, ones, lens.clamp(min=1), tables, kv, y, **HEADS, kv_heads=1, scale=128**-0.5)
    _same(y[-1].view(8, 128), _attended(queries, keys, values), 2e-3 if kv_dtype == "float16" else 2e-2)


def test_far_tokens_are_cached(only: END) -> None:
    only(-1)
    keys, values = (_random(WIDTH, seed=seed).half() for seed in (1, 2))
    k = _far(keys)
    kv = torch.zeros(2, *layout.FLOAT16.page_shape(8, 128, 16), dtype=torch.float16, device=NAME)
    kv_write(k, _far(values), _indices(len(k), 21), kv, **HEADS)
    _same(kv[1, 0, :, 5].reshape(-1), keys, 0)
    _same(kv[1, 1, :, 5].reshape(-1), values, 0)


def test_far_projections_are_finished(only: END) -> None:
    """Rows of queries, keys and values that lie beside each other, and a far page."""
    only(-1)
    row, cos, sin = _random(WIDTH).half(), *_random(2, 4, 64)
    every, kv = torch.empty(FAR // 768 + 1, WIDTH, dtype=torch.float16, device=NAME), _pages("float16", 1)
    every[-1] = there(row)
    q, k, v = every.split([768, 128, 128], 1)
    page = len(kv) - 1
    y = torch.empty(len(q), 768, dtype=torch.float16, device=NAME)
    attrs = {**HEADS, "interleaved": False, "eps": 1e-5}
    indices = _indices(len(q), 3), _indices(len(q), 16 * page + 7)
    qkv_finish(q, k, v, *indices, None, None, there(cos), there(sin), kv, y, **attrs)
    turn = ops.get("rope").reference
    turned = turn(row[None, :896], torch.tensor([3]), cos, sin, head_dim=128, interleaved=False)[0]
    _same(y[-1], turned[:768])
    _same(kv[page, 0, 0, 7], turned[768:])
    _same(kv[page, 1, 0, 7], row[896:], 0)
