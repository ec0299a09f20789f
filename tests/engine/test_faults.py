"""What goes wrong in a step ends the requests that it goes wrong for, says so, and nobody else is concerned."""

import dataclasses

import numpy as np
import pytest

from llmcore import LLM, EngineSettings, SamplingParams
from llmcore.errors import GenerationError

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)
DRAWN = dataclasses.replace(GREEDY, temperature=1.0, seed=3)
PROMPTS = [[5, 9, 20, 31, 7, 8], [40, 3], [7, 7, 8, 100, 3, 2, 19]]


@pytest.fixture(params=["numba", "torch"])
def llm(tiny_model, request):
    sizes = EngineSettings(max_seqs=4, max_batch_tokens=16, page_size=4, max_context=48)
    made = LLM(str(tiny_model("llama3").path), backend=request.param, engine=sizes, threads=2)
    yield made
    made.engine.verify()
    assert made.engine.stats().pages_free == made.runner.sizes.pages
    made.close()


def raising(monkeypatch, llm, when):
    """Steps whose work fulfils ``when`` end in an exception, whichever head they have."""
    run = llm.runner._run

    def faulty(batch, head):
        if when(batch):
            raise ValueError("the kernel's own words")
        return run(batch, head)

    monkeypatch.setattr(llm.runner, "_run", faulty)


def poison(llm, request):
    """Makes NaN of what the cache holds of ``request``."""
    for state in llm.runner.states.values():
        for page in request.pages:
            state[page].view(np.uint8)[...] = 0xFF  # a NaN of every type


def finish(llm, *requests):
    while not all(request.finish_reason for request in requests):
        llm.engine.step()
        llm.engine.verify()
    return [[t for delta in request.deltas for t in delta.token_ids] for request in requests]


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_nan_fails_its_request_alone(llm, params):
    """Through the model: a sequence whose cache was damaged attends to NaN."""
    expected = [llm.generate([prompt], [params])[0].token_ids for prompt in PROMPTS]
    requests = [llm.engine.add(prompt, params) for prompt in PROMPTS]
    for _ in range(3):
        llm.engine.step()
    poison(llm, requests[1])
    found = finish(llm, *requests)
    assert [request.finish_reason for request in requests] == ["length", "error", "length"]
    assert requests[1].error == "the model computed logits that are not numbers (NaN)"
    assert requests[1].deltas[-1].finish_reason == "error"
    assert (tuple(found[0]), tuple(found[2])) == (expected[0], expected[2])
    assert tuple(found[1]) == expected[1][: len(found[1])] and len(found[1]) == 3
    assert llm.engine.stats().failed == 1


def test_nobody_shares_the_pages_of_a_failed_request(llm):
    whole = llm.generate(PROMPTS[2], GREEDY)[0].token_ids
    request = llm.engine.add(PROMPTS[2], GREEDY)
    llm.engine.step()
    assert request.cached == 4
    poison(llm, request)
    finish(llm, request)
    assert request.finish_reason == "error"
    again = llm.generate(PROMPTS[2], GREEDY)[0]
    assert (again.cached, again.token_ids) == (0, whole)


@pytest.mark.parametrize("leaves", [True, False])
def test_nan_amid_a_prompt_is_found_by_nobody(llm, leaves):
    """A chunk's damage shows at the first token, or never: what came of it is not in the prefix cache until then."""
    short = dataclasses.replace(GREEDY, max_tokens=2)
    prompt = [(11 * i + 1) % 200 for i in range(40)]  # three chunks
    others = [[*prompt[:36], 5, 5], [*prompt[:14], 9, 9, 9]]
    expected = [answer.token_ids for answer in llm.generate(others, short)]
    llm.engine.scheduler.pool.forget(range(llm.runner.sizes.pages))
    damaged = llm.engine.add(prompt, short)
    llm.engine.step()
    poison(llm, damaged)
    requests = [llm.engine.add(each, short) for each in others]
    llm.engine.step()
    if leaves:
        llm.engine.abort(damaged)
    found = finish(llm, *requests)
    assert [request.finish_reason for request in requests] == ["length", "length"]
    assert [tuple(tokens) for tokens in found] == expected
    assert damaged.finish_reason == ("abort" if leaves else "error")


