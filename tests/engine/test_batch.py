"""What is written for a step, without a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.engine.batch import BatchWriter, Work
from llmcore.engine.sizes import Sizes
from llmcore.graph.inputs import StepInputs, input_shapes

SIZES = Sizes(tokens=40, seqs=4, rows=40, context=64, page_size=4, pages=99)
works = st.builds(
    lambda start, count, wanted, random: (
        [random.randrange(1000) for _ in range(count)],
        start,
        random.sample(range(99), -(-(start + count) // SIZES.page_size)),
        sorted(random.sample(range(count), min(wanted, count))),
    ),
    st.integers(0, 50),
    st.integers(1, 10),
    st.integers(0, 3),
    st.randoms(),
)


def writer() -> tuple[BatchWriter, StepInputs]:
    inputs = StepInputs(input_shapes(SIZES.limits.blocks), SIZES.limits.sizes)
    return BatchWriter(inputs, SIZES.page_size, SIZES.seqs), inputs


@given(st.lists(st.lists(works, min_size=1, max_size=4), min_size=1, max_size=3))
def test_every_word_of_a_step(batches: list[list[Work]]) -> None:
    made, inputs = writer()
    for batch in batches:
        tokens, rows = made.fill(batch)
        found = {name: array.tolist() for name, array in inputs.arrays.items()}
        lengths = [len(ids) for ids, *_ in batch]
        firsts = [sum(lengths[:s]) for s in range(len(batch))]
        places = [(start + at, pages) for ids, start, pages, _ in batch for at in range(len(ids))]
        assert tokens == sum(lengths)
        assert found["token_ids"][:tokens] == [token for ids, *_ in batch for token in ids]
        assert found["positions"][:tokens] == [at for at, _ in places]
        assert found["slots"][:tokens] == [pages[at // 4] * 4 + at % 4 for at, pages in places]
        assert found["query_starts"][: len(batch)] == firsts
        assert found["query_lens"][: len(batch)] == lengths
        assert found["kv_lens"][: len(batch)] == [start + len(ids) for ids, start, _, _ in batch]
        wanted = [first + row for first, (*_, rows) in zip(firsts, batch, strict=True) for row in rows]
        assert found["rows"][:rows] == wanted
        for s, (_, _, pages, _) in enumerate(batch):
            assert found["block_tables"][s][: len(pages)] == pages


def test_a_position_without_a_page() -> None:
    with pytest.raises(IndexError):
        writer()[0].fill([([1], 16, [3, 4, 5, 6], [0])])


def test_who_writes_tables_says_so() -> None:
    """They are large and seldom change: an accelerator is sent them only then."""
    made, inputs = writer()
    batch: list[Work] = [([1], 0, [3], [0]), ([1], 0, [4], [0])]
    for pages, changed in (([3], True), ([3], False), ([3, 5], True), ([3, 5], False)):
        inputs.rare = False
        batch[0] = [1], 0, pages, [0]
        made.fill(batch)
        assert inputs.rare == changed
