"""``llama_infer`` and ``qwen_infer`` as their users start them, in a working directory that must stay as it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.tiny import TinyModel

BIN = Path(sys.executable).parent
LITERAL = "Hello, мир! {a: 1e5} ${oc.env:HOME}"
ENGINE = ("engine.max_context=64", "engine.max_seqs=1", "threads=1")


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A user's folder, with names in it that we use too; nothing may appear there."""
    folder = tmp_path / "work"
    for name in ("conf", "plugins", "backends", "outputs_of_mine"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "conf" / "infer.yaml").write_text("threads: 77\n")
    before = sorted(folder.rglob("*"))
    yield folder
    assert sorted(folder.rglob("*")) == before


def start(folder: Path, command: str, *argv: str) -> subprocess.Popen[str]:
    """Starts a command with a prompt from nowhere but its arguments."""
    return subprocess.Popen(
        [str(BIN / command), *argv],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
    )


def run(folder: Path, command: str, *argv: str, code: int = 0) -> tuple[str, str]:
    """Runs a command to its end; returns stdout and stderr."""
    out, err = (process := start(folder, command, *argv)).communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def test_answers(workplace: Path, tiny_model: Callable[..., TinyModel]) -> None:
    path = tiny_model("llama3").path
    argv = ("--raw", "--prompt", LITERAL, f"model={path}", "max_new_tokens=5", "sampling.ignore_eos=true", *ENGINE)
    found = json.loads(run(workplace, "llama_infer", *argv, "--json")[0])
    assert len(found["token_ids"]) == 5
    assert found["finish_reason"] == "length"
    assert found["model"] == str(path)
    assert found["memory"]["arena_bytes"] <= 1.1 * found["memory"]["arena_lower_bound"]
    text, err = run(workplace, "llama_infer", *argv)
    assert text == found["text"] + "\n"
    assert err == ""
    from llmcore.text.tokenizer import load_tokenizer
    from llmcore.weights.checkpoint import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        tokenizer = load_tokenizer(checkpoint.tokenizer)
    assert tokenizer.decode(found["prompt_token_ids"]).endswith(LITERAL)


def test_a_model_of_another_family(workplace: Path, tiny_model: Callable[..., TinyModel]) -> None:
    out, err = run(workplace, "llama_infer", "--prompt", "x", f"model={tiny_model('qwen3').path}", code=2)
    assert out == ""
    assert "is a qwen model, not a llama model\n  → qwen_infer runs it" in err


def test_hydras_own_flags(workplace: Path) -> None:
    out, _ = run(workplace, "qwen_infer", "--info", "searchpath")
    assert "pkg://llmcore_conf" in out and "Provider" in out
    assert "seed: 7\n" in run(workplace, "qwen_infer", "seed=7", "--info", "config")[0]
    assert "Installed Hydra Plugins" in run(workplace, "qwen_infer", "seed=7", "--info")[0]
    out, _ = run(workplace, "qwen_infer", "--cfg", "job", "sampling=min_p", "model=qwen3_0_6b")
    assert "threads: 0\n" in out and "min_p: 0.1\n" in out and "ref: Qwen/Qwen3-0.6B\n" in out


def test_a_misspelt_key_and_a_model_that_is_not_there(workplace: Path) -> None:
    assert "did you mean 'threads'?" in run(workplace, "llama_infer", "--prompt", "x", "thread=1", code=2)[1]
    assert "no such file" in run(workplace, "llama_infer", "--prompt", "x", "model=./nowhere.gguf", code=2)[1]


def test_interrupts_and_closed_pipes_are_quiet(workplace: Path, tiny_model: Callable[..., TinyModel]) -> None:
    path = tiny_model("llama2", max_position_embeddings=4096).path
    argv = ("--raw", "--prompt", "a", f"model={path}", "max_new_tokens=4000", "sampling.ignore_eos=true", "threads=1")
    for end, code in ((lambda p: p.send_signal(signal.SIGINT), 130), (lambda p: p.stdout.close(), 141)):
        process = start(workplace, "llama_infer", *argv)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)  # it is answering
        end(process)
        assert process.wait(timeout=60) == code
        assert process.stderr.read() == ""
        process.stderr.close()
        process.stdout.close()
