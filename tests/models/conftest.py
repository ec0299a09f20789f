"""Opens tiny models with the sizes that these tests need, and closes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore.engine.load import EngineSettings
from llmcore.llm import LLM

OpenLLM = Callable[..., LLM]


@pytest.fixture
def open_llm() -> Iterator[OpenLLM]:
    """``open_llm(model or path, backend, **engine sizes)``: exact compute."""
    opened: list[LLM] = []

    def make(model: TinyModel | Path, backend: str, **sizes: Any) -> LLM:
        path = model.path if isinstance(model, TinyModel) else model
        settings = EngineSettings(**{"max_batch_tokens": 64, "max_seqs": 4, "page_size": 8, "kv_pages": 32, **sizes})
        threads = 2 if backend == "numba" else 1  # torch's wait for each other in every op, long on a busy machine
        opened.append(LLM(str(path), backend=(backend,), compute="exact", threads=threads, engine=settings))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()
