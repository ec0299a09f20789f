"""Sequences that begin alike share pages, and nobody can tell from their tokens."""

import dataclasses

import numpy as np
import pytest

from llmcore import LLM, EngineSettings, SamplingParams
from llmcore.errors import ConfigError, InternalError

GREEDY = SamplingParams(max_tokens=10, ignore_eos=True)
SIZES = EngineSettings(max_seqs=4, max_batch_tokens=64, page_size=4, max_context=48)
BEGINNING = [5, 9, 20, 31, 7, 7, 8, 100, 3]  # two pages and a token
PROMPTS = [[*BEGINNING, 40], BEGINNING, [*BEGINNING, 2, 19, 64, 5, 81], BEGINNING[:4], [9, *BEGINNING[1:]], BEGINNING]


@pytest.fixture
def load(tiny_model):
    loaded = []

    def make(family="llama3", backend="numba", **settings):
        sizes = dataclasses.replace(SIZES, **settings)
        loaded.append(LLM(str(tiny_model(family).path), backend=backend, compute="exact", engine=sizes, threads=2))
        return loaded[-1]

    yield make
    for llm in loaded:
        llm.engine.verify()
        llm.close()


def sampled():
    """Greedy and drawn answers, some with log-probabilities."""
    drawn = dataclasses.replace(GREEDY, temperature=1.1, top_p=0.95, seed=7, logprobs=3)
    return [drawn if i % 2 else dataclasses.replace(GREEDY, logprobs=2) for i in range(len(PROMPTS))]


def answers(llm, params=None):
    """Tokens and log-probabilities, to the bit; all requests at once, then each alone."""
    params = params or sampled()
    found = llm.generate(PROMPTS, params)
    found += [llm.generate([prompt], [each])[0] for prompt, each in zip(PROMPTS, params, strict=True)]
    return [(each.token_ids, each.logprobs) for each in found]


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"max_batch_tokens": 3}, {"kv_pages": 12, "max_batch_tokens": 5}, {"page_size": 1, "max_batch_tokens": 7}],
    ids=["plenty", "chunks", "preemption", "small pages"],
)
def test_the_same_bits_with_and_without(load, family, sizes):
    cached, plain = load(family, **sizes), load(family, prefix_cache=False, **sizes)
    assert answers(cached) == answers(plain)
    assert cached.engine.stats().prefix_hit > 0 == plain.engine.stats().prefix_hit
    assert cached.engine.counters.computed < plain.engine.counters.computed
    assert cached.engine.stats().pages_free == cached.runner.sizes.pages
    if "kv_pages" in sizes:
        assert cached.engine.scheduler.preemptions > 0


def test_torch_gives_the_same_tokens(load):
    tokens = [[ids for ids, _ in answers(load(backend="torch", prefix_cache=on), [GREEDY] * 6)] for on in (True, False)]
    assert tokens[0] == tokens[1]


def test_what_is_found_is_counted(load):
    llm = load()
    first, again = (llm.generate(PROMPTS[0], GREEDY)[0] for _ in range(2))
    assert (first.cached, again.cached) == (0, 8)
    stats = llm.engine.stats()
    assert (stats.prefix_queried, stats.prefix_hit) == (20, 8)
    assert stats.computed == 2 * (len(PROMPTS[0]) + 9) - 8


def test_one_token_is_always_computed(load):
    llm = load()
    for prompt in ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]):
        tokens = [llm.generate(prompt, GREEDY)[0] for _ in range(2)]
        assert tokens[0].token_ids == tokens[1].token_ids
        assert tokens[1].cached == len(prompt) - 4


def test_an_answer_is_found_when_the_conversation_goes_on(load):
    llm = load()
    first = llm.generate(BEGINNING, GREEDY)[0]
    second = llm.generate([*BEGINNING, *first.token_ids, 33], GREEDY)[0]
    assert second.cached == 16  # 9 + 9 tokens are computed: the last one of an answer never is


