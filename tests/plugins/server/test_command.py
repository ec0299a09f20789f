"""``llmcore serve`` as a process: what signals do to it, whatever it is about."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

from helpers.tiny import TinyModel

MakeTiny = Callable[..., TinyModel]
RUN = "import sys; from llmcore.cli.main import main; sys.exit(main(sys.argv[1:]))"
SLOWLY = "import time, llmcore.llm as llm; llm.open_checkpoint = lambda path: time.sleep(60);"
PATIENCE_S = 60


@contextmanager
def serving(
    model: TinyModel, cache: Path | None = None, before: str = ""
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process, once it listens, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = [f"model={model.path}", "backend=numba", "threads=2", f"server.port={port}", "server.model_name=tiny"]
    environment = os.environ | ({"LLMCORE_CACHE": str(cache)} if cache else {})
    child = subprocess.Popen(
        [sys.executable, "-c", before + RUN, "serve", *settings], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert child.stderr is not None
    try:
        assert "loads tiny" in child.stderr.readline()
        yield child, port
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


def until(stream: IO[str] | None, words: str) -> None:
    assert stream is not None
    for line in stream:
        if words in line:
            return
    raise AssertionError(f"it never said {words!r}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_model_loads_ends_that(tiny_model: MakeTiny, number: int, code: int) -> None:
    with serving(tiny_model("llama3"), before=SLOWLY) as (child, port):
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE_S).json() == {"status": "loading"}
        begun = time.monotonic()
        child.send_signal(number)
        assert child.wait(20) == code
        assert time.monotonic() - begun < 5
        assert child.stderr is not None and "Traceback" not in child.stderr.read()


@pytest.mark.parametrize("after_s", [0.5, 2.5])
def test_nothing_half_written_is_left(tiny_model: MakeTiny, tmp_path: Path, after_s: float) -> None:
    """While kernels are imported, or compiled by child processes."""
    with serving(tiny_model("llama3"), cache=tmp_path) as (child, _):
        time.sleep(after_s)
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 143
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".o"]
    assert not [path for path in left if path.name.startswith(".") or path.suffix == ".part"]


def test_a_signal_afterwards_lets_answers_end(tiny_model: MakeTiny) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 50, "ignore_eos": True}
    with serving(tiny_model("llama3")) as (child, port):
        until(child.stderr, "tiny is ready")
        assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=PATIENCE_S).status_code == 200
        with httpx.stream(
            "POST", f"http://127.0.0.1:{port}/v1/completions", json={**body, "stream": True}, timeout=PATIENCE_S
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert child.wait(20) == 0


def test_what_cannot_be_loaded_ends_the_server(tiny_model: MakeTiny, tmp_path: Path) -> None:
    model = tiny_model("llama3")
    missing = TinyModel(tmp_path / "none", model.family, model.config)
    with serving(missing) as (child, _):
        until(child.stderr, "error: ")
        assert child.wait(20) == 2
