"""Vectors of texts: transformers' hidden states, pooled; beside running answers, and without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch

from helpers.tiny import TinyModel
from llmcore.async_llm import AsyncLLM
from llmcore.engine.embedding import Embedding
from llmcore.engine.load import EngineSettings
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import GenerationError, RequestError
from llmcore.llm import LLM

MakeTiny = Callable[..., TinyModel]


def opened(model: TinyModel, backend: str = "numba", **sizes: int) -> LLM:
    return LLM(str(model.path), backend=backend, compute="exact", threads=1, engine=EngineSettings(**sizes))


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_as_transformers(tiny_model: MakeTiny, backend: str, pooling: str) -> None:
    model = tiny_model("qwen2")
    ids = model.ids(40)
    with torch.no_grad():
        states = model.reference().model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    want = states.mean(0) if pooling == "mean" else states[-1]
    want /= np.linalg.norm(want)
    for rows in (64, 7):  # whole, and in chunks
        llm = opened(model, backend, max_rows=rows, max_seqs=4)
        np.testing.assert_allclose(llm.embed(ids, pooling)[0], want, atol=1e-4)
        assert llm.embed([]).shape == (0, states.shape[1])
        llm.close()


def test_beside_answers(tiny_model: MakeTiny) -> None:
    """The same vectors and the same tokens as alone; in the end every page is free."""
    model = tiny_model("llama3")
    llm = opened(model, kv_pages=8, max_rows=8, max_seqs=4)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    texts, prompts = [model.ids(n, seed=n) for n in (1, 20, 50)], [model.ids(n, seed=n) for n in (3, 30)]
    vectors = llm.embed(texts)
    alone = [llm.generate(prompt, params)[0].token_ids for prompt in prompts]
    free = llm.engine.scheduler.pool.free

    async def both() -> None:
        async with AsyncLLM(llm) as shared:
            jobs = [shared.embed(text) for text in texts]
            found = await asyncio.gather(*(shared.generate(prompt, params) for prompt in prompts), *jobs)
            assert [answer.token_ids for answer in found[:2]] == alone
            np.testing.assert_array_equal([vector for vector, _ in found[2:]], vectors)
            assert [count for _, count in found[2:]] == [1, 20, 50]
            task = asyncio.create_task(shared.embed(texts[2]))
            await asyncio.sleep(0)
            task.cancel()
            while shared.unfinished:
                await asyncio.sleep(0.001)
            llm.engine.verify()
            assert llm.engine.scheduler.pool.free == free

    asyncio.run(both())


def test_what_goes_wrong(tiny_model: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = opened(tiny_model("llama3"))
    for ids, pooling in (([], "mean"), ([10**6], "mean"), ([1] * 1000, "mean"), ([1], "max")):
        with pytest.raises(RequestError):
            Embedding(llm.engine, ids, pooling)

    async def fail() -> None:
        async with AsyncLLM(llm) as shared:
            run = llm.runner.run
            monkeypatch.setattr(llm.runner, "run", lambda *_: (_ for _ in ()).throw(ZeroDivisionError("a kernel")))
            with pytest.raises(GenerationError, match="a kernel"):
                await shared.embed([1, 2, 3])
            monkeypatch.setattr(llm.runner, "run", run)
            assert (await shared.embed([1, 2, 3]))[1] == 3
            llm.engine.verify()

    asyncio.run(fail())
