"""The prefix cache: equal beginnings find each other, nothing else does, and what is needed goes last."""

from hypothesis import given
from hypothesis import strategies as st

from llmcore.cache.pages import PagePool
from llmcore.cache.prefix import PrefixIndex


def digests(tokens, count=None, size=4):
    made: list[bytes] = []
    PrefixIndex(size).extend(made, tokens, len(tokens) // size if count is None else count)
    return made


def filled(pages=6, size=4):
    """A pool and the pages of two full ones of tokens 0 … 7, entered and let go."""
    index = PrefixIndex(size)
    pool = PagePool(pages, index)
    held = pool.allocate(2)
    for digest, page in zip(digests(range(8)), held, strict=True):
        index.enter(digest, page)
    pool.release(reversed(held))
    return pool, index, held


@given(st.lists(st.integers(0, 3), max_size=16), st.lists(st.integers(0, 3), max_size=16))
def test_digests_are_equal_where_all_tokens_so_far_are(a, b):
    for i, (mine, other) in enumerate(zip(digests(a), digests(b), strict=False)):
        assert (mine == other) == (a[: 4 * i + 4] == b[: 4 * i + 4])


def test_digests_are_made_page_by_page_as_at_once():
    made: list[bytes] = []
    for count in (1, 1, 3):
        PrefixIndex(2).extend(made, [5, 6, 7, 8, 9, 1, 2], count)
    assert made == digests([5, 6, 7, 8, 9, 1], size=2)


def test_a_salt_parts_whoever_does_not_share_it():
    def salted(salt, tokens=range(8)):
        made: list[bytes] = []
        PrefixIndex(4).extend(made, tokens, 1)
        unsalted, made = made, []
        PrefixIndex(4).extend(made, tokens, 2, salt)
        return made, unsalted

    assert salted("a")[0] == salted("a")[0] != salted("b")[0]
    assert not set(salted("a")[0]) & set(digests(range(8)))
    assert salted("")[0] == digests(range(8))
    first = digests(range(65, 69))  # nor does a salt that spells a page's tokens stand for that page
    spelled = b"".join(i.to_bytes(8, "little") for i in range(65, 69)).decode()
    assert not set(salted(spelled)[0]) & set(digests([*range(65, 69), *range(8)]))
    assert first != salted("\ud800")[0][:1]


def test_the_longest_beginning_is_found():
    _, index, held = filled()
    assert index.find(digests(range(12))) == held
    assert index.find(digests([*range(4), 9, 9, 9, 9])) == held[:1]
    assert index.find(digests([9, *range(1, 8)])) == []


def test_idle_pages_are_free_and_can_be_shared():
    pool, index, held = filled()
    assert pool.free == 6
    pool.share(held)
    assert pool.free == 4 and pool.references[held[0]] == 1
    pool.verify([held])
    pool.release(reversed(held))
    assert index.find(digests(range(8))) == held


def test_pages_of_unknown_content_go_before_idle_ones_and_ends_before_beginnings():
    pool, index, held = filled()
    taken = pool.allocate(4)
    assert not set(taken) & set(held)
    assert pool.allocate(1) == [held[1]]
    assert index.find(digests(range(8))) == held[:1]
    assert pool.allocate(1) == [held[0]]
    assert index.find(digests(range(8))) == [] and not pool.can_allocate(1)


def test_the_longest_unused_goes_first():
    index = PrefixIndex(1)
    pool = PagePool(3, index)
    pages = pool.allocate(3)
    for page in pages:
        index.enter(digests([page], size=1)[0], page)
        pool.release([page])
    pool.share(pages[:1])
    pool.release(pages[:1])
    assert [pool.allocate(1)[0] for _ in pages] == [pages[1], pages[2], pages[0]]


def test_the_first_of_two_equal_pages_is_found():
    pool, index, held = filled()
    (other,) = pool.allocate(1)
    index.enter(digests(range(4))[0], other)
    assert index.find(digests(range(4))) == held[:1] and other not in index
    pool.release([other])
    pool.verify([])


def test_what_is_forgotten_is_found_no_more():
    pool, index, held = filled()
    pool.share(held[:1])
    pool.forget(held)
    assert index.find(digests(range(8))) == [] and pool.free == 5
    pool.verify([held[:1]])
    pool.release(held[:1])
    pool.verify([])


@given(st.lists(st.tuples(st.sampled_from(["admit", "release", "forget"]), st.integers(0, 9)), max_size=60))
def test_every_history_leaves_a_pool_that_agrees(history):
    """Sequences of up to five pages over two kinds of tokens, as a scheduler admits them and lets them go."""
    index = PrefixIndex(1)
    pool = PagePool(8, index)
    held: list[list[int]] = []
    content: dict[int, bytes] = {}
    for action, n in history:
        if action == "admit":
            wanted = digests([n >> i & 1 for i in range(1 + n % 5)], size=1)
            found = index.find(wanted)
            assert [content[page] for page in found] == wanted[: len(found)]
            idle = sum(pool.references[page] == 0 for page in found)
            if pool.can_allocate(len(wanted) - len(found) + idle):
                pool.share(found)
                pages = [*found, *pool.allocate(len(wanted) - len(found))]
                for digest, page in zip(wanted[len(found) :], pages[len(found) :], strict=True):
                    content[page] = digest
                    index.enter(digest, page)
                held.append(pages)
        elif held:
            pages = held.pop(n % len(held))
            if action == "forget":
                pool.forget(pages)
            pool.release(reversed(pages))
        pool.verify(held)
