"""The same tiny models as GGUF files: interleaved rope, ready-made rope factors, every weight format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.gguf_files import write_gguf
from helpers.tiny import FAMILIES, TinyModel
from llmcore.llm import LLM

BACKENDS = ("torch", "numba")
PLAIN = [name for name in FAMILIES if name != "llama_dynamic"]  # GGUF has no such scaling
FORMAT_HAS = {  # converters write no beta_fast
    "llama_yarn": {"rope_parameters": {**FAMILIES["llama_yarn"][1]["rope_parameters"], "beta_fast": 32.0}}
}
BLOCKS_OF_32 = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
MakeTiny = Callable[..., TinyModel]
OpenLLM = Callable[..., LLM]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", PLAIN)
def test_float32_file_is_the_safetensors_model(
    tiny_model: MakeTiny, open_llm: OpenLLM, tmp_path: Path, family: str, backend: str
) -> None:
    """Llama's Q and K rows are reordered in the file; the logits are those of the original."""
    model = tiny_model(family, **FORMAT_HAS.get(family, {}))
    written = write_gguf(model, tmp_path / "tiny.gguf")
    ids = model.ids(40)
    llm = open_llm(written.path, backend)
    assert llm.spec.rope.interleaved == (model.config["model_type"] == "llama")
    assert bool(llm.spec.rope.freq_factors) == (family == "llama3")
    np.testing.assert_allclose(llm.logits(ids), model.logits(ids), rtol=0, atol=1e-4)


def check(llm: LLM, expected: np.ndarray, ids: list[int]) -> None:
    """As transformers with the same, dequantized weights; and the same token by token."""
    whole = llm.logits(ids)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(llm.logits(ids, 1), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("quant", BLOCKS_OF_32)
def test_formats_of_blocks_of_32(tiny_model: MakeTiny, open_llm: OpenLLM, tmp_path: Path, quant: str) -> None:
    """The reference has the dequantized weights."""
    model = tiny_model("qwen2_untied")
    written = write_gguf(model, tmp_path / "tiny.gguf", quant)
    ids = model.ids(30)
    expected = written.logits(ids)
    for backend in BACKENDS:
        check(open_llm(written.path, backend), expected, ids)


@pytest.mark.parametrize("quant", K_QUANTS)
def test_formats_of_blocks_of_256(tiny_model: MakeTiny, open_llm: OpenLLM, tmp_path: Path, quant: str) -> None:
    model = tiny_model("llama2", hidden_size=256, intermediate_size=256, num_hidden_layers=2)
    written = write_gguf(model, tmp_path / "tiny.gguf", quant)
    ids = model.ids(20)
    expected = written.logits(ids)
    for backend in BACKENDS:
        check(open_llm(written.path, backend), expected, ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_formats_and_a_tied_table(tiny_model: MakeTiny, open_llm: OpenLLM, tmp_path: Path, backend: str) -> None:
    """As published files have them: a table of one format that embeds and classifies, linears of others."""
    model = tiny_model("llama3")
    types = {"token_embd": "Q8_0", "ffn_down": "Q5_0", "attn_v": "F16"}
    written = write_gguf(model, tmp_path / "tiny.gguf", "Q4_1", types)
    ids = model.ids(30)
    llm = open_llm(written.path, backend)
    assert llm.spec.tied
    check(llm, written.logits(ids), ids)
