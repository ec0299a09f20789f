"""The page pool: what is taken is held, what is released is free again, whoever else holds it."""

from hypothesis import given
from hypothesis import strategies as st

from llmcore.cache.pages import PagePool


@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 9)), max_size=60))
def test_pages_are_conserved_under_any_history(history):
    pool = PagePool(8)
    held: list[list[int]] = []
    for action, n in history:
        if action == "allocate" and pool.can_allocate(n):
            pages = pool.allocate(n)
            assert len(set(pages)) == n
            assert not set(pages) & {page for group in held for page in group}
            held.append(pages)
        elif action == "share" and held:
            pool.share(held[n % len(held)])
            held.append(held[n % len(held)])
        elif action == "release" and held:
            pool.release(held.pop(n % len(held)))
        in_use = {page for group in held for page in group}
        assert pool.free == 8 - len(in_use)
        assert pool.references == [sum(page in group for group in held) for page in range(8)]


def test_can_allocate_counts_free_pages():
    pool = PagePool(3)
    assert pool.can_allocate(3)
    pool.allocate(2)
    assert not pool.can_allocate(2)
