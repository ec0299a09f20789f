"""Paged attention against torch's attention over whole sequences, in every ragged batch of the conformance cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from llmcore import ops
from llmcore.ops.cases import RAGGED, Ragged, paged_slots

HEADS, KV_HEADS, SIZE = 6, 2, 8


def slots_of(table: torch.Tensor, length: int, page_size: int) -> torch.Tensor:
    token = torch.arange(length)
    return table[token // page_size] * page_size + token % page_size


@pytest.mark.parametrize("batch", [batch for _, batch in RAGGED], ids=[note for note, _ in RAGGED])
def test_paged_attention_is_attention_over_each_sequence(batch: Ragged) -> None:
    dims = {"S": len(batch.query_lens), "B": batch.table_width}
    index = {name: torch.from_numpy(array) for name, array in batch(dims, np.random.default_rng(3)).items()}
    pages = int(index["block_tables"].max()) + 1 if index["block_tables"].numel() else 1
    keys, values = torch.randn(2, pages * batch.page_size, KV_HEADS * SIZE)
    kv = torch.full((pages, 2, batch.page_size, KV_HEADS, SIZE), float("nan"))
    tables = index["block_tables"].long()
    slots = [slots_of(*each, batch.page_size) for each in zip(tables, batch.kv_lens, strict=True)]
    for own in slots:
        write = {"head_dim": SIZE, "page_size": batch.page_size}
        ops.get("kv_write").reference(keys[own], values[own], own.int(), kv, **write)
    q = torch.randn(sum(batch.query_lens), HEADS * SIZE)
    got = ops.get("attention").reference(
        q, **index, kv=kv, head_dim=SIZE, kv_heads=KV_HEADS, page_size=batch.page_size, scale=0.3
    )
    start = 0
    for own, count in zip(slots, batch.query_lens, strict=True):
        torch.testing.assert_close(got[start : start + count], dense(q[start : start + count], keys[own], values[own]))
        start += count


def dense(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The last rows of torch's causal attention over all tokens, every query head with its key head repeated."""
    if not len(q):
        return q
    whole = torch.cat((torch.zeros(len(keys) - len(q), q.shape[1]), q))  # earlier queries do not matter
    queries = whole.view(len(keys), HEADS, SIZE).transpose(0, 1)
    k, v = (
        t.view(len(keys), KV_HEADS, SIZE).transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0)
        for t in (keys, values)
    )
    out = scaled_dot_product_attention(queries[None], k[None], v[None], is_causal=True, scale=0.3)[0]
    return out.transpose(0, 1).reshape(len(keys), -1)[len(keys) - len(q) :]


def test_kv_write_puts_every_token_in_its_slot_and_nothing_else() -> None:
    k, v = torch.randn(3, 2 * SIZE), torch.randn(3, 2 * SIZE)
    kv = torch.zeros(4, 2, 5, 2, SIZE)
    slots = torch.tensor([7, 19, 0], dtype=torch.int32)
    ops.get("kv_write").reference(k, v, slots, kv, head_dim=SIZE, page_size=5)
    places = [(1, 2), (3, 4), (0, 0)]  # page, offset
    for token, (page, offset) in enumerate(places):
        assert torch.equal(kv[page, 0, offset].flatten(), k[token])
        assert torch.equal(kv[page, 1, offset].flatten(), v[token])
        kv[page, :, offset] = 0
    assert not kv.any()


def test_slots_of_the_cases_fill_pages_from_their_beginning() -> None:
    slots = np.sort(paged_slots(11, 4, np.random.default_rng(0)))
    pages, counts = np.unique(slots // 4, return_counts=True)
    assert 0 not in pages
    assert sorted(counts) == [3, 4, 4]
    assert all(
        (slots[slots // 4 == page] % 4 == np.arange(count)).all() for page, count in zip(pages, counts, strict=True)
    )
