"""What the runner writes for a step, without a model."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.engine.runner import Runner, Sizes, Work
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


def runner() -> Any:
    """The part of a runner that writes inputs."""
    inputs = StepInputs(input_shapes(SIZES.limits.blocks), SIZES.limits.sizes)
    words = {name: array.data for name, array in inputs.arrays.items()}
    return SimpleNamespace(inputs=inputs, sizes=SIZES, _words=words, _tables=[[] for _ in range(SIZES.seqs)])


@given(st.lists(st.lists(works, min_size=1, max_size=4), min_size=1, max_size=3))
def test_every_word_of_a_step(batches: list[list[Work]]) -> None:
    made = runner()
    for batch in batches:
        tokens, rows = Runner._fill(made, batch)
        found = {name: array.tolist() for name, array in made.inputs.arrays.items()}
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
        Runner._fill(runner(), [([1], 16, [3, 4, 5, 6], [0])])
