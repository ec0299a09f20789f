"""Kernels that are right or wrong in one way each, for the tools that compile and tune: a backend without merit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore_triton.configs import Config, config

HERE = "helpers.gpu_kernels"
BLOCK = Config({"BLOCK": 1024})
TILE = Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}, num_warps=4, num_stages=2)
SMALL_TILE = Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32}, num_warps=4, num_stages=1)


def _kernel(op: str, name: str, **more: Any) -> KernelInfo:
    dtypes = ("bfloat16", "float16", "float32")
    return KernelInfo(op, f"{HERE}:{name}", view="torch", devices=("cuda",), dtypes=dtypes, **more)


def good() -> list[BackendInfo]:
    """Two kernels that nothing is wrong with, and one that nobody calls."""
    packed = {"formats": ("BF16", "Q8_0"), "pack": f"{HERE}:padded", "layout": ("padded", 1)}
    kernels = (
        _kernel("add", "add"),
        _kernel("linear", "linear", **packed),
        _kernel("linear", "linear_of_f16", formats=("F16",)),
    )
    return [BackendInfo("triton", "kernels of a test", kernels)]


def bad() -> list[BackendInfo]:
    """Each of these breaks a rule."""
    kernels = (
        _kernel("add", "narrow_add"),
        _kernel("swiglu", "spilling_swiglu"),
        _kernel("linear", "float32_linear", formats=("BF16",)),
        _kernel("rms_norm", "syncing_rms_norm"),
        _kernel("gather", "huge_gather"),
        _kernel("rope", "broken_rope"),
        _kernel("softmax", "greedy_softmax"),
        _kernel("embedding", "empty_embedding", formats=("BF16",)),
    )
    return [BackendInfo("triton", "bad kernels of a test", kernels)]


def padded(tensor: Any) -> np.ndarray[Any, Any]:
    """A weight as float16 tiles ``[N / 64, K / 64, 64, 64]`` of rows and columns padded with zeros."""
    rows, columns = (-(-size // 64) * 64 for size in tensor.shape)
    wide = np.zeros((rows, columns), np.float16)
    wide[: tensor.shape[0], : tensor.shape[1]] = tensor.dequantize()
    return np.ascontiguousarray(wide.reshape(rows // 64, 64, columns // 64, 64).transpose(0, 2, 1, 3))


@triton.jit
def add_kernel(a, b, y, size, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """``a + b``; a ``STRIDE`` above 1 tears neighbours apart."""
    at = tl.program_id(0) * BLOCK + (tl.arange(0, BLOCK) * STRIDE) % BLOCK
    inside = at < size
    tl.store(y + at, tl.load(a + at, inside) + tl.load(b + at, inside), inside)


@triton.jit
def spilling_kernel(a, b, y, size, BLOCK: tl.constexpr):
    """Sums that need all values at once."""
    at = tl.arange(0, BLOCK)
    x = tl.load(a + at, at < size, 0.0).to(tl.float32)
    z = tl.load(b + at, at < size, 0.0).to(tl.float32)
    x = tl.cumsum(x * z, 0) * x + tl.cumsum(z, 0) * z
    tl.store(y + at, x, at < size)


@triton.jit
def linear_kernel(
    x, w, y, rows, n, k, DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """``x @ w.T`` over tiles ``w`` ``[n / 64, k / 64, 64, 64]``."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    tiles = tl.cdiv(k, 64)
    for start in range(0, k, BLOCK_K):
        at = start + inner
        left = tl.load(x + m[:, None] * k + at[None, :], (m[:, None] < rows) & (at[None, :] < k), 0.0)
        tile = (out[:, None] // 64 * tiles + at[None, :] // 64) * 4096
        right = tl.load(w + tile + out[:, None] % 64 * 64 + at[None, :] % 64)
        total = tl.dot(left.to(DOT), tl.trans(right.to(DOT)), total, input_precision="ieee")
    tl.store(y + m[:, None] * n + out[None, :], total, (m[:, None] < rows) & (out[None, :] < n))


def _added(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor, stride: int) -> None:
    chosen = config("test_add", (a.numel(),), BLOCK)
    grid = (triton.cdiv(a.numel(), chosen.meta["BLOCK"]),)
    add_kernel[grid](a, b, y, a.numel(), STRIDE=stride, **chosen.options)


def add(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    """Whole lines at a time."""
    _added(a, b, y, 1)


def narrow_add(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    """Two bytes at a time."""
    _added(a, b, y, 17)


def sloppy_add(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    """Forgets the last block where it is not a whole one."""
    chosen = config("test_add", (a.numel(),), BLOCK)
    y.zero_()
    grid = (a.numel() // chosen.meta["BLOCK"],)
    add_kernel[grid](a, b, y, a.numel(), STRIDE=1, **chosen.options)


def spilling_swiglu(gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> None:
    """Fewer registers than it needs."""
    spilling_kernel[(1,)](gate, up, y, gate.numel(), BLOCK=1024, num_warps=1, maxnreg=32)


def _multiplied(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, dot: Any, tile: Config = TILE) -> None:
    (rows, k), n = x.shape, y.shape[1]
    chosen = config("test_linear", (rows, n, k), tile)
    grid = (triton.cdiv(rows, chosen.meta["BLOCK_M"]), triton.cdiv(n, chosen.meta["BLOCK_N"]))
    linear_kernel[grid](x, weight, y, rows, n, k, DOT=dot, **chosen.options)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """On tensor cores."""
    _multiplied(x, weight, y, tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16)


def linear_of_f16(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """For a format that the tests ask nobody for."""


def float32_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """With one multiplication at a time."""
    _multiplied(x, weight, y, tl.float32, SMALL_TILE)


def syncing_rms_norm(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, eps: float) -> None:
    """Waits for the GPU."""
    if weight[0].item() > eps:
        _added(x, x, y, 1)


def huge_gather(x: torch.Tensor, rows: torch.Tensor, y: torch.Tensor) -> None:
    """A grid that no GPU has."""
    add_kernel[(1, 65536)](x, x, y, y.numel(), BLOCK=64, STRIDE=1)


def broken_rope(
    x: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, y: torch.Tensor, **_attrs: Any
) -> None:
    """A block whose size is no power of two."""
    add_kernel[(1,)](x, x, y, y.numel(), BLOCK=96, STRIDE=1)


def greedy_softmax(logits: torch.Tensor, temperature: torch.Tensor, probs: torch.Tensor) -> None:
    """More shared memory than there is."""
    tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128}
    linear_kernel[(1, 1)](logits, logits, probs, 1, 1, 4096, DOT=tl.float16, **tile, num_warps=8, num_stages=5)


def empty_embedding(ids: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> None:
    """A grid without a program."""
    add_kernel[(y.shape[0] // 4096,)](y, y, y, y.numel(), BLOCK=64, STRIDE=1)
