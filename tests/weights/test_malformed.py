"""Malformed checkpoints: each is a typed error that names the file and the place, in bounded memory and time.

The tables are ``helpers.malformed_gguf`` and ``helpers.malformed_safetensors``; ``pytest -v`` prints them.
"""

from __future__ import annotations

import random
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import llmcore_gguf.plugin
import llmcore_safetensors.plugin
from helpers import malformed_gguf, malformed_safetensors
from helpers.container_bytes import CONFIG, WANTED, gguf, safetensors
from helpers.malformed import Malformed
from llmcore.errors import CheckpointError, LlmcoreError
from llmcore.plugins import Plugins
from llmcore.weights import check_finite, claim, open_checkpoint

CASES = [*malformed_gguf.cases(), *malformed_safetensors.cases()]
MEMORY_LIMIT = 200_000_000
FORMATS = [*llmcore_gguf.plugin.llmcore_formats(), *llmcore_safetensors.plugin.llmcore_formats()]
PLUGINS = Plugins(formats={info.name: info for info in FORMATS})


WHOLE_FILE = (  # faults that have no place in the file
    "nested too deep",
    "JSON that we read",
    "holds more than",
    "missing",
    "pickled",
    "no checkpoint format",
    "several files",
)


def names_a_place(error: LlmcoreError) -> bool:
    """Whether ``error`` says where in the file: by byte, by tensor, by key."""
    if isinstance(error, CheckpointError) and (error.offset is not None or error.tensor):
        return True
    return bool(getattr(error, "key", "")) or re.search(r"'[\w.]+'", error.message) is not None


def load(path: Path) -> None:
    """All that happens to a checkpoint before its weights are used."""
    with open_checkpoint(path, PLUGINS) as checkpoint:
        check_finite(claim(checkpoint, WANTED).values())


@contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()


def test_there_are_enough_cases() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 400
    print(f"{len(CASES)} malformed inputs")


def test_the_unspoilt_files_load(tmp_path: Path) -> None:
    (tmp_path / "good.gguf").write_bytes(gguf())
    load(tmp_path / "good.gguf")
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "config.json").write_bytes(CONFIG)
    load(tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_checkpoint_is_refused_by_file_and_place(case: Malformed, tmp_path: Path) -> None:
    opened, culprit = case.write(tmp_path)
    with bounded_memory(), pytest.raises(LlmcoreError) as caught:
        load(opened)
    error = caught.value
    assert str(culprit.resolve()) in str(error)
    assert case.says in str(error)
    assert names_a_place(error) or any(phrase in error.message for phrase in WHOLE_FILE)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_random_damage_to_a_header_is_an_error_or_harmless(kind: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"{kind}{seed}")
    whole, name = (gguf(), "m.gguf") if kind == "gguf" else (safetensors(), "model.safetensors")
    header = len(whole) - 640
    (tmp_path / "config.json").write_bytes(CONFIG)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(header)] = rng.choice((0, 0xFF, rng.randrange(256), ord(rng.choice('{}[]",:0919'))))
        (tmp_path / name).write_bytes(damaged)
        try:
            load(tmp_path / name)
            outcomes.add("harmless")
        except LlmcoreError as error:
            assert str(tmp_path / name) in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes
