"""The norm's reference against transformers' and against the formula in float64."""

from __future__ import annotations

import pytest
import torch

from llmcore import ops

rms_norm = ops.get("rms_norm").reference


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 0.5])
def test_hidden_state_is_normalised_as_transformers_does(eps: float) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    layer = LlamaRMSNorm(48, eps=eps)
    layer.weight.data = torch.randn(48)
    x = torch.randn(5, 48) * torch.tensor([1e-4, 1e-2, 1.0, 10.0, 1e4])[:, None]
    torch.testing.assert_close(rms_norm(x, layer.weight.data, eps=eps), layer(x).detach())


def test_heads_are_normalised_one_by_one() -> None:
    """As Qwen3 does: the weight has the size of a head."""
    x, weight = torch.randn(3, 4 * 16), torch.randn(16)
    got = rms_norm(x, weight, eps=1e-6).view(3, 4, 16)
    for token in range(3):
        for head in range(4):
            values = x[token, 16 * head : 16 * head + 16].double()
            want = values / (values.pow(2).mean() + 1e-6).sqrt() * weight.double()
            torch.testing.assert_close(got[token, head].double(), want, rtol=1e-6, atol=1e-6)
