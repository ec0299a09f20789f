"""What an accelerator is asked for is right however late it is done (torch's kernels, a device that dawdles)."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from helpers.accelerator import on_accelerator
from helpers.late_accelerator import play
from helpers.tiny import TinyModel
from llmcore import LLM, EngineSettings, SamplingParams
from llmcore.engine.request import Request
from llmcore.graph.inputs import StepInputs

MakeTiny = Callable[..., TinyModel]
SETTINGS = EngineSettings(max_seqs=4, max_batch_tokens=12, max_rows=16, page_size=4, max_context=40, kv_pages=26)
GREEDY = SamplingParams(max_tokens=20, ignore_eos=True)
PLAIN = {"ignore_eos": True}


def jobs(seed: int, count: int = 14) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of which some begin alike, with parameters of every kind."""
    rng = random.Random(seed)
    common = [rng.randrange(250) for _ in range(9)]
    found = []
    for _ in range(count):
        prompt = common[: rng.choice((0, 0, 8, 9))] + [rng.randrange(250) for _ in range(rng.randint(1, 9))]
        kind = rng.choice(("greedy", "greedy", "drawn", "penalised", "logprobs"))
        extra = {
            "greedy": {},
            "drawn": {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "seed": rng.randrange(99)},
            "penalised": {"repetition_penalty": 1.2, "temperature": 0.5, "seed": 3},
            "logprobs": {"logprobs": 3},
        }[kind]
        found.append((prompt, SamplingParams(**PLAIN, max_tokens=rng.randint(1, 14), **extra)))
    return found


@pytest.fixture
def here(tiny_model: MakeTiny) -> Iterator[LLM]:
    llm = LLM(str(tiny_model("llama3").path), backend="torch", engine=replace(SETTINGS, device="cpu"), threads=1)
    yield llm
    llm.close()


def load(tiny_model: MakeTiny, settings: EngineSettings = SETTINGS) -> LLM:
    return LLM(str(tiny_model("llama3").path), backend="torch", engine=settings, threads=1)


def answers(llm: LLM, seed: int) -> list[tuple[tuple[int, ...], str]]:
    """They come and go: a few at a time, some are broken off."""
    rng, waiting, found = random.Random(seed), jobs(seed), []
    live: list[Request] = []
    while waiting or any(request.finish_reason is None for request in live):
        while waiting and rng.random() < 0.4:
            live.append(llm.engine.add(*waiting.pop()))
        llm.engine.step()
    found = [(tuple(request.generated), str(request.finish_reason)) for request in live]
    llm.engine.verify()
    assert llm.engine.scheduler.pool.free == llm.runner.sizes.pages
    return found


def test_a_device_that_dawdles_answers_alike(tiny_model: MakeTiny, here: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [answers(here, seed) for seed in range(3)]
    device = play(monkeypatch)
    llm = load(tiny_model)
    assert [answers(llm, seed) for seed in range(3)] == wanted
    assert device.most > 2 * len(llm.runner.graph.nodes)  # two steps were under way
    llm.close()


@pytest.mark.parametrize("part", ["settle", "landings"])
def test_such_a_device_notices_haste(
    tiny_model: MakeTiny, here: LLM, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Inputs that are overwritten before they have left; tokens that land where those before them lie unread."""
    wanted = [answers(here, seed) for seed in range(3)]
    if part == "settle":
        monkeypatch.setattr(StepInputs, "settle", lambda inputs: None)
    else:
        monkeypatch.setattr("helpers.late_accelerator.cycle", lambda landings: iter(lambda: landings[0], None))
    play(monkeypatch)
    llm = load(tiny_model)
    assert [answers(llm, seed) for seed in range(3)] != wanted


def test_an_interrupt_is_no_fault(tiny_model: MakeTiny, here: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it comes: while a step is begun, waited for, or accepted."""
    prompts = [[7, 7, 8, 100, 3], [200, 4, 6], [40]]
    wanted = [answer.token_ids for answer in here.generate(prompts, GREEDY)]
    with on_accelerator() as device:
        llm = load(tiny_model)
    engine = llm.engine
    for owner, name in ((engine, "_accept"), (llm.runner, "start"), (engine.scheduler, "schedule_after")):
        for after in range(1, 9):
            requests = [engine.add(prompt, GREEDY) for prompt in prompts]
            with monkeypatch.context() as patch:
                interrupt(patch, owner, name, after)
                with pytest.raises(KeyboardInterrupt):
                    while True:
                        engine.step()
            while any(request.finish_reason is None for request in requests):
                engine.step()
            assert [tuple(request.generated) for request in requests] == wanted, (name, after)
    real = engine._begin_after
    monkeypatch.setattr(
        engine, "_begin_after", lambda step: replace(made, results=boom) if (made := real(step)) else made
    )
    requests = [engine.add(prompt, GREEDY) for prompt in prompts]
    with pytest.raises(KeyboardInterrupt):
        while True:
            engine.step()
    monkeypatch.setattr(engine, "_begin_after", real)
    while any(request.finish_reason is None for request in requests):
        engine.step()
    assert [tuple(request.generated) for request in requests] == wanted
    engine.verify()
    assert engine.scheduler.pool.free == llm.runner.sizes.pages
    assert device is llm.runner.place.device
    llm.close()


def boom() -> None:
    raise KeyboardInterrupt


def interrupt(patch: pytest.MonkeyPatch, owner: object, name: str, after: int) -> None:
    """The call of ``owner``'s method that follows ``after`` others is interrupted."""
    method, left = getattr(owner, name), [after]

    def call(*args: object, **named: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return method(*args, **named)

    patch.setattr(owner, name, call)


def test_what_is_being_generated_is_found_by_others(tiny_model: MakeTiny, here: LLM) -> None:
    """Pages enter the prefix cache while steps are ahead as they do on the host."""
    with on_accelerator():
        there = load(tiny_model)
    cached = []
    for llm in (here, there):
        first = llm.engine.add([5, 9, 20, 31], replace(GREEDY, max_tokens=30))
        while first.generated_count < 24:
            llm.engine.step()
        second = llm.engine.add(first.tokens[:24], replace(GREEDY, max_tokens=2))
        while second.finish_reason is None:
            llm.engine.step()
        llm.engine.abort(first)
        cached.append(second.cached)
    assert cached[1] >= cached[0] - 4 > 12
    there.close()


def test_a_queue_does_not_stop_it(tiny_model: MakeTiny) -> None:
    """Who waits for a place cannot be let in anyhow."""
    with on_accelerator():
        there = load(tiny_model)
    requests = [there.engine.add([5, 9, i], GREEDY) for i in range(12)]
    ahead = []
    while any(request.finish_reason is None for request in requests):
        there.engine.step()
        ahead.append(there.engine._ahead is not None)
    assert sum(ahead) > 0.7 * len(ahead)
    assert all(any(pair) for pair in pairwise(ahead[:-1]))
    there.close()


def test_memory_is_given_back(tiny_model: MakeTiny) -> None:
    with on_accelerator():
        llm = load(tiny_model)
    llm.generate([[4, 5]], GREEDY)
    held = [weakref.ref(array) for array in (*llm.runner.states.values(), *llm.runner.weights.mapped.values())]
    llm.close()
    gc.collect()
    assert not any(each() is not None for each in held)
