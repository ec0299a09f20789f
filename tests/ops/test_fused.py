"""What each fused op means, against formulas that know nothing of its parts."""

from __future__ import annotations

import numpy as np
import torch

from llmcore import ops
from llmcore.ops import Eager


def test_add_rms_norm() -> None:
    a, b, weight = torch.randn(3, 16), torch.randn(3, 16), torch.randn(16)
    total, y = ops.get("add_rms_norm").reference(a, b, weight, eps=1e-5)
    exact = (a + b).double().numpy()
    np.testing.assert_allclose(total.numpy(), exact, rtol=1e-6, atol=1e-7)
    norm = np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y.numpy(), exact / norm * weight.numpy(), rtol=1e-5, atol=1e-6)


def test_linear_add() -> None:
    x, residual, weight, bias = torch.randn(3, 8), torch.randn(3, 5), torch.randn(5, 8), torch.randn(5)
    want = np.einsum("mk,nk->mn", x.double(), weight.double()) + residual.numpy()
    linear_add = ops.get("linear_add").reference
    np.testing.assert_allclose(linear_add(x, residual, weight).numpy(), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(linear_add(x, residual, weight, bias).numpy(), want + bias.numpy(), rtol=1e-5, atol=1e-6)


def test_classifier_argmax() -> None:
    x, weight = torch.randn(6, 8), torch.randn(40, 8)
    scores = np.einsum("mk,nk->mn", x.double(), weight.double())
    assert ops.get("classifier_argmax").reference(x, weight).tolist() == scores.argmax(-1).tolist()


def test_qkv_rope_kv_write_is_the_beginning_of_transformers_attention() -> None:
    """With head norms and without biases, as in Qwen3: queries, and keys and values in the cache."""
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, apply_rotary_pos_emb

    config = Qwen3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    layer = Qwen3Attention(config, 0).requires_grad_(False)
    layer.q_norm.weight.data, layer.k_norm.weight.data = torch.rand(2, 16)
    x, positions = torch.randn(5, 32), torch.tensor([4, 5, 0, 1, 2])
    angles = torch.outer(torch.arange(6.0), 10000.0 ** -(torch.arange(8) / 8))
    cos, sin = angles.cos(), angles.sin()

    def heads(linear: torch.nn.Linear) -> torch.Tensor:
        return linear(x).view(1, 5, -1, 16)

    want_q, want_k = apply_rotary_pos_emb(
        layer.q_norm(heads(layer.q_proj)).transpose(1, 2),
        layer.k_norm(heads(layer.k_proj)).transpose(1, 2),
        *(torch.cat((t, t), -1)[positions][None] for t in (cos, sin)),
    )
    kv = torch.zeros(3, 2, 4, 2, 16)
    slots = torch.tensor([4, 5, 8, 9, 10], dtype=torch.int32)
    got = ops.get("qkv_rope_kv_write").decompose(
        Eager(),
        x,
        positions.int(),
        slots,
        wq=layer.q_proj.weight,
        wk=layer.k_proj.weight,
        wv=layer.v_proj.weight,
        nq=layer.q_norm.weight,
        nk=layer.k_norm.weight,
        cos=cos,
        sin=sin,
        kv=kv,
        head_dim=16,
        page_size=4,
        interleaved=False,
        eps=config.rms_norm_eps,
    )
    torch.testing.assert_close(got, want_q.transpose(1, 2).reshape(5, -1))
    flat = kv.transpose(1, 2).reshape(12, 2, 2, 16)[slots.long()]  # [T, key / value, G, head_dim]
    torch.testing.assert_close(flat[:, 0], want_k[0].transpose(0, 1))
    torch.testing.assert_close(flat[:, 1], heads(layer.v_proj)[0])
