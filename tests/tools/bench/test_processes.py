"""Start-up and memory of whole processes: what is timed, what it was given, and what is said when it fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore_tools.bench import processes
from llmcore_tools.bench.processes import ProcessError, Program

ANSWER = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([sys.argv[1:], os.environ.get("LLMCORE_CACHE")]) + "\\n")
print(" Paris")
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Calls of a command ``fake_infer`` on PATH."""
    script, found = tmp_path / "fake_infer", tmp_path / "calls"
    script.write_text(ANSWER.format(python=sys.executable, log=str(found)), encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("LLMCORE_CACHE", "the usual one")
    return found


def calls(log: Path) -> list[Any]:
    """Arguments and cache folder of every call."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


SETTINGS = ("model=smollm2", "model.sha256=null", "cache_dir=/x", "backend=numba")


def test_warm_starts(log: Path) -> None:
    series = processes.start_s(Program("fake_infer", SETTINGS, Path("/m.gguf")), 2)
    assert len(series.samples) == 2 and series.low > 0
    wanted = [*SETTINGS, "max_new_tokens=1", "--raw", "--prompt", processes.PROMPT]
    assert calls(log) == [[wanted, "the usual one"]] * 3, "the first run fills the caches and does not count"


def test_cold_starts_have_an_empty_cache_of_their_own_but_the_model(log: Path) -> None:
    processes.start_s(Program("fake_infer", SETTINGS, Path("/m.gguf")), 2, cold=True)
    (first, cache), (second, other) = calls(log)
    assert first == second
    assert first == ["backend=numba", "model=/m.gguf", "max_new_tokens=1", "--raw", "--prompt", processes.PROMPT]
    assert cache != other and not Path(cache).exists() and not Path(other).exists()


def test_a_process_that_fails_is_told(log: Path, tmp_path: Path) -> None:
    (tmp_path / "fake_infer").write_text("#!/bin/sh\necho so sorry >&2\nexit 7\n", encoding="utf-8")
    with pytest.raises(ProcessError, match="fake_infer ended with exit code 7: so sorry"):
        processes.start_s(Program("fake_infer", (), Path("/m.gguf")), 1)
    with pytest.raises(ProcessError, match="no_such_infer is not installed"):
        processes.start_s(Program("no_such_infer", (), Path("/m.gguf")), 1)


def test_the_command_is_the_familys() -> None:
    llm: Any = SimpleNamespace(family=SimpleNamespace(name="llama", command="llama_infer"), path=Path("/m"))
    assert Program.of(llm, ["max_new_tokens=9", "threads=1"]) == Program("llama_infer", ("threads=1",), Path("/m"))
    llm.family.command = ""
    with pytest.raises(ProcessError, match="names no command"):
        Program.of(llm, [])


@pytest.mark.parametrize(("each", "tokens", "words"), [(1, 10, 10), (3, 10, 3), (4, 100, 25), (9, 5, 1)])
def test_the_long_prompt_has_no_more_tokens_than_asked_for(each: int, tokens: int, words: int) -> None:
    llm: Any = SimpleNamespace(encode=lambda text: [0] * (each * text.count(processes.WORD)))
    assert processes.prompt_of(llm, tokens) == processes.WORD * words


def test_start_and_memory_of_a_tiny_model(
    tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", f"model={tiny_model('llama3').path}", "backend=numba", "threads=1", "--repeats", "1", "--json"]
    assert main([*argv, "--only", "start,memory", "--context", "40"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert set(found) == {"repeats", "start", "memory"} and set(found["start"]) == {"loaded", "warm"}
    memory = found["memory"]
    assert 30 <= memory["tokens"] <= 40
    assert memory["kv_bytes"] == memory["tokens"] * 3 * 2 * 2 * 16 * 4, "layers, keys and values, heads, size, float32"
    assert memory["peak_rss_bytes"] > memory["weights_bytes"] > 0
    assert "transformers" not in memory["imported"]
