"""Which chunk a thread takes next, known before it begins with one: so that its weights can be asked for in time."""

from __future__ import annotations

from llmcore.native.abi import inlined

EACH = 3  # chunks that there should be for each thread


@inlined
def claims_early(chunks, threads):
    """Whether a thread claims its next chunk before it begins with one, so that it can ask for the weights of both.

    Memory is then read while products are summed: 8 tokens take 0.8 of the time. But nobody should go without.
    """
    return chunks >= EACH * threads


@inlined
def next_strip(strip, last, following, chunks, across, some):
    """The strip that a thread comes to after ``strip``, of a chunk that ends before ``last``; -1 for none."""
    if strip + 1 < last:
        return strip + 1
    return following % across * some if following < chunks else -1
