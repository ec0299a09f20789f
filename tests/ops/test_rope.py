"""RoPE's reference against transformers (halves) and against complex multiplication (neighbours)."""

from __future__ import annotations

import pytest
import torch

from llmcore import ops

rope = ops.get("rope").reference


def tables(positions: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(positions).float(), 10000.0 ** -(torch.arange(pairs) / pairs))
    return angles.cos(), angles.sin()


def test_halves_turn_as_transformers_turns_them() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    heads, size, positions = 3, 16, torch.tensor([5, 0, 11, 6])
    x = torch.randn(4, heads * size)
    cos, sin = tables(12, size // 2)
    wide = [torch.cat((t, t), -1)[positions][None] for t in (cos, sin)]
    want, _ = apply_rotary_pos_emb(x.view(1, 4, heads, size).transpose(1, 2), torch.zeros(1, 1, 4, size), *wide)
    got = rope(x, positions.int(), cos, sin, head_dim=size, interleaved=False)
    torch.testing.assert_close(got, want.transpose(1, 2).reshape(4, -1))


def test_neighbours_turn_as_complex_numbers() -> None:
    heads, size, positions = 2, 10, torch.tensor([3, 1, 3])
    x = torch.randn(3, heads * size)
    cos, sin = tables(4, size // 2)
    plane = torch.view_as_complex(x.view(3, heads, size // 2, 2))
    want = torch.view_as_real(plane * torch.complex(cos, sin)[positions][:, None]).reshape(3, -1)
    torch.testing.assert_close(rope(x, positions.int(), cos, sin, head_dim=size, interleaved=True), want)


@pytest.mark.parametrize("interleaved", [False, True])
def test_partial_rotation_leaves_the_rest_of_each_head(interleaved: bool) -> None:
    heads, size, pairs = 2, 12, 2
    x, positions = torch.randn(3, heads * size), torch.tensor([1, 2, 7], dtype=torch.int32)
    cos, sin = tables(8, pairs)
    got = rope(x, positions, cos, sin, head_dim=size, interleaved=interleaved).view(3, heads, size)
    given = x.view(3, heads, size)
    assert torch.equal(got[..., 2 * pairs :], given[..., 2 * pairs :])
    turned = given[..., : 2 * pairs].reshape(3, -1)
    want = rope(turned, positions, cos, sin, head_dim=2 * pairs, interleaved=interleaved)
    torch.testing.assert_close(got[..., : 2 * pairs].reshape(3, -1), want)


def test_position_zero_turns_nothing() -> None:
    x = torch.randn(2, 32)
    zero = torch.zeros(2, dtype=torch.int32)
    assert torch.equal(rope(x, zero, *tables(1, 8), head_dim=16, interleaved=True), x)
