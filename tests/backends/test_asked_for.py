"""What the tiles of a strip ask for: together the next strip, each line once, each tile as much as another."""

from __future__ import annotations

import pytest

from llmcore_numba.integer import LINE
from llmcore_numba.integer_linear import TOKENS, asked_for
from llmcore_numba.packing import COLUMNS, PACKINGS

NEXT = 1 << 20


@pytest.mark.parametrize("inner", [32, 576, 1536])
@pytest.mark.parametrize("tokens", [2, TOKENS, TOKENS + 1, 3 * TOKENS, 128])
@pytest.mark.parametrize("name", sorted({packing.name for packing in PACKINGS.values()}))
def test_shares(name, tokens, inner):
    nbytes = next(packing.nbytes for packing in PACKINGS.values() if packing.name == name)
    groups, begin = inner // COLUMNS, 128
    shares = [
        asked_for.py_func(NEXT, nbytes, groups, token, begin, begin + tokens)
        for token in range(begin, begin + tokens, TOKENS)
    ]
    lines = [ask + LINE * i for ask, count in shares for i in range(count)]
    assert lines == list(range(NEXT, NEXT + groups * nbytes, LINE))
    counts = [count for _, count in shares]
    assert max(counts) - min(counts) <= 1


def test_nothing_follows():
    assert asked_for.py_func(0, 640, 18, 0, 0, 16) == (0, 0)
