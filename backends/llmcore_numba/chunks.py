"""How the work of an op is divided: into runs, each of which one thread reads from its beginning to its end.

Memory is read fastest in order, and each thread by itself: the processor asks ahead for what lies behind what was read,
and begins anew wherever a thread goes on elsewhere. So the *units* of an op, strips of weights in the order of memory,
are divided into as many *regions* as there are threads, six at most, and a thread that has come to the end of its own
goes on with what is left of the next one's. From a region it takes a run: half of what is left of it, or less where
threads share it, then as much of the rest, and so on. Long runs are read undisturbed, and short ones at the end let the
threads come to it together: guided self-scheduling (Polychronopoulos and Kuck 1987), for every region. Nothing is lost
where a thread is late, or never comes. A thread leaves an op only when it has found the end of every region.
"""

from __future__ import annotations

from llmcore.native.abi import fetch_add, inlined, load_i64

REGIONS = 6  # at most: the kernel's own counters, but for the first
COUNTER = 16  # where the first one's is, in bytes from the row's counters
EACH = 3  # units that there should be for each thread where a thread claims early


@inlined
def claims_early(rows, units, threads):
    """Whether a thread claims its next run before the last unit of the one that it has, to ask for its weights.

    Not for one row, where memory takes all of the time in any case, and not where somebody would go without.
    """
    return rows > 1 and units >= EACH * threads


@inlined
def next_run(operands, thread, threads, units, past):
    """Claims a run: ``(first, behind the last, past)``; it is empty when nothing is left.

    ``past`` is how many regions this thread has seen the end of: what the last call gave, 0 for the first.
    """
    regions = max(1, min(threads, REGIONS))
    parts = 2 * ((threads + regions - 1) // regions)  # a run is such a part of what is left
    while past < regions:
        region = (thread + past) % regions
        first, end = units * region // regions, units * (region + 1) // regions
        runs = fetch_add(load_i64(operands) + COUNTER + region * 8, 1)
        while runs > 0 and first < end:
            first += (end - first + parts - 1) // parts
            runs -= 1
        if first < end:
            return first, first + (end - first + parts - 1) // parts, past
        past += 1
    return 0, 0, past
