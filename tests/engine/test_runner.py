"""What the runner writes for a step, without a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.engine.runner import slots_of


@given(st.integers(1, 20), st.integers(0, 60), st.integers(1, 50), st.randoms())
def test_every_position_has_its_place_in_its_page(page_size, start, count, random):
    pages = random.sample(range(1000), -(-(start + count) // page_size))
    found = slots_of(pages, start, start + count, page_size)
    assert found == [pages[at // page_size] * page_size + at % page_size for at in range(start, start + count)]


def test_a_position_without_a_page():
    with pytest.raises(IndexError):
        slots_of([3], 16, 17, 16)
