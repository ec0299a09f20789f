"""Stage ``decode``: tokens per second of published shapes with random weights, against what the memory allows.

The engine runs as it does for anybody: its host loop, greedy sampling, pages of the KV cache. The floor of a step is
the bytes that it must read, those of the weights as they are stored and those of all keys and values once, over the
bandwidth that the same run has measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from llmcore.device import Place
from llmcore.device.base import numpy_dtype
from llmcore.engine.request import Request
from llmcore_tools.gpu.check_context import Context, Finding, Value
from llmcore_tools.gpu.check_random import Loaded, alike, load, read_bytes, sizes_for
from llmcore_tools.gpu.check_shapes import GOALS, LLAMA_1B, LLAMA_8B, MODELS, QWEN3_8B, QWEN25_7B, TOY
from llmcore_tools.gpu.check_timing import bandwidth, seconds, settled

FORMATS = ("BF16", "Q8_0", "Q4_0")
ORDER = (LLAMA_8B, LLAMA_1B, QWEN3_8B, QWEN25_7B)
NEEDS_S = 8.0


@dataclass(frozen=True)
class Load:
    """What is asked of the engine: answers of ``tokens`` for each of ``batch`` prompts of ``prompt`` tokens."""

    batch: int
    prompt: int = 992
    tokens: int = 64
    samples: int = 3


def run(context: Context) -> None:
    """Batches of 1 and 64; the most telling models and formats first."""
    read = bandwidth(context)
    if context.rehearse:
        loads = (Load(1, 3, 2, 1), Load(2, 3, 2, 1))
        context.attempt("toy", partial(measure, context, "toy", TOY, "Q8_0", loads, read))
        return
    for form in FORMATS:
        for name in ORDER:
            action = partial(measure, context, name, MODELS[name], form, (Load(1), Load(64)), read)
            context.attempt(f"{name}, {form}", action, NEEDS_S)


def measure(
    context: Context, name: str, config: Mapping[str, Any], form: str, loads: tuple[Load, ...], read: float
) -> None:
    """Loads a model once, and measures it under each of ``loads``."""
    longest = max(load.prompt + load.tokens * (load.samples + 1) for load in loads) + 16
    most = max(load.batch for load in loads)
    tokens = 8 if context.rehearse else 4096
    sizes = sizes_for(tokens=tokens, seqs=most, rows=most, context=longest, buckets=() if context.rehearse else (64,))
    checkpoint = alike(config, form)
    batches = [each.batch for each in loads]
    place = Place(context.device, "bfloat16")
    model = load(checkpoint, place, sizes, shared=True, ops=context.ops, batches=batches)
    for each in loads:
        step_s, depth = engine_step_s(model, each)
        nbytes = read_bytes(checkpoint) + each.batch * depth * token_bytes(model)
        floor_s = nbytes / read / 1e9
        replay_s = replayed_s(model, each.batch)
        goal = GOALS[name][form][each.batch > 1] if name in GOALS else 0.0
        values: dict[str, Value] = {
            "tok/s": each.batch / step_s,
            "floor tok/s": each.batch / floor_s,
            "ms/step": 1e3 * step_s,
            "ms/replay": 1e3 * replay_s,
            "% of floor": 100 * floor_s / step_s,
            "goal %": 100 * goal,
            "% replayed": 100 * floor_s / replay_s,
        }
        verdict = context.judged(floor_s / step_s, goal)
        context.add(Finding(f"{name}, {form}, batch {each.batch}, {depth:.0f} tokens", verdict, values))


def engine_step_s(model: Loaded, asked: Load) -> tuple[float, float]:
    """Seconds of a decode step of the engine, host and sampling included, and the mean length of a sequence meanwhile.

    Prompts differ, and no page is shared.
    """
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, model.runner.vocab, (asked.batch, asked.prompt)).tolist()
    steps = asked.tokens
    requests = model.add(prompts, steps * (asked.samples + 1) + 8)
    while any(not request.generated_count for request in requests):
        model.engine.step()
    _steps(model, 2)
    taken, first = [], _depth(requests)
    for _ in range(asked.samples):
        start, before = settled(model.device), model.engine.counters.steps
        _steps(model, steps)
        taken.append((settled(model.device) - start) / (model.engine.counters.steps - before))
    depth = (first + _depth(requests)) / 2
    failed = [request.error for request in requests if request.finish_reason]
    for request in requests:
        model.engine.abort(request)
    while model.engine.busy:
        model.engine.step()
    model.engine.step()  # a step that was under way
    assert not failed, f"requests ended before they were measured: {failed[0]}"
    return median(taken), depth


def _steps(model: Loaded, count: int) -> None:
    for _ in range(count):
        model.engine.step()


def _depth(requests: list[Request]) -> float:
    return sum(len(request.tokens) for request in requests) / len(requests)


def replayed_s(model: Loaded, batch: int) -> float:
    """Seconds of the recorded step alone, over what the last one of the engine has left in its inputs."""
    runner = model.runner
    runner.inputs.set_sizes(batch, batch, batch)
    program = runner.program("ids", batch, one_each=True)
    inner = 8 if model.device.kind == "cuda" else 1
    return seconds(model.device, program.run, repeats=5, inner=inner).median


def token_bytes(model: Loaded) -> int:
    """Bytes of one token's keys and values in all layers, padding left out: the least that must be read."""
    spec = model.spec
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * numpy_dtype(model.runner.registry.kv_dtype).itemsize
