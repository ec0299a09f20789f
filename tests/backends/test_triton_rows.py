"""Triton's row kernels conform; and what is their own: wide rows, roundings, launches by shape.

In the interpreter on a choice of the kit's cases, on a GPU on all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from helpers.accelerator import accelerator, here, recorded_launches, there
from llmcore.hookspecs import KernelInfo
from llmcore.ops import Case
from llmcore.plugins import resolve
from llmcore.testing.conformance import Check, checks, declaration_errors, run_case
from llmcore.testing.operands import random_weight
from llmcore.weights.formats import FORMATS
from llmcore_triton import rms_norm as rms_norm_module
from llmcore_triton.device import INTERPRETING
from llmcore_triton.elementwise import add
from llmcore_triton.plugin import DTYPES, QUANTIZED, ROWS, llmcore_backends
from llmcore_triton.rms_norm import add_rms_norm, rms_norm

BACKEND = llmcore_backends()[0]


def _chosen() -> Iterator[Check]:
    """All cases in float32 where there is no weight format, every second in the others; of embeddings some of each."""
    for kernel in ROWS:
        every = list(checks(BACKEND, kernel, accelerator()))
        if not INTERPRETING:
            yield from every
        elif kernel.formats:
            every = [check for i, check in enumerate(every) if i % 5 == 1 or check.case.dims["D"] == 512]
            yield from (every if len(kernel.formats) > 1 else every[:: 3 if len(every) > 4 else 1])
        else:
            yield from (check for i, check in enumerate(every) if check.dtype == "float32" or i % 2)


@pytest.mark.parametrize("check", list(_chosen()), ids=lambda check: check.id)
def test_conforms(check: Check) -> None:
    assert not check.unsupported()
    check.run()


@pytest.mark.parametrize("kernel", ROWS, ids=lambda kernel: f"{kernel.op} {'+'.join(kernel.formats)}")
def test_declares_what_there_is(kernel: KernelInfo) -> None:
    assert declaration_errors(kernel, BACKEND) == []


def test_embeddings_of_every_format_that_ops_compute_with() -> None:
    for dtype in DTYPES:
        kernels = [kernel for kernel in ROWS if kernel.op == "embedding" and dtype in kernel.dtypes]
        offered = {name for kernel in kernels for name in kernel.formats}
        assert offered == {name for name, form in FORMATS.items() if form.decode is not None}


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_row_is_the_checkpoints(name: str) -> None:
    """All of a row's blocks, the last row too; float32 differs by the rounding of a multiplication and a sum."""
    weight = random_weight("w", (5, 768), FORMATS[name], np.random.default_rng(1))
    raw = there(torch.from_numpy(weight.raw().reshape(5, -1).copy()))
    ids, y = there(torch.tensor([4, 0, 2], dtype=torch.int32)), there(torch.full((3, 768), float("nan")))
    resolve(f"llmcore_triton.embedding:{name.lower()}")(ids, raw, y)
    np.testing.assert_allclose(here(y).numpy(), weight.dequantize()[[4, 0, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [40, 48])
@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
def test_rows_wider_than_a_program(op: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no program held more than 16 elements: rows that end within a block and at its end."""
    monkeypatch.setattr(rms_norm_module, "WIDEST", 16)
    kernel = next(kernel for kernel in ROWS if kernel.op == op)
    case = Case({"M": 3, "D": 2 * width, "C": width}, {"eps": 0.5})  # so large that it is seen
    for dtype in ("float32", "bfloat16"):
        run_case(kernel, BACKEND, case, dtype=dtype, device=accelerator())


def test_the_widest_row_of_one_program_and_the_next() -> None:
    for width in (rms_norm_module.WIDEST, rms_norm_module.WIDEST + 8):
        kernel = next(kernel for kernel in ROWS if kernel.op == "rms_norm")
        run_case(kernel, BACKEND, Case({"M": 1, "D": width, "C": width}, {"eps": 1e-5}), device=accelerator())


@pytest.mark.parametrize("width", [64, 32768])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_fused_norm_has_the_bits_of_its_parts(dtype: torch.dtype, width: int) -> None:
    """The sum is rounded before it is normed, as where it goes through memory."""
    a, b = there(torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0)).to(dtype))
    weight = there(torch.rand(width) + 0.5)
    total, y, apart, normed = (torch.empty_like(a) for _ in range(4))
    add_rms_norm(a, b, weight, total, y, eps=1e-5)
    add(a, b, apart)
    rms_norm(apart, weight, normed, eps=1e-5)
    assert torch.equal(total, apart) and torch.equal(total, a + b)
    assert torch.equal(y, normed)


def test_more_elements_than_a_program_has() -> None:
    """Element-wise ops, and rows to gather, of several programs; the last is not full."""
    for op, dims in (("add", {"M": 3, "D": 1001}), ("swiglu", {"M": 5, "F": 700})):
        kernel = next(kernel for kernel in ROWS if kernel.op == op)
        run_case(kernel, BACKEND, Case(dims), dtype="bfloat16", device=accelerator())
    gather = resolve("llmcore_triton.elementwise:gather")
    x, y = torch.randn(4, 2500), there(torch.zeros(2, 2500))
    gather(there(x), there(torch.tensor([3, 1], dtype=torch.int32)), y)
    assert torch.equal(here(y), x[[3, 1]])


def test_launches_depend_on_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher looks at data: tensors that have none will do. So a step can be captured, and kernels compiled."""
    launched = recorded_launches(monkeypatch)

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    ids, hidden, norm = empty(7, dtype=torch.int32), empty(7, 2048), empty(2048, dtype=torch.float32)
    table = empty(99, 64, dtype=torch.float32)
    calls = {
        "rms_norm:rms_norm": ((hidden, norm, hidden), {"eps": 1e-5}),
        "fused:add_rms_norm": ((hidden, hidden, norm, hidden, hidden), {"eps": 1e-5}),
        "elementwise:add": ((hidden, hidden, hidden), {}),
        "elementwise:swiglu": ((hidden, hidden, hidden), {}),
        "elementwise:gather": ((hidden, ids, hidden), {}),
        "rope:rope": ((hidden, ids, table, table, hidden), {"head_dim": 128, "interleaved": False}),
        "embedding:embedding": ((ids, hidden, hidden), {}),
        "embedding:q4_k": ((ids, empty(9, 1152, dtype=torch.uint8), hidden), {}),
    }
    for name, (tensors, attrs) in calls.items():
        resolve(f"llmcore_triton.{name}")(*tensors, **attrs)
    assert len(launched) == len(calls)
    assert all(isinstance(size, int) and size > 0 for grid in launched for size in grid)


def test_every_dtype_is_offered() -> None:
    assert all(kernel.dtypes == DTYPES for kernel in ROWS if kernel.op != "embedding")
    assert all(re.fullmatch(r"llmcore_triton\.\w+:\w+", kernel.target) for kernel in ROWS)
