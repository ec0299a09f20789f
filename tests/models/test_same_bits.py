"""The same answer, bit for bit, whatever else the engine does: tokens, texts, log-probabilities (Numba backend).

Requests: greedy, drawn (top-k, top-p, min-p), with penalties, with log-probabilities, with a JSON schema.
Circumstances: alone, among 31 strangers that come and go, without and with a prefix cache that knows the prompt, in
chunks, preempted; over each element type of the KV cache. All of it is compared with ``==``, floats included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helpers.company import STRANGERS, Circumstances, Probe, answers, probes
from helpers.gguf_files import write_gguf
from helpers.tiny import TinyModel
from llmcore.engine.load import EngineSettings
from llmcore.llm import LLM

pytest.importorskip("llguidance", reason="answers of a given form need llguidance")

MakeTiny = Callable[..., TinyModel]
TEXT = Path(__file__).parents[1] / "data" / "us_constitution.txt"  # public domain
KV_DTYPES = ("float32", "bfloat16", "int8")
LENGTHS = {"greedy": 37, "drawn": 280, "penalties": 5, "logprobs": 130, "schema": 70}  # 280: more than a part of 256
SETTINGS = EngineSettings(max_seqs=STRANGERS + 1, max_batch_tokens=512, page_size=8, max_context=400)
ENDING = {ord('"'): 4.0, ord("}"): 4.0, ord(" "): -100.0, ord("\n"): -100.0}  # a random model goes on
FEW = 48  # pages: the longest request needs 38
CIRCUMSTANCES = {
    "cache": Circumstances(cache=True),
    "warm": Circumstances(cache=True, warm=True),
    "chunks": Circumstances(tokens=7),
    "preempted": Circumstances(famine=True),
    "preempted, cache, chunks": Circumstances(cache=True, tokens=50, famine=True),
    "strangers": Circumstances(STRANGERS),
    "strangers, chunks": Circumstances(STRANGERS, tokens=80, seed=1),
    "strangers, warm": Circumstances(STRANGERS, cache=True, warm=True, seed=2),
    "strangers, preempted": Circumstances(STRANGERS, pages=FEW, seed=3),
    "strangers, warm, chunks, preempted": Circumstances(STRANGERS, cache=True, warm=True, tokens=33, pages=FEW, seed=7),
    "strangers, famine": Circumstances(STRANGERS, cache=True, tokens=80, famine=True, seed=5),
}


class Model:
    """A loaded model, what it is asked, and what it answers alone, all at once, without a prefix cache."""

    def __init__(self, llm: LLM, asked: dict[str, Probe]) -> None:
        """Asks."""
        self.llm = llm
        self.asked = asked
        self.alone = answers(llm, asked, Circumstances())[0]


def check(model: Model, circumstances: Circumstances) -> None:
    """The same answers, and the circumstances are those that were wanted."""
    found, met = answers(model.llm, model.asked, circumstances)
    for name, answer in model.alone.items():
        assert found[name] == answer, name
    if circumstances.strangers and not (circumstances.pages or circumstances.famine):
        few = circumstances.tokens > 0  # prompts come in slowly
        assert met.running == STRANGERS + 1 or (few and met.running > 2 / 3 * STRANGERS)
    if circumstances.tokens:
        assert met.chunks > 1
    if circumstances.pages or circumstances.famine:
        assert met.preemptions > 0
        assert met.preempted > 0 or circumstances.famine
        assert met.preempted == len(found) or circumstances.strangers
    elif circumstances.warm:
        page = model.llm.runner.sizes.page_size
        lengths = (len(prompt) for prompt, _ in model.asked.values())
        assert met.cached == tuple((length - 1) // page * page for length in lengths)
    elif not circumstances.cache:
        assert not any(met.cached)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "Q4_1"])
def weights(request: pytest.FixtureRequest, tiny_model: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that are multiplied with activations as they are, rounded to bfloat16, and quantized."""
    if request.param == "float32":
        return tiny_model("llama3", max_position_embeddings=512).path
    if request.param == "bfloat16":
        return tiny_model("qwen3", max_position_embeddings=512, dtype="bfloat16").path
    model = tiny_model("qwen2", max_position_embeddings=512)
    return write_gguf(model, tmp_path_factory.mktemp("bits") / "tiny.gguf", "Q4_1").path


