"""The engine on tiny models: right tokens, whatever the batch, the chunks and the pages are."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llmcore import LLM, EngineSettings, SamplingParams
from llmcore.engine.load import usable_threads
from llmcore.engine.stats import Counters, Stats
from llmcore.errors import ConfigError, RequestError

PROMPTS = [[5, 9, 20, 31], [40], [7, 7, 8, 100, 3, 2, 19, 64, 5, 81, 11, 12], [200, 4, 6]]
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
SMALL = EngineSettings(max_seqs=4, max_batch_tokens=16, page_size=4, max_context=48)


@pytest.fixture(params=["numba", "torch"])
def backend(request):
    return request.param


@pytest.fixture
def load(tiny_model, backend):
    loaded = []

    def make(engine=SMALL, **options):
        loaded.append(LLM(str(tiny_model("llama3").path), backend=backend, engine=engine, threads=2, **options))
        return loaded[-1]

    yield make
    for llm in loaded:
        llm.close()


def tokens(completions):
    return [completion.token_ids for completion in completions]


def test_greedy_tokens_are_those_of_transformers(load, tiny_model):
    answer = load().generate(PROMPTS[2], GREEDY)[0]
    ids = [*PROMPTS[2], *answer.token_ids]
    expected = tiny_model("llama3").logits(ids)[len(PROMPTS[2]) - 1 : -1].argmax(-1)
    assert list(answer.token_ids) == expected.tolist()
    assert answer.prompt_token_ids == tuple(PROMPTS[2])
    assert answer.finish_reason == "length"


def test_a_batch_gives_what_each_prompt_gives_alone(load):
    llm = load()
    sampled = [
        dataclasses.replace(GREEDY, temperature=1.2, seed=i, top_k=30, top_p=0.95) if i % 2 else GREEDY
        for i in range(len(PROMPTS))
    ]
    together = tokens(llm.generate(PROMPTS, sampled))
    alone = [llm.generate([prompt], [params])[0].token_ids for prompt, params in zip(PROMPTS, sampled, strict=True)]
    assert together == alone
    assert llm.engine.scheduler.pool.free == llm.runner.sizes.pages


def test_preemption_and_chunks_change_nothing(load):
    plenty = tokens(load().generate(PROMPTS, GREEDY))
    scarce = load(dataclasses.replace(SMALL, kv_pages=12, max_batch_tokens=5))
    assert tokens(scarce.generate(PROMPTS, GREEDY)) == plenty
    assert scarce.engine.scheduler.preemptions > 0
    done = scarce.engine.counters
    assert done.computed > sum(map(len, PROMPTS)) + done.generated - len(PROMPTS)  # some tokens again
    assert scarce.engine.scheduler.pool.free == 12


def test_buckets_change_nothing(load):
    one = load(dataclasses.replace(SMALL, buckets=()))
    many = load(dataclasses.replace(SMALL, buckets=(1, 2, 3, 7)))
    assert tokens(one.generate(PROMPTS, GREEDY)) == tokens(many.generate(PROMPTS, GREEDY))


def test_a_stream_is_its_completion_in_pieces(load):
    llm = load()
    whole = llm.generate(PROMPTS[0], GREEDY)[0]
    deltas = list(llm.stream(PROMPTS[0], GREEDY))
    assert tuple(token for delta in deltas for token in delta.token_ids) == whole.token_ids
    assert "".join(delta.text for delta in deltas) == whole.text
    assert whole.text == llm.tokenizer.decode(whole.token_ids)
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]


def test_stop_token_ends_without_being_shown(load):
    llm = load()
    free = llm.generate(PROMPTS[0], GREEDY)[0]
    stop = free.token_ids[4]
    first = free.token_ids.index(stop)
    stopped = llm.generate(PROMPTS[0], dataclasses.replace(GREEDY, stop_token_ids=(stop,)))[0]
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.text == llm.tokenizer.decode(free.token_ids[:first])
    assert stopped.finish_reason == "stop"


def test_stop_text_ends_before_it(load):
    llm = load()
    free = llm.generate(PROMPTS[0], GREEDY)[0].text
    stop = free[5:7]
    stopped = llm.generate(PROMPTS[0], dataclasses.replace(GREEDY, stop=(stop,)))[0]
    assert stopped.text == free[: free.index(stop)]
    assert stopped.finish_reason == "stop"


def test_closing_a_stream_frees_its_pages(load):
    llm = load()
    stream = llm.stream(PROMPTS[2], GREEDY)
    next(stream)
    assert llm.engine.scheduler.pool.free < llm.runner.sizes.pages
    stream.close()
    assert llm.engine.scheduler.pool.free == llm.runner.sizes.pages
    assert not llm.engine.busy


def test_streams_read_in_turn_lose_nothing(load):
    llm = load()
    alone = [llm.generate(prompt, GREEDY)[0].token_ids for prompt in PROMPTS[:2]]
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS[:2]]
    pairs = list(zip(*streams, strict=True))
    assert [tuple(delta.token_ids[0] for delta in side) for side in zip(*pairs, strict=True)] == alone


def test_generate_between_two_reads_of_a_stream(load):
    llm = load()
    stream = llm.stream(PROMPTS[0], GREEDY)
    first = next(stream)
    other = llm.generate(PROMPTS[1], GREEDY)[0]
    rest = list(stream)
    assert rest[-1].finish_reason == "length"
    assert (*first.token_ids, *(t for d in rest for t in d.token_ids)) == llm.generate(PROMPTS[0], GREEDY)[0].token_ids
    assert other.token_ids == llm.generate(PROMPTS[1], GREEDY)[0].token_ids


def test_a_stream_dropped_before_its_first_delta_leaves_nothing(load):
    llm = load()
    llm.stream(PROMPTS[0], GREEDY)
    assert not llm.engine.busy


def test_streams_of_several_threads(load):
    llm = load()
    alone = tokens(llm.generate(PROMPTS, GREEDY))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda prompt: [d.token_ids[0] for d in llm.stream(prompt, GREEDY)], PROMPTS))
    assert [tuple(ids) for ids in found] == alone


def test_counters(load):
    llm = load()
    llm.generate(PROMPTS[2], GREEDY)
    ended = {"ended": {"length": 1}, "ended_tokens": {"length": 12}}
    assert llm.engine.counters == Counters(computed=len(PROMPTS[2]) + 11, generated=12, steps=12, **ended)


def test_stats(load):
    llm = load()
    llm.generate(PROMPTS[2], GREEDY)
    queued = [llm.engine.add(PROMPTS[2], GREEDY) for _ in range(5)]  # one more than fit a step
    llm.engine.step()
    assert llm.engine.stats() == Stats(
        running=4,
        waiting=1,
        preemptions=0,
        pages_total=48,
        pages_free=48 - 2 - 4,  # two that all share
        prefix_queried=5 * 12,
        prefix_hit=4 * 8,
        generated=12 + 4,
        computed=12 + 11 + 4 * 4,
        steps=12 + 1,
        ended={"length": 1},
        ended_tokens={"length": 12},
    )
    queued[0].error = "somebody ends it so"
    for request in queued:
        llm.engine.abort(request)
    stats = llm.engine.stats()
    assert (stats.ended, stats.failed) == ({"length": 1, "abort": 4, "error": 1}, 1)
    assert stats.ended_tokens == {"length": 12, "abort": 3, "error": 1} and stats.generated == 16


@pytest.mark.parametrize("ids", [[10**9], [-1], [], [5.5], [True]])
def test_scoring_checks_its_tokens(load, ids):
    with pytest.raises(RequestError):
        load().logits(ids)


def test_numpy_prompts_are_prompts(load):
    llm = load()
    given = np.array(PROMPTS[2])
    assert llm.generate(given, GREEDY)[0].token_ids == llm.generate(PROMPTS[2], GREEDY)[0].token_ids
    with pytest.raises(RequestError, match="no integer"):
        llm.generate([[5.7, 9]], GREEDY)
    with pytest.raises(RequestError, match="chunk is -1"):
        llm.logits(PROMPTS[2], chunk=-1)


@pytest.mark.parametrize("temperature", [1e-38, 1e-50])
def test_the_coldest_temperature_is_greedy(load, temperature):
    llm = load()
    cold = dataclasses.replace(GREEDY, temperature=temperature, seed=1)
    assert llm.generate(PROMPTS[0], cold)[0].token_ids == llm.generate(PROMPTS[0], GREEDY)[0].token_ids


def test_a_closed_model_says_so(load):
    llm = load()
    llm.generate(PROMPTS[0], GREEDY)
    llm.close()
    for use in (lambda: llm.generate("x"), lambda: llm.stream("x"), lambda: llm.logits([1])):
        with pytest.raises(RequestError, match="is closed"):
            use()
    llm.close()


def test_logprobs_agree_with_the_logits(load):
    llm = load()
    answer = llm.generate(PROMPTS[0], dataclasses.replace(GREEDY, logprobs=3))[0]
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
    for entry in answer.logprobs:
        assert len(entry.top) == 3
        assert entry.top[0] == (entry.token_id, pytest.approx(entry.logprob))  # greedy: the best is the chosen one


def test_the_context_ends_an_answer(load):
    llm = load(dataclasses.replace(SMALL, max_context=16))
    answer = llm.generate(PROMPTS[2], dataclasses.replace(GREEDY, max_tokens=None))[0]
    assert len(answer.token_ids) == 16 - len(PROMPTS[2])
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("prompt", [[], [99999], [-1], list(range(48))])
def test_a_prompt_that_cannot_run_is_refused_and_nothing_is_lost(load, prompt):
    llm = load()
    with pytest.raises(RequestError):
        llm.generate([PROMPTS[0], prompt], GREEDY)
    assert not llm.engine.busy
    assert len(llm.generate(PROMPTS[0], GREEDY)[0].token_ids) == 12


def test_penalties_change_greedy_answers(load):
    llm = load()
    plain = llm.generate(PROMPTS[0], GREEDY)[0].token_ids
    free = llm.generate(PROMPTS[0], dataclasses.replace(GREEDY, presence_penalty=100.0))[0].token_ids
    assert len(set(free)) == len(free) == 12  # no generated token twice
    assert free[0] == plain[0]


def test_one_op_from_another_backend_in_the_same_program(load, backend):
    other = {"numba": "torch", "torch": "numba"}[backend]
    mixed = load(ops={"rms_norm": other, "swiglu": other})
    rows = mixed.explain().rows
    named = {row.op: row for row in rows}
    assert named["rms_norm"].backend == named["swiglu"].backend == other
    assert f"backend.ops.rms_norm={other}" in named["rms_norm"].reason
    assert tokens(mixed.generate(PROMPTS, GREEDY)) == tokens(load().generate(PROMPTS, GREEDY))


@pytest.mark.parametrize("prompts", [None, [None], [b"hi"], 5, {"a": 1}])
def test_what_is_no_prompt_is_refused(load, prompts):
    with pytest.raises(RequestError):
        load().generate(prompts)


def test_what_are_no_parameters_is_refused(load):
    with pytest.raises(RequestError, match="parameters are a dict"):
        load().generate("a", {"max_tokens": 3})


def test_sizes_beyond_memory_are_refused(load):
    with pytest.raises(ConfigError, match="memory"):
        load(dataclasses.replace(SMALL, kv_pages=2**46))
    with pytest.raises(ConfigError, match="threads is '2'"):
        usable_threads("2")


def test_the_explanation_ends_with_greedy_decoding_and_the_sampler(load, backend):
    rows = load().explain().rows
    assert [row.op for row in rows][-5:] == ["softmax", "top_k", "top_p", "min_p", "sample"]
    assert rows[-6].op in ("argmax", "classifier_argmax")
    assert {row.path for row in rows[-5:]} == {"sampler"}


@pytest.mark.parametrize("tokens", [1, 5, 12])
def test_bound_nodes_are_the_rows_of_the_program(load, tokens):
    llm = load()
    bound, program = llm.runner.bound("ids", tokens), llm.runner.program("ids", tokens)
    found = [(node.op.name, node.path, choice.backend, choice.kernel.target) for node, choice in bound]
    assert found == [(row.op, row.path, row.backend, row.kernel) for row in program.rows]
    assert sum(len(segment.nodes) for segment in program.segments) == len(bound)
