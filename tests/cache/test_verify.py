"""Damage to the pool's books is seen, and the page named."""

import pytest

from llmcore.cache.pages import PagePool
from llmcore.cache.prefix import PrefixIndex
from llmcore.errors import InternalError


def hold_too_often(pool, pages):
    pool.references[pages[0]] += 1


def hold_too_seldom(pool, pages):
    pool.references[pages[0]] = 0


def free_what_is_held(pool, pages):
    pool._free.append(pages[0])


def free_twice(pool, pages):
    pool._free.append(pool._free[0])


def lose_a_free_page(pool, pages):
    pool._free.remove(5)


def forget_an_idle_page(pool, pages):
    pool.prefixes.forget(2)


def swap_contents(pool, pages):
    pool.prefixes._digests[pages[0]] = b"other"


@pytest.mark.parametrize(
    ("damage", "page"),
    [
        (hold_too_often, 0),
        (hold_too_seldom, 0),
        (free_what_is_held, 0),
        (free_twice, 7),
        (lose_a_free_page, 5),
        (forget_an_idle_page, 2),
        (swap_contents, 0),
    ],
)
def test_damage_is_seen(damage, page):
    index = PrefixIndex(4)
    pool = PagePool(8, index)
    pages, idle = pool.allocate(2), pool.allocate(1)
    index.enter(b"first", pages[0])
    index.enter(b"idle", idle[0])
    pool.release(idle)
    pool.verify([pages])
    damage(pool, pages)
    with pytest.raises(InternalError, match=rf"\bpage {page}\b"):
        pool.verify([pages])


def test_a_holder_that_nobody_counts_is_seen():
    pool = PagePool(4)
    pages = pool.allocate(1)
    for holders in ([], [pages, pages]):
        with pytest.raises(InternalError, match="page 0 has"):
            pool.verify(holders)
