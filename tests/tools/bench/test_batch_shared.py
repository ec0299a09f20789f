"""Requests that begin alike, on a tiny model: what the prefix cache spares is counted, and goals can be missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from helpers.tiny import TinyModel
from llmcore.engine.load import EngineSettings
from llmcore.errors import GenerationError
from llmcore.llm import LLM
from llmcore_tools.bench import batch_shared
from llmcore_tools.bench.batch_shared import Sample, Shared

WORK = Shared(requests=6, prefix=32, own=4, new=3)


@pytest.fixture
def llm(tiny_model: Callable[..., TinyModel]) -> Iterator[LLM]:
    sizes = EngineSettings(max_seqs=4, page_size=8)
    loaded = LLM(str(tiny_model("llama3").path), backend="torch", threads=1, engine=sizes)
    yield loaded
    loaded.close()


def test_what_is_computed(llm: LLM) -> None:
    found = batch_shared.measure(llm, WORK, 4, 2, 0)
    for way, prefill in (("with", 36 + 5 * 4), ("without", 6 * 36)):
        assert [sample.prefill for sample in found[way]] == [prefill] * 2
        assert [sample.hit for sample in found[way]] == [WORK.prompt_tokens - prefill] * 2
        assert all(len(sample.ttft) == 6 and max(sample.ttft) <= sample.seconds for sample in found[way])
    assert batch_shared.fall(found) == pytest.approx(1 - 56 / 216)
    assert llm.generate([1, 2, 3])[0].finish_reason == "length"


def test_the_model_s_own_prefixes_are_forgotten(llm: LLM) -> None:
    prompt = list(range(20))
    before = llm.generate(prompt)[0].token_ids
    assert llm.generate(prompt)[0].cached == 16
    batch_shared.measure(llm, WORK, 4, 1, 0)
    after = llm.generate(prompt)[0]
    assert (after.cached, after.token_ids) == (0, before)
    llm.engine.verify()


def test_pages_that_run_out(tiny_model: Callable[..., TinyModel]) -> None:
    """What has to be computed again counts."""
    sizes = EngineSettings(max_seqs=4, page_size=4, kv_pages=20, max_context=60)
    llm = LLM(str(tiny_model("llama3").path), backend="torch", threads=1, engine=sizes)
    work = Shared(requests=4, prefix=4, own=8, new=20)
    found = batch_shared.sample(llm, work, 4, np.random.default_rng(0), cache=False)
    llm.close()
    assert found.prefill > work.prompt_tokens


@pytest.mark.parametrize("counts", [(215, 0, 18), (216, 1, 18), (56, 160, 17)])
def test_counts_that_do_not_add_up(counts: tuple[int, int, int]) -> None:
    batch_shared.check_count(WORK, 216, 0, 18)
    batch_shared.check_count(WORK, 56, 160, 18)
    with pytest.raises(GenerationError, match="are not"):
        batch_shared.check_count(WORK, *counts)


def test_statistics() -> None:
    sample = Sample(1.0, 1, 0, tuple(i / 1000 for i in range(101)))
    assert [sample.ttft_ms(name) for name in ("mean", "p50", "p99")] == pytest.approx([50, 50, 99])


def goals(computed: int, *ttft: float) -> list[bool]:
    found = {"with": [Sample(1.0, computed, 0, ttft)], "without": [Sample(1.0, 1000, 0, (5.0, 5.0, 5.0))]}
    return [goal.met for goal in batch_shared.goals(found)]


def test_goals_can_be_missed() -> None:
    assert goals(150, 1.0, 1.0, 1.0) == [True, True, True, True]
    assert goals(151, 1.0, 1.0, 1.0) == [False, True, True, True]
    assert goals(150, 0.1, 1.01, 1.01) == [True, True, False, False]
    assert goals(150, 0.1, 0.1, 4.0) == [True, False, True, False]


def test_the_worst_pair_decides() -> None:
    few, many, all_ = (Sample(1.0, count, 0, (1.0,)) for count in (100, 200, 1000))
    assert batch_shared.fall({"with": [few, many], "without": [all_, all_]}) == pytest.approx(0.8)
