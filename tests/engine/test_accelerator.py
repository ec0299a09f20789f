"""Models whose memory lies on an accelerator answer as they do on the host (torch's kernels on both)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.accelerator import NAME, on_accelerator
from helpers.tiny import TinyModel
from llmcore import LLM, EngineSettings, SamplingParams
from llmcore.engine.accelerated import AcceleratedRunner
from llmcore.engine.batch import Work
from llmcore.engine.sizes import recorded_sizes
from llmcore.hookspecs import BackendInfo
from llmcore.plugins import plugins
from llmcore_tools.gpu.check_models import forbidden_syncs

MakeTiny = Callable[..., TinyModel]
SETTINGS = EngineSettings(max_seqs=6, max_batch_tokens=16, max_rows=16, page_size=4, max_context=64, kv_pages=64)
PROMPTS = [[5, 9, 20, 31], [40], [7, 7, 8, 100, 3, 2, 19, 64, 5, 81, 11, 12, 9, 9, 4, 70, 71, 72], [200, 4, 6]]
LONG = {"max_tokens": 9, "ignore_eos": True}
PARAMS = [
    SamplingParams(**LONG),
    SamplingParams(**LONG, temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, seed=4),
    SamplingParams(**LONG, repetition_penalty=1.3, presence_penalty=0.4, logit_bias={3: 2.5}, logprobs=3),
    SamplingParams(**LONG, logprobs=5, temperature=1.1, seed=1),
]
DRAWN = SamplingParams(**LONG, temperature=0.9, top_k=40, seed=5)


@pytest.fixture
def load(tiny_model: MakeTiny) -> Iterator[Callable[..., LLM]]:
    loaded: list[LLM] = []

    def make(family: str = "llama3", settings: EngineSettings = SETTINGS, dtype: str = "float32") -> LLM:
        with on_accelerator(dtype):
            loaded.append(LLM(str(tiny_model(family).path), backend="torch", engine=settings, threads=1))
        return loaded[-1]

    yield make
    for llm in loaded:
        llm.close()


@pytest.fixture
def here(tiny_model: MakeTiny) -> Iterator[LLM]:
    llm = LLM(str(tiny_model("llama3").path), backend="torch", engine=replace(SETTINGS, device="cpu"), threads=1)
    yield llm
    llm.close()


def test_answers_are_those_of_the_host(load: Callable[..., LLM], here: LLM) -> None:
    """Greedy, drawn, with penalties, with log-probabilities: all at once, and each alone."""
    there = load()
    together = there.generate(PROMPTS, PARAMS)
    for prompt, params, answer in zip(PROMPTS, PARAMS, together, strict=True):
        wanted = here.generate([prompt], params)[0]
        assert answer.token_ids == wanted.token_ids == there.generate([prompt], params)[0].token_ids
        for got, want in zip(answer.logprobs or (), wanted.logprobs or (), strict=True):
            assert got.logprob == pytest.approx(want.logprob, abs=1e-4)
            assert [token for token, _ in got.top] == [token for token, _ in want.top]


@pytest.mark.parametrize("family", ["llama2", "llama3", "qwen2", "qwen3"])
def test_logits_of_prefill_chunks_and_decode(load: Callable[..., LLM], tiny_model: MakeTiny, family: str) -> None:
    model, llm = tiny_model(family), load(family)
    ids = model.ids(40)
    for chunk in (16, 5, 1):
        np.testing.assert_allclose(llm.logits(ids, chunk), model.logits(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_activations_may_be_narrow(load: Callable[..., LLM], tiny_model: MakeTiny, dtype: str) -> None:
    """The cache follows them; logits are float32, a rounding of activations away from those of float32."""
    model, llm = tiny_model("llama3"), load(dtype=dtype)
    ids = model.ids(30)
    found, wanted = llm.logits(ids), model.logits(ids)
    error = np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()
    assert 1e-5 < error < {"bfloat16": 0.05, "float16": 0.006}[dtype]
    assert llm.runner.registry.kv_dtype == dtype
    assert found.dtype == np.float32
    assert str(llm.runner.outputs["logits"].dtype) == "torch.float32"
    assert llm.explain().kv_cache.dtype == llm.explain().dtype == dtype


def test_hidden_states_come_back(load: Callable[..., LLM], here: LLM) -> None:
    np.testing.assert_allclose(load().embed(PROMPTS), here.embed(PROMPTS), rtol=0, atol=1e-5)


def test_decode_steps_are_filled_up_without_a_trace(load: Callable[..., LLM], here: LLM) -> None:
    """Three sequences run as four; the fourth writes to the page that belongs to nobody, and to no other."""
    there = load()
    batch = [([token], 0, [page], (0,)) for page, token in enumerate((9, 30, 71))]
    for llm in (here, there):
        llm.runner.run(batch)
    assert ("logits", 4, True) in there.runner.programs
    found, wanted = (llm.runner.outputs["logits"][:3].tolist() for llm in (there, here))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    device, spare = there.runner.place.device, there.runner.sizes.pages
    for layer, state in there.runner.states.items():
        pages = device.fetch(state)
        assert len(pages) == spare + 1
        np.testing.assert_allclose(pages[:spare], here.runner.states[layer], rtol=0, atol=1e-5)
        assert pages[spare].any()


def test_steps_that_want_nothing_or_more_are_not_recorded_ones(load: Callable[..., LLM]) -> None:
    runner = load().runner
    runner.programs.clear()
    runner.run([([3], 0, [0], ())])
    runner.run([([3, 4], 0, [0], (0, 1)), ([5], 0, [1], (0,))])
    runner.run([([3], 0, [0], (0,))], "hidden")
    assert not any(one_each for _, _, one_each in runner.programs)


@pytest.mark.parametrize(
    ("seqs", "sizes"), [(1, [1]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16]), (70, [1, 2, 4, 8, 16, 32, 48, 64, 70])]
)
def test_recorded_sizes(seqs: int, sizes: list[int]) -> None:
    assert recorded_sizes(seqs) == sizes


def test_what_can_be_recorded_is(load: Callable[..., LLM], here: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's attention looks at lengths, so it is called between recorded segments; a replay does what calls do."""
    torch_backend = plugins().backend("torch")
    recordable = tuple(replace(kernel, captured=kernel.op != "attention") for kernel in torch_backend.kernels)
    offer: BackendInfo = replace(torch_backend, kernels=recordable)
    monkeypatch.setitem(plugins().backends, "torch", offer)
    llm = load()
    recorded: list[int] = []
    device = llm.runner.place.device
    capture = device.capture
    monkeypatch.setattr(device, "capture", lambda calls: recorded.append(1) or capture(calls))
    llm.runner.programs.clear()
    first, second, third = (llm.generate(PROMPTS, PARAMS) for _ in range(3))
    assert [a.token_ids for a in first] == [a.token_ids for a in second] == [a.token_ids for a in third]
    assert [a.token_ids for a in first] == [a.token_ids for a in here.generate(PROMPTS, PARAMS)]
    programs = {id(p): p for (_, _, one_each), p in llm.runner.programs.items() if one_each}
    kinds = [segment.kind for program in programs.values() for segment in program.segments]
    assert kinds[:3] == ["captured", "calls", "captured"]
    sampling = [
        segment.kind for program in llm.engine.launcher.sampler.programs.values() for segment in program.segments
    ]
    assert set(sampling) == {"captured"}
    assert len(recorded) == kinds.count("captured") + len(sampling)  # each once, however often it ran
    prefill = next(p for (_, _, one_each), p in llm.runner.programs.items() if not one_each)
    assert {segment.kind for segment in prefill.segments} == {"calls"}