def test_what_is_ones_own_fault_takes_nothing_from_others(llm):
    """A request that its own rules end has computed good pages: everybody's beginning stays in the cache."""
    llm.generate(PROMPTS[2], GREEDY)
    forbidden = dict.fromkeys(range(llm.spec.vocab_size), -100.0)
    rules = llm.engine.add(PROMPTS[2], dataclasses.replace(GREEDY, logit_bias=forbidden))
    rules.rules.bias[:] = -np.inf
    broken = llm.engine.add(PROMPTS[2], GREEDY)
    llm.engine.live[broken.id].detokenizer = None
    finish(llm, rules, broken)
    assert [request.finish_reason for request in (rules, broken)] == ["error", "error"]
    assert llm.generate(PROMPTS[2], GREEDY)[0].cached == 4


def test_one_nan_among_drawn_logits(llm, monkeypatch):
    run = llm.runner.run

    def broken(batch, head="logits"):
        logits = run(batch, head)
        logits[1, 77] = np.nan
        return logits

    monkeypatch.setattr(llm.runner, "run", broken)
    requests = [llm.engine.add(prompt, dataclasses.replace(DRAWN, logprobs=2)) for prompt in PROMPTS[:2]]
    llm.engine.step()
    assert [request.finish_reason for request in requests] == [None, "error"]
    monkeypatch.undo()
    finish(llm, *requests)
    assert requests[0].finish_reason == "length"


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_an_exception_fails_its_step_and_the_engine_goes_on(llm, params, monkeypatch):
    expected = llm.generate(PROMPTS[1], params)[0].token_ids
    monkeypatch.setattr(llm.engine.scheduler, "max_seqs", 2)
    requests = [llm.engine.add(prompt, params) for prompt in (PROMPTS[0], PROMPTS[2], PROMPTS[1])]
    llm.engine.step()
    raising(monkeypatch, llm, lambda batch: len(batch) == 2)
    found = finish(llm, *requests)
    assert [request.finish_reason for request in requests] == ["error", "error", "length"]
    assert {request.error for request in requests[:2]} == {"ValueError: the kernel's own words"}
    assert isinstance(requests[0].cause, ValueError)
    assert tuple(found[2]) == expected
    assert not llm.engine.busy and llm.engine.stats().failed == 2


def test_generate_returns_what_failed_beside_what_did_not(llm, monkeypatch):
    raising(monkeypatch, llm, lambda batch: any(100 in ids for ids, *_ in batch))
    monkeypatch.setattr(llm.engine.scheduler, "max_seqs", 1)
    answers = llm.generate(PROMPTS, GREEDY)
    assert [answer.finish_reason for answer in answers] == ["length", "length", "error"]
    assert answers[2].error == "ValueError: the kernel's own words" and answers[2].token_ids == ()


def test_a_stream_raises_after_what_there_was(llm, monkeypatch):
    stream = llm.stream(PROMPTS[0], GREEDY)
    first = next(stream)
    raising(monkeypatch, llm, lambda batch: True)
    assert len(first.token_ids) == 1 and next(stream).finish_reason == "error"
    with pytest.raises(GenerationError, match="the kernel's own words") as caught:
        next(stream)
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_exception_in_ones_own_text_is_ones_own(llm, monkeypatch):
    requests = [llm.engine.add(prompt, GREEDY) for prompt in PROMPTS[:2]]
    monkeypatch.setattr(llm.engine.live[requests[0].id].detokenizer, "push", lambda token: 1 / 0)
    finish(llm, *requests)
    assert [request.finish_reason for request in requests] == ["error", "length"]
    assert requests[0].error.startswith("ZeroDivisionError")


def test_an_interrupt_is_no_fault(llm, monkeypatch):
    whole = llm.generate(PROMPTS[0], GREEDY)[0].token_ids
    request = llm.engine.add(PROMPTS[0], GREEDY)
    llm.engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(llm.runner, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            llm.engine.step()
    assert tuple(finish(llm, request)[0]) == whole
