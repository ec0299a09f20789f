"""The scheduler: budgets hold, nobody is lost, pages come back, however small the pool."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.cache.pages import PagePool
from llmcore.engine.request import Request
from llmcore.engine.sampling_params import SamplingParams
from llmcore.engine.scheduler import Scheduler
from llmcore.errors import RequestError


def scheduler(pages=8, page_size=4, max_seqs=4, max_tokens=8, max_context=32):
    return Scheduler(PagePool(pages), page_size, max_seqs, max_tokens, max_context)


def request(i, prompt, answer=1):
    return Request(i, tuple(range(prompt)), SamplingParams(max_tokens=answer), seed=0)


def advance(schedule, plan):
    """What the engine does after a step: the work is in the cache, and a sequence that ended gets a token or leaves."""
    done = []
    for running, count, complete in plan:
        running.computed += count
        assert complete == (running.pending == 0)
        if complete:
            running.tokens.append(7)
            if len(running.generated) == running.params.max_tokens:
                schedule.finish(running)
                done.append(running.id)
    return done


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=12),
    st.integers(8, 20),
    st.integers(1, 9),
)
def test_every_request_finishes_within_all_bounds(shapes, pages, budget):
    schedule = scheduler(pages=pages, max_tokens=budget)
    for i, (prompt, answer) in enumerate(shapes):
        schedule.add(request(i, prompt, answer))
    finished = []
    for _ in range(5000):
        plan = schedule.schedule()
        assert sum(count for _, count, _ in plan) <= budget
        assert len(plan) <= schedule.max_seqs
        for running, count, _ in plan:
            assert 1 <= count <= running.pending
            assert len(running.pages) * schedule.page_size >= running.computed + count
        held = [page for r in schedule.running for page in r.pages]
        assert len(held) == len(set(held)) == pages - schedule.pool.free
        finished += advance(schedule, plan)
        if not schedule.busy:
            break
    assert sorted(finished) == list(range(len(shapes)))
    assert schedule.pool.free == pages


def test_running_sequences_come_before_waiting_ones_and_long_prompts_in_chunks():
    schedule = scheduler(max_tokens=8)
    schedule.add(request(0, 3, answer=5))
    advance(schedule, schedule.schedule())
    schedule.add(request(1, 20))
    assert [(r.id, count, complete) for r, count, complete in schedule.schedule()] == [(0, 1, True), (1, 7, False)]


def test_a_prompt_waits_until_all_of_it_fits():
    schedule = scheduler(pages=4, page_size=4, max_context=16)
    first, second = request(0, 8, answer=3), request(1, 7, answer=2)
    schedule.add(first)
    advance(schedule, schedule.schedule())  # 9 tokens: the next step takes a third page
    schedule.add(second)
    advance(schedule, schedule.schedule())
    assert schedule.running == [first]  # the second needs two pages, and only one is free
    advance(schedule, schedule.schedule())  # the first has its answer
    assert [item[0] for item in schedule.schedule()] == [second]


def test_preemption_frees_the_victim():
    schedule = scheduler(pages=4, page_size=4, max_tokens=16, max_context=16)
    first, second = request(0, 8, answer=8), request(1, 4, answer=8)
    for each in (first, second):
        schedule.add(each)
    advance(schedule, schedule.schedule())
    plan = schedule.schedule()  # each needs one more page and one is left
    assert [item[0] for item in plan] == [first]
    assert (second.computed, second.pages) == (0, [])
    assert list(schedule.waiting) == [second]


def test_a_prompt_that_can_never_run_is_refused():
    with pytest.raises(RequestError, match="40 tokens") as error:
        scheduler().add(request(0, 40))
    assert error.value.field == "prompt"
    with pytest.raises(RequestError):
        scheduler(pages=2).add(request(0, 8))  # the pool is smaller than the context


def test_finishing_a_waiting_request_takes_it_out():
    schedule = scheduler()
    waiting = request(0, 3)
    schedule.add(waiting)
    schedule.finish(waiting)
    assert not schedule.busy
