"""Whole models on the Triton backend against transformers, as a GPU runs them: memory there, decode steps recorded.

Without a GPU Triton's interpreter runs the kernels, and the CPU plays the device: no kernel, shape or copy is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.accelerator import on_accelerator
from helpers.gguf_files import write_gguf
from helpers.tiny import TinyModel
from llmcore import LLM, EngineSettings, SamplingParams

pytest.importorskip("triton")
MakeTiny = Callable[..., TinyModel]
Load = Callable[..., LLM]
SETTINGS = {"max_seqs": 2, "max_batch_tokens": 16, "max_rows": 16, "page_size": 4, "max_context": 32, "kv_pages": 16}
AGREES = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.06}  # rms of the difference over that of the logits


@pytest.fixture
def load() -> Iterator[Load]:
    loaded: list[LLM] = []

    def make(path: Path, dtype: str = "float32", backend: tuple[str, ...] = ("triton",), **settings: object) -> LLM:
        with on_accelerator(dtype):
            engine = EngineSettings(**{**SETTINGS, **settings})
            loaded.append(LLM(str(path), backend=backend, engine=engine, threads=1))
        return loaded[-1]

    yield make
    for llm in loaded:
        llm.close()


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """The difference as a share of what logits differ by."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


@pytest.mark.parametrize("family", ["llama3", "qwen2_untied", "qwen3"])
def test_logits_and_greedy_tokens(tiny_model: MakeTiny, load: Load, family: str) -> None:
    """A prompt at once, its last part by itself, and then two sequences a token at a time."""
    model = tiny_model(family)
    llm = load(model.path)
    ids = model.ids(14)
    wanted = model.logits(ids)
    for chunk in (16, 11):
        assert distance(llm.logits(ids, chunk), wanted) < AGREES["float32"]
    prompts = [ids[:5], ids[5:8]]
    for prompt, answer in zip(
        prompts, llm.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True)), strict=True
    ):
        whole = [*prompt, *answer.token_ids]
        assert list(answer.token_ids) == model.logits(whole)[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert {row.backend for row in llm.explain().rows} == {"triton"}
    recorded = [program for (_, _, one_each), program in llm.runner.programs.items() if one_each]
    assert recorded and all([segment.kind for segment in program.segments] == ["captured"] for program in recorded)
    decode = next(iter(recorded)).rows
    assert {row.kernel for row in decode if row.op == "attention"} == {"llmcore_triton.attention:attention_decode"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_activations(tiny_model: MakeTiny, load: Load, dtype: str) -> None:
    """No further from float32 than torch's kernels are; a cache of int8 costs little beside."""
    model = tiny_model("llama3")
    ids = model.ids(12)
    wanted = model.logits(ids)
    found = distance(load(model.path, dtype).logits(ids), wanted)
    assert 1e-4 < found < AGREES[dtype]
    assert found < 1.5 * distance(load(model.path, dtype, backend=("torch",)).logits(ids), wanted)
    assert distance(load(model.path, dtype, kv_dtype="int8").logits(ids), wanted) < found + 0.03


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_1"])
def test_packed_weights(tiny_model: MakeTiny, load: Load, tmp_path: Path, quant: str) -> None:
    """Against transformers on the dequantized weights; prompt and decode take different kernels."""
    model = tiny_model("qwen2_untied")
    written = write_gguf(model, tmp_path / "tiny.gguf", quant)
    ids = model.ids(7)
    llm, wanted = load(written.path), written.logits(ids)
    assert distance(llm.logits(ids), wanted) < AGREES["float32"]
    llm.runner.run([(ids[:6], 0, [0, 1], ())])
    last = llm.runner.fetch([(ids[6:], 6, [0, 1], (0,)), ([3], 0, [2], (0,))])[0]
    assert ("logits", 2, True) in llm.runner.programs
    assert distance(last, wanted[-1]) < AGREES["float32"]


def test_on_the_host(tiny_model: MakeTiny) -> None:
    """A kernel author's way without a GPU: ``backend=triton engine.device=cpu`` with TRITON_INTERPRET=1."""
    from llmcore_triton.device import INTERPRETING

    if not INTERPRETING:
        pytest.skip("kernels are compiled here, for a GPU")
    model = tiny_model("llama2")
    llm = LLM(str(model.path), backend="triton", engine=EngineSettings(**SETTINGS, device="cpu"), threads=1)
    ids = model.ids(9)
    assert distance(llm.logits(ids), model.logits(ids)) < AGREES["float32"]
    assert {row.backend for row in llm.explain(16).rows} == {"triton"}
    llm.close()
