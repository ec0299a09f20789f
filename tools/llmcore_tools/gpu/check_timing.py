"""Seconds on a device, and what the device allows: bandwidth of its memory, operations of its matrix units."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from llmcore_tools.bench.measure import Series

if TYPE_CHECKING:
    from llmcore.device.accelerator import Accelerator
    from llmcore_tools.gpu.check_context import Context

Call = Callable[[], object]
BLOCK, STEPS = 4096, 8  # elements that a program of _read takes at a time, and how often


def seconds(device: Accelerator, call: Call, *, repeats: int = 7, inner: int = 1, warm: int = 2) -> Series:
    """Seconds that a ``call`` takes on the device, by its own clock; a sample is ``inner`` of them in a row."""
    for _ in range(warm):
        call()
    return Series(tuple(_sample(device, call, inner) / inner for _ in range(repeats)))


def _sample(device: Accelerator, call: Call, inner: int) -> float:
    if not device.asynchronous:
        start = time.perf_counter()
        for _ in range(inner):
            call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device.device)
    begin.record()
    for _ in range(inner):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def settled(device: Accelerator) -> float:
    """The time, when all that was asked of the device is done."""
    if device.asynchronous:
        torch.cuda.synchronize(device.device)
    return time.perf_counter()


@triton.jit  # type: ignore[untyped-decorator]
def _read(x: Any, sums: Any, BLOCK: tl.constexpr, STEPS: tl.constexpr) -> None:
    """Program: the sum of ``STEPS`` blocks, so that every element is loaded and nearly nothing stored."""
    start = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(STEPS):
        total += tl.load(x + start + step * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))


def read_gb_s(device: Accelerator, nbytes: int) -> float:
    """GB/s at which memory is read: the better of a kernel that adds up what it loads, and torch's sum."""
    programs = max(nbytes // (4 * BLOCK * STEPS), 1)
    x = torch.ones(programs * BLOCK * STEPS, device=device.device)
    sums = torch.empty(programs, device=device.device)

    def kernel() -> None:
        _read[(programs,)](x, sums, BLOCK=BLOCK, STEPS=STEPS, num_warps=8)

    kernel()
    assert bool((sums == BLOCK * STEPS).all()), "what is timed must have read everything"
    taken = min(seconds(device, kernel).median, seconds(device, x.sum).median)
    return float(4 * x.numel() / taken / 1e9)


def copy_gb_s(device: Accelerator, nbytes: int) -> float:
    """GB/s of a copy within the device's memory, bytes read and bytes written together."""
    source = torch.ones(nbytes, dtype=torch.uint8, device=device.device)
    target = torch.empty_like(source)
    return 2 * nbytes / seconds(device, lambda: target.copy_(source)).median / 1e9


def bandwidth(context: Context) -> float:
    """GB/s of reading, as the run's first stage has measured it, or measured now."""
    known = context.known("environment", "read_gb_s")
    return float(known) if known else read_gb_s(context.device, (1 << 18) if context.rehearse else (1 << 31))


def mm_tflops(device: Accelerator, size: int) -> float:
    """10¹² operations a second of torch's product of two square bfloat16 matrices."""
    a, b = (torch.randn(size, size, device=device.device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return _tera(size, seconds(device, lambda: torch.mm(a, b, out=out), inner=3))


def int8_tops(device: Accelerator, size: int) -> float:
    """The same of int8 matrices, accumulated in int32."""
    a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device.device) for _ in range(2))
    b = b.t()  # the order that cuBLAS has kernels for
    return _tera(size, seconds(device, lambda: torch._int_mm(a, b), inner=3))


def fp8_tflops(device: Accelerator, size: int) -> float:
    """The same of float8 matrices (e4m3) with one scale each."""
    a, b = (torch.randn(size, size, device=device.device).to(torch.float8_e4m3fn) for _ in range(2))
    b, one = b.t(), torch.ones((), device=device.device)

    def product() -> torch.Tensor:
        return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return _tera(size, seconds(device, product, inner=3))


def _tera(size: int, taken: Series) -> float:
    return 2 * size**3 / taken.median / 1e12


def matrix_peak(context: Context) -> float:
    """The bfloat16 peak of the run's first stage, in 10¹² operations a second, or measured now."""
    known = context.known("environment", "mm_tflops")
    return float(known) if known else mm_tflops(context.device, 64 if context.rehearse else 8192)
