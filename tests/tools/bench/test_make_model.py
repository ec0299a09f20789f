"""``llmcore bench make-model``: files of random weights that load, and compute like a trained model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcore import LLM
from llmcore.cli.main import main
from llmcore.errors import LlmcoreError
from llmcore.weights.formats import FORMATS
from llmcore_tools.bench import make_model
from llmcore_tools.bench.make_model import QUANTIZED, Shape, write_model

TINY = Shape(2, 256, 4, 2, 64, 512, 600)


@pytest.mark.parametrize("quant", QUANTIZED)
def test_logits_are_of_the_size_of_a_trained_models(tmp_path: Path, quant: str) -> None:
    write_model(tmp_path / "tiny.gguf", TINY, FORMATS[quant], "tiny")
    llm = LLM(str(tmp_path / "tiny.gguf"), backend="torch", compute="exact", threads=1)
    logits = llm.logits(llm.tokenizer.encode("hello, wörld"))
    llm.close()
    assert llm.spec.tied
    assert 0.8 < logits.std() < 1.25
    assert len(set(logits.argmax(-1).tolist())) > len(logits) // 2


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(make_model.SHAPES, "tiny", Shape(1, 64, 2, 1, 32, 96, 300, tied=False))
    file = tmp_path / "tiny.gguf"
    command = ["bench", "make-model", "--shape", "tiny", "--format", "Q4_1", str(file)]
    assert main(command) == 0
    assert "tiny.gguf: 0.00 GB" in capsys.readouterr().err
    llm = LLM(str(file), backend="numba", threads=1, cache_packed=False)
    assert np.isfinite(llm.logits([1, 2, 3])).all()
    assert not llm.spec.tied
    llm.close()
    assert main(command) == 2
    assert "tiny.gguf exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "which shape?"),
        (("--shape", "llama-3.2", "x"), "there is no shape 'llama-3.2'"),
        (("--shape", "llama-3.2-1b", "--format", "Q8_1", "x"), "there is no quantized format 'Q8_1'"),
        (("--shape", "llama-3.2-1b"), "one file, not 0"),
    ],
)
def test_what_it_refuses(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "make-model", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match="blocks of 256"):
        write_model(tmp_path / "tiny.gguf", Shape(1, 64, 2, 1, 32, 96, 300), FORMATS["Q4_K"], "tiny")
    assert not list(tmp_path.iterdir())
