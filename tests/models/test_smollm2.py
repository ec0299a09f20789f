"""SmolLM2-135M with its real weights: both backends against transformers in float32 on the same dequantized tensors."""

from pathlib import Path

import numpy as np
import pytest

from llmcore import LLM, SamplingParams
from llmcore.verify import common, compare, perplexity, transformers_trace

TEXT = Path(__file__).parents[1] / "data" / "us_constitution.txt"  # public domain
TOKENS = 256


@pytest.fixture(scope="module")
def loaded(smollm2_path):
    """The model on both backends; transformers reads the same file."""
    models = {
        name: LLM(str(smollm2_path), backend=name, compute="exact", threads=2, taps=True) for name in ("numba", "torch")
    }
    yield models
    for llm in models.values():
        llm.close()


def test_logits_perplexity_and_blocks_are_those_of_transformers(loaded, smollm2_path):
    ids = loaded["numba"].tokenizer.encode(TEXT.read_text())[:TOKENS]
    reference = transformers_trace(smollm2_path, ids)
    for llm in loaded.values():
        report = compare(*common(llm.trace(ids), reference), ids)
        assert report.logits.max_error <= 1e-3
        assert report.top1_agreement == 1.0
        assert report.first_divergent is None
        assert len(report.layers) == llm.spec.layers + 1
        assert abs(report.perplexity_change) < 1e-5


def test_perplexity_of_the_constitution(loaded):
    ids = loaded["numba"].tokenizer.encode(TEXT.read_text())[:1024]
    assert len(ids) == 1024
    found = perplexity(loaded["numba"].logits(ids), ids)
    assert found == pytest.approx(7.06, rel=0.005)


def test_default_path_stays_close_to_float32(loaded, smollm2_path):
    """Activations in 8 bits, few groups in 15: the likelihood of a text, and nearly always the same best token."""
    ids = loaded["numba"].tokenizer.encode(TEXT.read_text())[:1024]
    exact = loaded["numba"].logits(ids)
    llm = LLM(str(smollm2_path), backend="numba", threads=2)
    try:
        found = llm.logits(ids)
        one_by_one = llm.logits(ids[:40], 1)  # such steps have kernels of their own
        answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}])
    finally:
        llm.close()
    assert "Paris" in answer.text
    np.testing.assert_array_equal(one_by_one, found[:40])
    assert not np.array_equal(found, exact)
    assert perplexity(found, ids) == pytest.approx(perplexity(exact, ids), rel=0.01)
    assert np.mean(found.argmax(-1) == exact.argmax(-1)) >= 0.97


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quant", ["as published", "Q8_0", "Q4_0", "Q5_1"])  # together, all packings
def test_accuracy_over_a_thousand_tokens(smollm2_path, requantized, lee_path, quant):
    """Against float32 on the same dequantized weights: perplexity and the best token, teacher-forced."""
    path = str(smollm2_path if quant == "as published" else requantized(quant))
    texts = {"constitution": TEXT.read_text(), "lee": lee_path.read_text()}
    known = {"constitution": 7.06, "lee": 28.0}  # transformers, of the published file
    found = {}
    for name, settings in {
        "float32": {"backend": "torch", "compute": "exact"},
        "exact": {"backend": "numba", "compute": "exact"},
        "default": {"backend": "numba", "cache_packed": quant == "as published"},
    }.items():
        llm = LLM(path, threads=2 if name != "float32" else 1, **settings)  # torch's wait long on a busy machine
        for text, content in texts.items():
            ids = llm.tokenizer.encode(content)[:1024]
            logits = llm.logits(ids)
            found[name, text] = perplexity(logits, ids), logits.argmax(-1)
        llm.close()
    for text in texts:
        want, best = found["float32", text]
        if quant == "as published":
            assert want == pytest.approx(known[text], rel=0.005)
        for name, most in (("exact", 0.0005), ("default", 0.01)):
            perplexity_, choices = found[name, text]
            change, agreement = perplexity_ / want - 1, np.mean(choices == best)
            print(f"{quant}, {text}, {name}: perplexity {perplexity_:.4f} ({change:+.3%}), same best {agreement:.2%}")
            assert abs(change) <= most
            assert agreement >= 0.97


def test_it_knows_the_capital_of_france(loaded):
    for llm in loaded.values():
        assert "Paris" in llm.generate("The capital of France is", SamplingParams(max_tokens=4))[0].text
        answer = llm.chat(
            [{"role": "user", "content": "What is the capital of France?"}], SamplingParams(max_tokens=16)
        )
        assert "Paris" in answer.text
        assert answer.finish_reason == "stop"


def test_the_arena_holds_workspaces_too_and_is_tight(smollm2_path):
    llm = LLM(str(smollm2_path), backend="numba", threads=1)
    memory = llm.memory
    llm.close()
    assert memory.weights_mapped_bytes < 40_000_000  # the embedding, and norms
    assert memory.weights_repacked_bytes > 96_000_000
    assert memory.arena_bytes <= 1.10 * memory.arena_lower_bound


def test_weights_stay_mapped_and_the_arena_is_tight(loaded):
    memory = loaded["numba"].memory
    assert memory.weights_repacked_bytes == 0
    assert memory.weights_mapped_bytes > 96_000_000
    assert memory.arena_bytes <= 1.10 * memory.arena_lower_bound
