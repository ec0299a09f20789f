"""Bias, least length and forbidden tokens: in one row, in a batch, and where nothing is left."""

import dataclasses
import math

import numpy as np
import pytest

from llmcore import LLM, EngineSettings, SamplingParams
from llmcore.engine.logit_rules import LogitRules
from llmcore.errors import RequestError

SETTINGS = EngineSettings(max_seqs=4, max_batch_tokens=16, page_size=4, max_context=64)
PROMPT = [5, 9, 20, 31]
VOCAB = 280
FREE = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module", params=["numba", "torch"])
def llm(tiny_model, request):
    loaded = LLM(str(tiny_model("llama3").path), backend=request.param, engine=SETTINGS, threads=2)
    yield loaded
    loaded.close()


def test_a_bias_is_added():
    row = np.zeros(8, np.float32)
    rules = LogitRules(SamplingParams(logit_bias={3: 2.5, 1: -100}), (), 8)
    assert rules.apply(row, 0)
    assert row.tolist() == [0, -100, 0, 2.5, 0, 0, 0, 0]


def test_ends_are_forbidden_until_there_are_enough_tokens():
    rules = LogitRules(SamplingParams(min_tokens=2), (1, 5, 99), 8)
    for generated, expected in ((0, -math.inf), (1, -math.inf), (2, 0)):
        row = np.zeros(8, np.float32)
        assert rules.apply(row, generated)
        assert row[[1, 5]].tolist() == [expected] * 2
        assert not row[[0, 2, 3, 4, 6, 7]].any()


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_row_without_a_choice_is_known(value):
    rules = LogitRules(SamplingParams(min_tokens=1), (0,), 3)
    assert not rules.apply(np.array([1, value, value], np.float32), 0)
    assert rules.apply(np.array([1, value, 0], np.float32), 0)


def test_a_bias_decides(llm):
    wanted = [dataclasses.replace(FREE, logit_bias={40: 100.0}), FREE, dataclasses.replace(FREE, temperature=1.0)]
    wanted[2] = dataclasses.replace(wanted[2], seed=1, logit_bias={41: 100.0, 40: 100.0, 7: -100})
    together = llm.generate([PROMPT] * 3, wanted)
    assert set(together[0].token_ids) == {40}
    assert together[1].token_ids == llm.generate([PROMPT], FREE)[0].token_ids
    assert set(together[2].token_ids) <= {40, 41}
    assert together[2].token_ids == llm.generate([PROMPT], [wanted[2]])[0].token_ids


@pytest.mark.parametrize("temperature", [0.0, 1e-5, 1.0, 100.0])
@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_the_same_bias_for_all_changes_little(llm, temperature, bias):
    wanted = dataclasses.replace(FREE, temperature=temperature, top_k=5, top_p=0.9, min_p=0.01, seed=2)
    biased = dataclasses.replace(wanted, logit_bias=dict.fromkeys(range(VOCAB), bias), logprobs=1)
    answer = llm.generate([PROMPT], biased)[0]
    assert answer.finish_reason == "length"
    assert all(math.isfinite(entry.logprob) for entry in answer.logprobs)
    if temperature == 0:
        assert answer.token_ids == llm.generate([PROMPT], wanted)[0].token_ids


def test_an_answer_has_its_least_length(llm):
    eager = SamplingParams(max_tokens=12, logit_bias={257: 100.0}, temperature=1.0, seed=4)
    assert llm.generate([PROMPT], eager)[0].token_ids == (257,)
    longer = llm.generate([PROMPT], dataclasses.replace(eager, min_tokens=5))[0]
    assert longer.token_ids.index(257) == 5
    assert longer.finish_reason == "stop"
    both = dataclasses.replace(eager, min_tokens=5, logit_bias={257: 50.0, 40: 100.0}, stop_token_ids=(40,))
    assert set(llm.generate([PROMPT], both)[0].token_ids[:5]).isdisjoint({40, 257})


def test_a_stop_text_waits_for_the_least_length(llm):
    free = llm.generate([PROMPT], FREE)[0]
    first = llm.tokenizer.decode(free.token_ids[:1])
    assert first
    stopping = dataclasses.replace(FREE, stop=(first,))
    assert llm.generate([PROMPT], stopping)[0].text == ""
    waiting = llm.generate([PROMPT], dataclasses.replace(stopping, min_tokens=3))[0]
    assert len(waiting.token_ids) >= 3
    assert waiting.text.startswith(first)


def test_a_row_without_a_choice_ends_its_request_alone(llm):
    engine = llm.engine
    all_ends = SamplingParams(stop_token_ids=tuple(range(VOCAB)), min_tokens=2)
    drawn = dataclasses.replace(all_ends, temperature=1.0, top_p=0.5, seed=1)
    alone = [llm.generate([PROMPT], params)[0].token_ids for params in (FREE, dataclasses.replace(FREE, seed=1))]
    lost = [engine.add(PROMPT, params) for params in (all_ends, drawn)]
    others = [engine.add(PROMPT, params) for params in (FREE, dataclasses.replace(FREE, seed=1))]
    while engine.busy:
        engine.step()
    for request in lost:
        assert request.finish_reason == "error"
        assert [(delta.token_ids, delta.finish_reason) for delta in request.deltas] == [((), "error")]
        assert "no token is left" in request.error
    assert [tuple(request.generated) for request in others] == alone
    assert engine.scheduler.pool.free == llm.runner.sizes.pages


def test_a_bias_for_no_token_is_refused(llm):
    with pytest.raises(RequestError, match=f"token {VOCAB}") as error:
        llm.generate([PROMPT], SamplingParams(logit_bias={3: 1.0, VOCAB: 1.0}))
    assert error.value.field == "logit_bias"
    assert not llm.engine.busy