def test_a_step_begins_before_the_last_one_is_seen(load: Callable[..., LLM], here: LLM) -> None:
    """Sequences that end, by a token or by their length, leave nothing behind; those that come wait for no one long."""
    there = load()
    probe = [here.generate([prompt], SamplingParams(**LONG))[0].token_ids for prompt in PROMPTS]
    ends = [
        SamplingParams(max_tokens=9 - i, ignore_eos=True, stop_token_ids=[ids[6 - i]]) for i, ids in enumerate(probe)
    ]
    engine = there.engine
    begun: list[bool] = []

    def watched(batch: Any, head: str, follows: Any = None) -> int:
        begun.append(follows is not None)
        return run(batch, head, follows)

    run = there.runner._run
    there.runner._run = watched  # type: ignore[method-assign]
    for params in (SamplingParams(**LONG), DRAWN, [SamplingParams(**LONG), DRAWN] * 6, *ends):
        begun.clear()
        found = there.generate(PROMPTS * 3, params)  # more than run at a time
        wanted = here.generate(PROMPTS * 3, params)
        assert [(a.token_ids, a.finish_reason) for a in found] == [(a.token_ids, a.finish_reason) for a in wanted]
        engine.verify()
        assert engine.scheduler.pool.free == there.runner.sizes.pages
        assert any(begun) and not all(begun)
    for params in (SamplingParams(**LONG), DRAWN):
        begun.clear()
        there.generate([PROMPTS[0]], params)
        assert begun == [False] + 8 * [True]  # the prompt's step, and then one for each further token
    begun.clear()
    there.generate([PROMPTS[0]], replace(DRAWN, presence_penalty=0.5))
    assert begun == 9 * [False]  # what penalties make of logits depends on tokens that must be known


