"""A look inside a loaded model: what its blocks compute, how a step is run, what memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmcore.engine.engine import Engine
from llmcore.engine.results import Explanation, KVCacheUse, MemoryUse
from llmcore.engine.runner import Runner
from llmcore.errors import ConfigError, RequestError

Array = np.ndarray[Any, Any]


def trace(engine: Engine, ids: Sequence[int], chunk: int | None = None) -> dict[str, Array]:
    """The logits of every position of ``ids``, and each tap, float32 ``[tokens, …]``, ``chunk`` tokens at a time.

    Raises:
        RequestError: a chunk below one, or more tokens than the context or the free KV pages hold.
    """
    runner, pool = engine.runner, engine.scheduler.pool
    sizes = runner.sizes
    if chunk is not None and chunk < 1:
        raise RequestError(f"chunk is {chunk}", field="chunk", remedy="it must be at least 1")
    step = min(chunk or sizes.rows, sizes.rows, sizes.tokens)
    needed = -(-len(ids) // sizes.page_size)
    with engine.lock, runner.place.device.scope():  # a step writes the same inputs
        if len(ids) > sizes.context or not pool.can_allocate(needed):
            raise RequestError(
                f"{len(ids)} tokens do not fit the context of {sizes.context}, or the free KV pages",
                field="token_ids",
                remedy="raise engine.max_context, or score fewer",
            )
        outputs = {name: runner.outputs[name] for name in runner.graph.outputs}
        found = {name: np.empty((len(ids), output.shape[1]), np.float32) for name, output in outputs.items()}
        pages = pool.allocate(needed)
        try:
            for start in range(0, len(ids), step):
                part = ids[start : start + step]
                runner.run([(part, start, pages, range(len(part)))])
                for name, output in outputs.items():
                    found[name][start : start + len(part)] = runner.place.device.fetch(output[: len(part)])
        finally:
            pool.release(pages)
    return found


def explain(engine: Engine, tokens: int) -> Explanation:
    """How a step of ``tokens`` tokens is run: the model's nodes with greedy decoding, then the sampler's.

    On an accelerator it is the step of so many sequences with a token each, where there can be as many.

    Raises:
        ConfigError: a step cannot have so many tokens.
    """
    most = engine.runner.sizes.tokens
    if not 1 <= tokens <= most:
        raise ConfigError(f"tokens is {tokens}", remedy=f"a step has 1 to {most} tokens")
    runner = engine.runner
    one_each = bool(runner.recorded) and tokens <= runner.sizes.seqs
    program = runner.program("ids", tokens, one_each=one_each)
    sampling = engine.launcher.sampler.program((True, True, True))
    plan, offset = program.plan, len(program.segments)
    return Explanation(
        tokens,
        (*program.rows, *(replace(row, segment=row.segment + offset) for row in sampling.rows)),
        tuple((segment.kind, len(segment.nodes)) for segment in (*program.segments, *sampling.segments)),
        plan.nbytes,
        plan.lower_bound,
        plan.total,
        plan.reuse,
        _kv_cache(runner),
        runner.place.device.name,
        runner.place.dtype,
    )


def _kv_cache(runner: Runner) -> KVCacheUse:
    layout, sizes = runner.kv_layout, runner.sizes
    name = f"{layout.name} v{layout.version}"
    token_bytes = runner.kv_bytes // (sizes.pages * sizes.page_size)
    return KVCacheUse(runner.registry.kv_dtype, name, sizes.pages, sizes.page_size, token_bytes)


def memory(runner: Runner) -> MemoryUse:
    """What a model uses now."""
    arena, store = int(runner.compiler.arena.nbytes), runner.weights
    return MemoryUse(arena, runner.arena_bound, runner.kv_bytes, store.mapped_bytes, store.repacked_bytes)
