"""A model whose packed weights are mapped from the cache computes the same bits as one that has just packed them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmcore.llm import LLM

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