def test_requests_that_come_together_share_the_prompt(load):
    """Copies wait for the first of them, whatever its chunks, and hold the same pages then."""
    llm = load(max_batch_tokens=8, max_seqs=5)
    prompt = [3 * i for i in range(22)]
    requests = [llm.engine.add(prompt, dataclasses.replace(GREEDY, temperature=1.0, seed=i)) for i in range(4)]
    other = llm.engine.add([1, 2, 3], GREEDY)
    for _ in range(3):  # steps of the first one's prompt: the last of them has room for more
        llm.engine.step()
    assert [bool(request.pages) for request in (*requests, other)] == [True, False, False, False, True]
    while not all(request.generated_count for request in requests):
        llm.engine.step()
        llm.engine.verify()
    assert len({tuple(request.pages[:5]) for request in requests}) == 1
    assert [request.cached for request in requests] == [0, 20, 20, 20]
    for request in (*requests, other):
        llm.engine.abort(request)


def test_who_waits_for_a_page_goes_on_without_when_its_maker_leaves(load):
    llm = load(max_batch_tokens=8)
    prompt = [3 * i for i in range(30)]
    first, second = (llm.engine.add(prompt, GREEDY) for _ in range(2))
    llm.engine.step()
    llm.engine.abort(first)
    llm.engine.step()
    assert second.cached == 0 and second.computed == 8  # no logits have proven what was there


def test_a_preempted_request_finds_its_own_pages(load):
    llm = load(kv_pages=12, max_seqs=2)
    long, short = llm.engine.add([*range(20)], GREEDY), llm.engine.add([*range(50, 70)], GREEDY)
    while not llm.engine.scheduler.preemptions:
        llm.engine.step()
    assert llm.engine.scheduler.waiting == [short]
    before = llm.engine.counters.computed
    while not short.finish_reason:
        llm.engine.step()
    assert llm.engine.counters.computed - before < short.generated_count + long.generated_count + 20
    assert short.cached == 0  # its prompt was not there when it came


def test_idle_pages_are_no_obstacle(load):
    llm = load(kv_pages=12)
    for seed in range(12):
        llm.generate([(7 * seed + i) % 200 for i in range(30)], GREEDY)
        llm.engine.verify()
    assert llm.engine.stats().pages_free == 12
    ids = PROMPTS[2] * 3
    np.testing.assert_array_equal(llm.logits(ids), load(prefix_cache=False).logits(ids))
    llm.engine.verify()
    with pytest.raises(ConfigError, match=r"engine\.prefix_cache is 'on'"):
        EngineSettings(prefix_cache="on")


def test_scoring_takes_pages_that_nobody_finds_afterwards(load):
    llm = load(kv_pages=12)
    whole = llm.generate(BEGINNING, GREEDY)[0]
    llm.logits([11] * 48)  # all pages
    again = llm.generate(BEGINNING, GREEDY)[0]
    assert again.cached == 0 and again.token_ids == whole.token_ids


def test_damage_is_named(load):
    llm = load()
    request = llm.engine.add(BEGINNING, GREEDY)
    llm.engine.step()
    page = request.pages[0]
    llm.engine.scheduler.pool.references[page] += 1
    with pytest.raises(InternalError, match=f"page {page} has 1 holders, but counts 2"):
        llm.engine.verify()
    llm.engine.scheduler.pool.references[page] -= 1
    llm.engine.abort(request)


def test_a_salt_parts_tenants(load):
    llm = load()

    def asked(salt):
        request = llm.engine.add(BEGINNING, GREEDY, salt=salt)
        while not request.finish_reason:
            llm.engine.step()
        return request.cached, request.generated

    assert [asked(salt)[0] for salt in ("", "", "a", "b", "a", "")] == [0, 8, 0, 0, 8, 8]
    assert asked("c")[1] == asked("a")[1]


def test_a_last_chunk_of_one_token_is_shared_at_once(load):
    llm = load(max_batch_tokens=16)
    prompt = [i % 200 for i in range(17)]  # a step's tokens and one
    first, second = (llm.engine.add(prompt, GREEDY) for _ in range(2))
    while not second.admitted:
        llm.engine.step()
    assert first.generated_count <= 2 and second.cached == 16
    while llm.engine.busy:
        llm.engine.step()
