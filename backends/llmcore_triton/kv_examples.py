"""Calls of the kernels over the KV cache at the sizes of real models, on tensors without data.

They are what compiling ahead is asked for: with a stand-in for a driver active, calling them compiles every kernel
exactly as a step of such a model launches it, and no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

from llmcore_triton import layout
from llmcore_triton.attention import attention
from llmcore_triton.attention_decode import attention_decode
from llmcore_triton.kv_write import kv_write
from llmcore_triton.qkv import qkv_finish

LAYOUTS = {"float32": layout.FLOAT32, "float16": layout.FLOAT16, "bfloat16": layout.BFLOAT16, "int8": layout.INT8}
MODELS = ((8, 4, 64), (8, 4, 128), (4, 7, 128), (8, 8, 128), (8, 7, 64), (8, 8, 64))  # key heads, sharing, head_dim


@dataclass(frozen=True)
class Model:
    """Sizes of a model's attention, and the types of its activations and its cache."""

    kv_heads: int
    sharing: int
    head_dim: int
    kv_dtype: str = "bfloat16"
    dtype: torch.dtype = torch.bfloat16
    page_size: int = 16

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.kv_heads}x{self.sharing} heads of {self.head_dim}, {dtype}, kv {self.kv_dtype}"

    def pages(self, count: int) -> torch.Tensor:
        """``count`` pages of its cache."""
        form = LAYOUTS[self.kv_dtype]
        shape = form.page_shape(self.kv_heads, self.head_dim, self.page_size)
        return torch.empty((count, *shape), dtype=getattr(torch, form.dtype), device="meta")

    def rows(self, count: int, heads: int) -> torch.Tensor:
        """Activations [count, heads · head_dim]."""
        return torch.empty((count, heads * self.head_dim), dtype=self.dtype, device="meta")

    @property
    def heads(self) -> int:
        """How many query heads it has."""
        return self.kv_heads * self.sharing


def _indices(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def attend(
    kernel: Callable[..., None], model: Model, *, tokens: int = 64, sequences: int = 64, context: int = 8192
) -> None:
    """Calls an attention kernel for a step of ``tokens`` of ``sequences``, each of up to ``context`` tokens."""
    q = model.rows(tokens, model.heads)
    width = context // model.page_size
    lens = (_indices(sequences) for _ in range(3))
    tables, kv = _indices(sequences, width), model.pages(sequences * width)
    sizes = {"head_dim": model.head_dim, "kv_heads": model.kv_heads, "page_size": model.page_size}
    kernel(q, *lens, tables, kv, torch.empty_like(q), **sizes, scale=model.head_dim**-0.5)


def write(model: Model, *, tokens: int = 64) -> None:
    """Calls ``kv_write`` for ``tokens`` tokens."""
    k, v = (model.rows(tokens, model.kv_heads) for _ in "kv")
    kv_write(k, v, _indices(tokens), model.pages(64), head_dim=model.head_dim, page_size=model.page_size)


def finish(model: Model, *, tokens: int = 64) -> None:
    """Calls ``qkv_finish`` for ``tokens`` tokens, on columns of one tensor; not every model norms heads."""
    every = model.rows(tokens, model.heads + 2 * model.kv_heads)
    width = model.kv_heads * model.head_dim
    q, k, v = every.split([model.heads * model.head_dim, width, width], 1)
    cos, sin = (torch.empty((8192, model.head_dim // 2), device="meta") for _ in range(2))
    norm = torch.empty(model.head_dim, device="meta") if model.sharing % 4 == 0 else None
    indices, attrs = (_indices(tokens), _indices(tokens)), {"head_dim": model.head_dim, "page_size": model.page_size}
    y = model.rows(tokens, model.heads)
    qkv_finish(q, k, v, *indices, norm, norm, cos, sin, model.pages(64), y, **attrs, interleaved=False, eps=1e-6)


def examples(
    models: Sequence[tuple[int, int, int]] = MODELS, kv_dtypes: Sequence[str] = ("bfloat16", "int8")
) -> Iterator[tuple[str, Callable[[], None]]]:
    """What each call is, and the call."""
    for (kv_heads, sharing, head_dim), kv_dtype in product(models, kv_dtypes):
        model = Model(kv_heads, sharing, head_dim, kv_dtype)
        yield f"decode, {model}", partial(attend, attention_decode, model)
        yield f"decode, one split, {model}", partial(attend, attention_decode, model, tokens=512, sequences=512)
        yield f"prefill, {model}", partial(attend, attention, model, tokens=4096, sequences=1)
        yield f"kv_write, {model}", partial(write, model)
        yield f"qkv_finish, {model}", partial(finish, model)
