"""How the strips of a weight are cut into chunks, and which chunk a thread takes next.

Chunks are of ``some`` strips, but for those at the end, which are of one: so threads come to the end together. A
*cut* is ``(some, long, across)``: so many chunks are long, of so many in all.
"""

from __future__ import annotations

from llmcore.native.abi import inlined

EACH = 3  # chunks that there should be for each thread


@inlined
def cut_up(strips, some, threads):
    """The cut of ``strips``, with a chunk's worth of single ones for each thread at the end."""
    long = max(0, strips - (some * threads if some > 1 else 0)) // some
    return some, long, long + strips - long * some


@inlined
def strips_before(cut, chunk):
    """Strips before the first one of a chunk: of all of them for the chunk behind the last."""
    some, long, _ = cut
    return min(chunk, long) * some + max(0, chunk - long)


@inlined
def claims_early(chunks, threads):
    """Whether a thread claims its next chunk before it begins with one, so that it can ask for the weights of both.

    Memory is then read while products are summed. But nobody should go without.
    """
    return chunks >= EACH * threads


@inlined
def next_strip(cut, strip, last, following, chunks):
    """The strip that a thread comes to after ``strip``, of a chunk that ends before ``last``; -1 for none."""
    if strip + 1 < last:
        return strip + 1
    return strips_before(cut, following % cut[2]) if following < chunks else -1