@pytest.fixture(scope="module", params=KV_DTYPES)
def model(request: pytest.FixtureRequest, weights: Path) -> Iterator[Model]:
    llm = LLM(str(weights), backend="numba", threads=2, engine=replace(SETTINGS, kv_dtype=request.param))
    prompts = {name: [(7 * i + 3 * len(name)) % 251 for i in range(length)] for name, length in LENGTHS.items()}
    yield Model(llm, probes(prompts, ENDING))
    llm.close()


def test_the_requests_are_worth_asking(model: Model) -> None:
    """They differ from each other, the schema's is whole, and log-probabilities are there."""
    alone = model.alone
    assert len({answer.token_ids for answer in alone.values()}) == len(alone)
    assert set(json.loads(alone["schema"].text)) == {"name", "age"}
    assert alone["schema"].finish_reason == "stop"
    assert [len(entry.top) for entry in alone["logprobs"].logprobs] == [7] * 24
    assert len({entry.logprob for entry in alone["logprobs"].logprobs}) > 12


@pytest.mark.parametrize("circumstances", CIRCUMSTANCES.values(), ids=CIRCUMSTANCES)
def test_the_same_bits(model: Model, circumstances: Circumstances) -> None:
    check(model, circumstances)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes long
@given(data=st.data())
def test_the_same_bits_whatever_is_asked(model: Model, data: st.DataObject) -> None:
    """Requests, strangers and circumstances are drawn."""
    draw, size = data.draw, st.integers(1, 300)
    chance = np.random.default_rng(draw(st.integers(0, 999)))
    prompts = {name: chance.integers(0, 280, draw(size)).tolist() for name in LENGTHS}
    asked = {
        name: (prompt, replace(params, seed=draw(st.integers(0, 2**63 - 1)), temperature=params.temperature * factor))
        for name, (prompt, params) in probes(prompts, ENDING, new=draw(st.integers(1, 30))).items()
        for factor in (draw(st.floats(0.3, 2)),)
    }
    cache = draw(st.booleans())
    circumstances = Circumstances(
        strangers=draw(st.sampled_from([0, 7, STRANGERS])),
        cache=cache,
        warm=cache and draw(st.booleans()),
        tokens=draw(st.sampled_from([0, 0, 5, 33, 90])),
        pages=draw(st.sampled_from([0, 0, 50, 90])),
        famine=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
    )
    expected, _ = answers(model.llm, asked, Circumstances())
    found, _ = answers(model.llm, asked, circumstances)
    for name, answer in expected.items():
        assert found[name] == answer, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_the_same_bits_of_the_default_model(smollm2_path: Path, kv_dtype: str) -> None:
    """SmolLM2-135M as it is published: prompts are pages of a text."""
    sizes = EngineSettings(max_seqs=STRANGERS + 1, max_context=1024, kv_dtype=kv_dtype)
    llm = LLM(str(smollm2_path), backend="numba", threads=2, engine=sizes)
    ids = llm.encode(TEXT.read_text())
    prompts = {name: ids[2 * length : 3 * length] for name, length in LENGTHS.items()}
    model = Model(llm, probes(prompts, {}))
    assert len({answer.token_ids for answer in model.alone.values()}) == len(model.alone)
    try:
        for name, circumstances in CIRCUMSTANCES.items():
            pages = FEW // 2 if circumstances.pages else 0  # of 16 tokens
            check(model, replace(circumstances, pages=pages))
            print(f"{kv_dtype}, {name}: the same")
    finally:
        llm.close()
