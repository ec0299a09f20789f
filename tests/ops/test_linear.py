"""Linear and embedding references against torch's own layers."""

from __future__ import annotations

import torch
from torch.nn import functional

from llmcore import ops


def test_linear() -> None:
    x, weight, bias = torch.randn(5, 24), torch.randn(7, 24), torch.randn(7)
    linear = ops.get("linear").reference
    torch.testing.assert_close(linear(x, weight, bias), functional.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight), functional.linear(x, weight))


def test_linear_computes_in_float32() -> None:
    x, weight = torch.randn(3, 512), torch.randn(7, 512)
    half = ops.get("linear").reference(x.bfloat16(), weight.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, x.bfloat16().double().mm(weight.bfloat16().double().T).float())


def test_embedding() -> None:
    table, ids = torch.randn(9, 6).half(), torch.tensor([8, 0, 3, 3], dtype=torch.int32)
    got = ops.get("embedding").reference(ids, table)
    assert got.dtype == torch.float32
    assert torch.equal(got, functional.embedding(ids, table.float()))
