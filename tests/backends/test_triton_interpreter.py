"""What Triton's interpreter computes of bfloat16, with and without our repairs.

Run as a program, with TRITON_INTERPRET=1, this file prints which operations are right in an interpreter that nobody has
repaired.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU here, for which Triton compiles"
)

WIDTH = 64
NAN = float("nan")


@triton.jit
def operate(a_ptr, b_ptr, y_ptr, WIDTH: tl.constexpr, OP: tl.constexpr):
    """One operation on a program's whole block; the output's type is that of ``y_ptr``."""
    index = tl.arange(0, WIDTH)
    a, b = tl.load(a_ptr + index), tl.load(b_ptr + index)
    if OP == "add":
        y = a + b
    elif OP == "subtract":
        y = a - b
    elif OP == "multiply":
        y = a * b
    elif OP == "divide":
        y = a / b
    elif OP == "fma":
        y = tl.fma(a, b, a)
    elif OP == "negate":
        y = -a
    elif OP == "abs":
        y = tl.abs(a)
    elif OP == "less":
        y = tl.where(a < b, 1.0, 0.0)
    elif OP == "equal":
        y = tl.where(a == a, 1.0, 0.0)  # noqa: PLR0124  # not so of NaN
    elif OP == "constant":
        y = a * tl.full((WIDTH,), 1.5, tl.bfloat16)
    elif OP == "masked":
        y = tl.load(a_ptr + index, mask=index < 10, other=-2.5)
    elif OP == "where":
        y = tl.where(index < 10, a, b)
    elif OP == "maximum":
        y = tl.maximum(a, b)
    elif OP == "minimum":
        y = tl.minimum(a, b)
    elif OP == "rtne":
        y = a.to(tl.bfloat16, fp_downcast_rounding="rtne")
    elif OP == "rtz":
        y = a.to(tl.bfloat16, fp_downcast_rounding="rtz")
    elif OP == "integer":
        y = a.to(tl.int32)
    elif OP == "bits":
        y = a.to(tl.int16, bitcast=True)
    elif OP == "sum":
        y = tl.sum(a, 0)
    elif OP == "max":
        y = tl.max(a, 0)
    elif OP == "argmax":
        y = tl.argmax(a, 0)
    elif OP == "cumsum":
        y = tl.cumsum(a, 0)
    else:
        tl.static_assert(OP == "copy")
        y = a
    tl.store(y_ptr + index, y + tl.zeros((WIDTH,), y.dtype) if OP in ("sum", "max", "argmax") else y)


@triton.jit
def product(a_ptr, b_ptr, y_ptr, N: tl.constexpr):
    """``y = a @ b`` of ``[N, N]``."""
    index = tl.arange(0, N)
    at = index[:, None] * N + index[None, :]
    tl.store(y_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def _numbers(seed: int = 0) -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _with_nan(seed: int = 0) -> torch.Tensor:
    values = _numbers(seed)
    values[seed::7] = NAN
    return values


def _ties() -> torch.Tensor:
    """float32 exactly between two bfloat16, with an even one above or below; overflow; a NaN with low bits only."""
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800001, -0x7FFFFF, 0x3FFF8000, 0])
    return bits.to(torch.int32).view(torch.float32).repeat(WIDTH // 8)


def _truncated(values: torch.Tensor) -> torch.Tensor:
    whole = (values.view(torch.int32) & -65536).view(torch.float32)
    return torch.where(values.isnan(), values, whole).bfloat16()


A, B = _numbers(1), _numbers(2)
Reference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

OPERATIONS: dict[str, tuple[torch.Tensor, torch.Tensor, Reference]] = {
    "add": (A, B, lambda a, b: a + b),
    "subtract": (A, B, lambda a, b: a - b),
    "multiply": (A, B, lambda a, b: a * b),
    "divide": (A, B, lambda a, b: a / b),
    "fma": (A, B, lambda a, b: (a.double() * b.double() + a.double()).bfloat16()),
    "negate": (A, B, lambda a, b: -a),
    "less": (A, B, lambda a, b: (a < b).float()),
    "equal": (_with_nan(), B, lambda a, b: (~a.isnan()).float()),
    "constant": (A, B, lambda a, b: a * 1.5),
    "maximum": (_with_nan(1), _with_nan(2), torch.fmax),
    "minimum": (_with_nan(1), _with_nan(2), torch.fmin),
    "copy": (_ties(), B, lambda a, b: a.bfloat16()),  # a cast on the way to memory
    "rtne": (_ties(), B, lambda a, b: a.bfloat16()),
    "rtz": (_ties(), B, lambda a, b: _truncated(a)),
    "sum": (torch.ones(WIDTH).bfloat16() * 5, B, lambda a, b: a.float().sum().bfloat16().expand(WIDTH)),
    "cumsum": (A, B, lambda a, b: a.float().cumsum(0).bfloat16()),
}
"""Operation → operands and reference; all of these are wrong, or fail, in an interpreter without repairs."""

RIGHT: dict[str, tuple[torch.Tensor, torch.Tensor, Reference]] = {
    "abs": (A, B, lambda a, b: a.abs()),
    "argmax": (-A.abs(), B, lambda a, b: a.float().argmax().int().expand(WIDTH)),
    "max": (-A.abs(), B, lambda a, b: a.float().max().expand(WIDTH)),
    "integer": (A * 100, B, lambda a, b: a.int()),
    "masked": (A, B, lambda a, b: torch.where(torch.arange(WIDTH) < 10, a, -2.5)),
    "where": (A, B, lambda a, b: torch.where(torch.arange(WIDTH) < 10, a, b)),
    "bits": (A, B, lambda a, b: a.view(torch.int16)),
}
"""What some version computes rightly without repairs, and what must stay so."""


def _agrees(name: str) -> bool:
    """Whether the interpreter, as it is now, computes operation ``name`` to the bit."""
    a, b, reference = {**OPERATIONS, **RIGHT}[name]
    want = reference(a, b)
    got = torch.full((WIDTH,), 7).to(want.dtype)
    operate[(1,)](a, b, got, WIDTH=WIDTH, OP=name)
    return bool(((got == want) | (got.isnan() & want.isnan())).all())


def _product_agrees() -> bool:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    got = torch.empty(16, 16)
    product[(1,)](a, b, got, N=16)
    return bool(torch.allclose(got, a.float() @ b.float(), rtol=1e-5, atol=1e-5))


@pytest.fixture(autouse=True)
def repaired() -> None:
    from llmcore_triton.interpreter import repair

    repair()


@pytest.mark.parametrize("name", [*OPERATIONS, *RIGHT])
def test_operation_is_right(name: str) -> None:
    assert _agrees(name)


def test_dot_is_right() -> None:
    assert _product_agrees()


def test_operations_of_float32_and_float16_are_as_they_were() -> None:
    for dtype in (torch.float32, torch.float16):
        a, b = A.to(dtype), B.to(dtype)
        got = torch.empty(WIDTH, dtype=dtype)
        operate[(1,)](a, b, got, WIDTH=WIDTH, OP="multiply")
        assert torch.equal(got, a * b)


def test_it_is_our_repair_that_makes_them_right() -> None:
    """Without it each of them is wrong or fails: should Triton mend one, its repair can go."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert not set(found["right"]) & set(OPERATIONS) and not found["dot"]


def test_importing_the_configs_repairs() -> None:
    """What every kernel imports."""
    code = (
        "import llmcore_triton.configs; from triton.runtime import interpreter as i; print(i.ReduceOps.sum.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "llmcore_triton.interpreter"


def test_listing_the_plugin_imports_neither_triton_nor_torch() -> None:
    code = "import sys, llmcore_triton.plugin as p; p.llmcore_backends(); print({'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _main() -> None:
    right = []
    for name in (*OPERATIONS, *RIGHT):
        with contextlib.suppress(triton.runtime.errors.InterpreterError):
            right += [name] if _agrees(name) else []
    print(json.dumps({"right": sorted(right), "dot": _product_agrees()}))


if __name__ == "__main__":
    _main()
