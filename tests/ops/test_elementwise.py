"""The element-wise references against formulas in float64."""

from __future__ import annotations

import numpy as np
import torch

from llmcore import ops


def test_add() -> None:
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    np.testing.assert_array_equal(ops.get("add").reference(a, b).numpy(), a.numpy() + b.numpy())


def test_swiglu_is_silu_of_the_gate_times_up() -> None:
    gate = torch.tensor([[-200.0, -5.0, 0.0, 5.0, 200.0], [-1.0, 1.0, 3.0, -3.0, 0.5]])
    up = torch.randn(2, 5)
    exact = gate.double().numpy()
    with np.errstate(over="ignore"):
        want = exact / (1 + np.exp(-exact)) * up.double().numpy()
    np.testing.assert_allclose(ops.get("swiglu").reference(gate, up).numpy(), want, rtol=1e-6, atol=1e-30)


def test_swiglu_is_the_activation_of_transformers_mlp() -> None:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    mlp = LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2))
    x = torch.randn(3, 16)
    hidden = ops.get("gate_up_swiglu").reference(x, mlp.gate_proj.weight, mlp.up_proj.weight)
    torch.testing.assert_close(ops.get("linear").reference(hidden, mlp.down_proj.weight), mlp(x))


def test_gather_takes_rows_in_any_order() -> None:
    x = torch.randn(4, 3)
    rows = torch.tensor([3, 0, 3], dtype=torch.int32)
    assert torch.equal(ops.get("gather").reference(x, rows), torch.stack((x[3], x[0], x[3])))
