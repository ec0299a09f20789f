"""What shares a step with a sequence does not change its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from helpers.tiny import TinyModel
from llmcore.engine.batch import Work
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import RegistryError
from llmcore.llm import LLM

MakeTiny = Callable[..., TinyModel]
OpenLLM = Callable[..., LLM]


def run(llm: LLM, batch: Sequence[Work]) -> list[np.ndarray]:
    """One step; the logits of each of its sequences."""
    logits = llm.runner.run(batch).copy()
    return np.split(logits, np.cumsum([len(rows) for *_, rows in batch])[:-1])


def whole(ids: Sequence[int], pages: Sequence[int]) -> Work:
    return ids, 0, pages, range(len(ids))


@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3"])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_ragged_batch(tiny_model: MakeTiny, open_llm: OpenLLM, family: str, backend: str) -> None:
    """A prompt, the continuation of another and single tokens, on scattered pages: as if each were alone."""
    model = tiny_model(family)
    llm = open_llm(model, backend)
    a, b, c = model.ids(19, seed=1), model.ids(13, seed=2), model.ids(25, seed=3)
    alone = [run(llm, [whole(ids, range(4))])[0] for ids in (a, b, c)]
    pages = ([9, 3, 30], [4, 17], [31, 0, 12, 5])
    run(llm, [(b[:12], 0, pages[1], ()), (c[:9], 0, pages[2], ())])
    batch = [(c[9:], 9, pages[2], range(16)), whole(a, pages[0]), (b[12:], 12, pages[1], [0])]
    together = run(llm, batch)
    expected = [alone[2][9:], alone[0], alone[1][12:]]
    for mine, single in zip(together, expected, strict=True):
        if backend == "numba":
            np.testing.assert_array_equal(mine, single)
        else:  # BLAS takes another path for other numbers of rows
            np.testing.assert_allclose(mine, single, rtol=0, atol=1e-5)


def test_numba_s_logits_do_not_depend_on_chunks(tiny_model: MakeTiny, open_llm: OpenLLM) -> None:
    model = tiny_model("llama3")
    llm, ids = open_llm(model, "numba"), model.ids(60)
    expected = llm.logits(ids)
    for chunk in (1, 5, 16, 33):
        np.testing.assert_array_equal(llm.logits(ids, chunk), expected)


@pytest.mark.parametrize(("backend", "kv_dtype"), [("numba", "bfloat16"), ("numba", "int8"), ("torch", "bfloat16")])
def test_a_smaller_cache(tiny_model: MakeTiny, open_llm: OpenLLM, backend: str, kv_dtype: str) -> None:
    """Nearly the same logits, but not the same; and they do not depend on chunks either."""
    model = tiny_model("qwen2")
    ids = model.ids(60)
    plain, small = (open_llm(model, backend, kv_dtype=each) for each in ("float32", kv_dtype))
    expected, found = plain.logits(ids), small.logits(ids)
    assert small.memory.kv_bytes < plain.memory.kv_bytes
    assert 0 < (found - expected).std() < 0.02 * expected.std()
    for chunk in (1, 17):
        if backend == "numba":
            np.testing.assert_array_equal(small.logits(ids, chunk), found)
    assert small.explain().kv_cache.dtype == kv_dtype


def test_a_cache_that_a_backend_does_not_offer(tiny_model: MakeTiny, open_llm: OpenLLM) -> None:
    with pytest.raises(RegistryError, match="not for a KV cache of int8") as error:
        open_llm(tiny_model("qwen2"), "torch", kv_dtype="int8")
    assert "offered by: numba, triton; torch offers float32, float16, bfloat16" in str(error.value)


def test_numba_s_logits_do_not_depend_on_threads(tiny_model: MakeTiny) -> None:
    model = tiny_model("qwen3")
    ids, found = model.ids(40), []
    for threads in (1, 2, 3):
        llm = LLM(str(model.path), backend=("numba",), compute="exact", threads=threads)
        found.append(llm.logits(ids))
        llm.close()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_greedy_ids_are_the_logits_argmax(tiny_model: MakeTiny, open_llm: OpenLLM, backend: str) -> None:
    model = tiny_model("qwen2")
    llm, ids = open_llm(model, backend), model.ids(30)
    logits = run(llm, [whole(ids, range(4))])[0]
    greedy = llm.runner.run([whole(ids, range(4))], head="ids")
    np.testing.assert_array_equal(greedy, logits.argmax(-1))


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_many_requests_are_answered_as_one_is(tiny_model: MakeTiny, open_llm: OpenLLM, backend: str) -> None:
    """More requests than sequences in a step, of different lengths: prompts queue, chunks and single tokens mix."""
    model = tiny_model("llama3")
    llm = open_llm(model, backend, max_batch_tokens=16, max_seqs=3)
    prompts = [model.ids(length, seed=length) for length in (1, 30, 7, 16, 17, 3)]
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    alone = [llm.generate(prompt, params)[0].token_ids for prompt in prompts]
    assert [answer.token_ids for answer in llm.generate(prompts, params)] == alone
    assert len(set(alone)) == len(prompts)


def test_generation_is_transformers(tiny_model: MakeTiny, open_llm: OpenLLM) -> None:
    """Greedy ids, cached, against transformers' own loop without a cache."""
    model = tiny_model("qwen3")
    ids = model.ids(11)
    ours = open_llm(model, "numba").generate(ids, SamplingParams(max_tokens=10, ignore_eos=True))[0].token_ids
    expected = list(ids)
    for _ in range(10):
        expected.append(int(model.logits(expected)[-1].argmax()))
    assert list(ours) == expected[len(ids) :]


@pytest.mark.parametrize(
    "ops",
    [{"rms_norm": "torch"}, {"linear": "torch", "add": "torch"}, {"attention": "torch"}, {"embedding": "torch"}],
    ids=lambda ops: next(iter(ops)),
)
def test_two_backends_in_one_program(tiny_model: MakeTiny, ops: dict[str, str]) -> None:
    model = tiny_model("llama3")
    ids = model.ids(40)
    llm = LLM(str(model.path), backend=("numba", "torch"), ops=ops, compute="exact", threads=2)
    np.testing.assert_allclose(llm.logits(ids), model.logits(ids), rtol=0, atol=1e-4)
    used = {(row.op, row.backend) for row in llm.explain(8).rows}
    for op, backend in ops.items():
        assert {where for name, where in used if name == op} == {backend}
    assert any(backend == "torch" for _, backend in used) and any(backend == "numba" for _, backend in used)
    llm.close()