def test_a_sequence_that_leaves_while_its_next_token_is_computed(load: Callable[..., LLM], here: LLM) -> None:
    there = load()
    requests = [there.engine.add(prompt, SamplingParams(**LONG)) for prompt in PROMPTS]
    for _ in range(3):
        there.engine.step()
    assert there.engine._ahead is not None
    there.engine.abort(requests[1])
    while any(request.finish_reason is None for request in requests):
        there.engine.step()
    for i in (0, 2, 3):
        assert requests[i].generated == list(here.generate([PROMPTS[i]], SamplingParams(**LONG))[0].token_ids)
    there.engine.verify()
    assert there.engine.scheduler.pool.free == there.runner.sizes.pages


def test_an_error_of_a_step_under_way_ends_its_requests_alone(load: Callable[..., LLM], here: LLM) -> None:
    there = load()
    failing = there.engine.add(PROMPTS[0], SamplingParams(**LONG))
    there.engine.step()
    there.engine.step()
    assert there.engine._ahead is not None
    start, there.runner.start = there.runner.start, None  # type: ignore[assignment, method-assign]
    there.engine.step()
    assert failing.finish_reason == "error" and there.engine._ahead is None
    there.runner.start = start  # type: ignore[method-assign]
    wanted = here.generate([PROMPTS[0]], SamplingParams(**LONG))[0]
    assert there.generate([PROMPTS[0]], SamplingParams(**LONG))[0].token_ids == wanted.token_ids
    there.engine.verify()


def test_a_step_may_have_more_tokens_than_a_sequence(load: Callable[..., LLM], here: LLM) -> None:
    """The largest step, by which memory is measured, is then one of several sequences; the last may be short."""
    small = replace(SETTINGS, max_context=26, max_batch_tokens=60)
    there = load(settings=small)
    ran = [(len(ids), start, len(rows)) for ids, start, _, rows in there.runner._largest()]
    assert ran == [(26, 0, 16), (26, 0, 0), (8, 18, 0)]  # sixteen rows in all; each reads a whole context
    assert [len(ids) for ids, *_ in load(settings=replace(small, max_seqs=1)).runner._largest()] == [26]
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    found, wanted = there.generate(PROMPTS, params), here.generate(PROMPTS, params)
    assert [a.token_ids for a in found] == [a.token_ids for a in wanted]


def test_weights_are_copied_once_and_not_kept(load: Callable[..., LLM]) -> None:
    """What the host has packed is let go: kernels of all programs read one copy."""
    import torch

    llm = load("llama2")
    store = llm.runner.weights
    assert all(isinstance(array, torch.Tensor) for array in (*store.made.values(), *store.mapped.values()))
    before = {key: array.data_ptr() for key, array in (store.made | store.mapped).items()}
    llm.generate(PROMPTS, PARAMS)
    assert {key: array.data_ptr() for key, array in (store.made | store.mapped).items()} == before
    use = llm.memory
    assert use.weights_mapped_bytes + use.weights_repacked_bytes > 0


@pytest.mark.skipif(NAME != "cuda", reason="torch knows what waits for the device on CUDA alone")
@pytest.mark.parametrize("sequences", [1, 3])
def test_a_steady_decode_step_waits_for_nothing(sequences: int, load: Callable[..., LLM]) -> None:
    runner = load().runner
    assert isinstance(runner, AcceleratedRunner)
    work: list[Work] = [((5,), 0, [page], (0,)) for page in range(sequences)]
    runner.start(work)()
    with forbidden_syncs(runner.place.device):
        arriving = runner.start([((0,), 1, pages, rows) for _, _, pages, rows in work], follows=runner.outputs["ids"])
    assert len(arriving()) == sequences
