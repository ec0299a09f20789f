"""A model whose packed weights are mapped from the cache computes the same bits as one that has just packed them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny import TinyModel
from llmcore.errors import CheckpointError
from llmcore.llm import LLM
from llmcore.weights import ledger

IDS = [1, 260, 11129, 30, 472, 327, 2056, 905]


def load(path: Path, cache: Path, *, keep: bool) -> tuple[np.ndarray, list[int], int]:
    """Logits, greedy tokens, and bytes of repacked weights."""
    llm = LLM(str(path), backend="numba", threads=2, cache_dir=cache, cache_packed=keep)
    try:
        return llm.logits(IDS), list(llm.generate(IDS)[0].token_ids), llm.memory.weights_repacked_bytes
    finally:
        llm.close()


def test_same_bits_from_the_cache(smollm2_path: Path, tmp_path: Path) -> None:
    plain = load(smollm2_path, tmp_path / "off", keep=False)
    assert not (tmp_path / "off").exists()
    first = load(smollm2_path, tmp_path / "on", keep=True)
    (file,) = (tmp_path / "on" / "packed").glob("*.safetensors")
    written = file.stat()
    second = load(smollm2_path, tmp_path / "on", keep=True)
    assert (file.stat().st_ino, file.stat().st_size) == (written.st_ino, written.st_size)  # mapped, not made again
    for logits, tokens, nbytes in (first, second):
        assert logits.tobytes() == plain[0].tobytes()
        assert (tokens, nbytes) == plain[1:]


def test_weights_that_became_nan_are_refused(
    tiny_model: Callable[..., TinyModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SETTLED_NS", -1)
    monkeypatch.setattr(ledger.Ledger, "at", lambda _: ledger.Ledger(notes, least=0))
    notes, model = tmp_path / "notes", tmp_path / "model"
    notes.mkdir()
    shutil.copytree(tiny_model("llama2").path, model)
    for _ in range(2):
        LLM(str(model), backend="numba").close()
    assert list(notes.glob("*.json"))
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff" * 4)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="not finite"):
            LLM(str(model), backend="numba")
