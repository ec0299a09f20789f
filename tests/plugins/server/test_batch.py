"""A file of requests: each is answered once, whatever happens to the process on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore.errors import ConfigError
from llmcore_server import batch
from llmcore_server.batch import Lines, Output

MakeTiny = Callable[..., TinyModel]
RUN = "import sys; from llmcore_server.batch import main; sys.exit(main(sys.argv[1:]))"


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def answers(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({answer["custom_id"] for answer in found}) == len(found)
    return {answer["custom_id"]: answer["response"] for answer in found}


def arguments(model: TinyModel, source: Path, target: Path) -> list[str]:
    settings = [f"model={model.path}", "backend=numba", "threads=1", "engine.max_seqs=4", "server.model_name=tiny"]
    return [*settings, "--input", str(source), "--output", str(target)]


def text(number: int, tokens: int = 4) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": f"number {number}", "max_tokens": tokens, "seed": number, "ignore_eos": True}
    return {"custom_id": f"n{number}", "method": "POST", "url": "/v1/completions", "body": body}


def test_answers_and_refusals(tiny_model: MakeTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, target = tiny_model("llama3"), tmp_path / "out.jsonl"
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "n": 2}
    wrong = {"custom_id": "wrong", "url": "/v1/completions", "body": {"prompt": "a", "temperature": 9}}
    elsewhere = {"custom_id": "elsewhere", "url": "/v1/images", "body": {}}
    lines = [text(1), chat, "", "not json", wrong, elsewhere, "[]", {"prompt": "a", "max_tokens": 1, "echo": True}]
    odd = [{**text(2), "url": []}, {**text(3), "custom_id": 7}, {**text(4), "custom_id": "\ud800"}]
    lines += [*odd, {**text(5), "body": {**text(5)["body"], "model": "other"}}]
    source = write(tmp_path / "in.jsonl", lines)
    assert batch.main(arguments(model, source, target)) == 0
    found = answers(target)
    assert set(found) == {"n1", "2", "4", "wrong", "elsewhere", "7", "8", "n2", "10", "\ud800", "n5"}
    assert found["n1"]["body"]["usage"]["completion_tokens"] == 4
    assert len(found["2"]["body"]["choices"]) == 2
    assert found["8"]["body"]["choices"][0]["text"].startswith("a")
    assert {key for key, answer in found.items() if answer["status_code"] == 200} == {"n1", "2", "8", "\ud800"}
    assert found["wrong"]["body"]["error"]["param"] == "temperature"
    before = target.read_bytes()
    assert batch.main(arguments(model, source, target)) == 0
    assert target.read_bytes() == before
    assert "11 requests, 11 answered before" in capsys.readouterr().out


def test_what_was_cut_off_is_asked_again(tiny_model: MakeTiny, tmp_path: Path) -> None:
    model, target = tiny_model("llama3"), tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", [text(number) for number in range(6)])
    batch.main(arguments(model, source, target))
    whole = answers(target)
    target.write_bytes(target.read_bytes()[:-20])
    batch.main(arguments(model, source, target))
    texts = {key: answer["body"]["choices"][0]["text"] for key, answer in whole.items()}
    assert {key: answer["body"]["choices"][0]["text"] for key, answer in answers(target).items()} == texts


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Lines(tmp_path / "none")
    with pytest.raises(ConfigError, match="lines 1 and 3 have the same custom_id"):
        Lines(write(tmp_path / "twice", [text(1), text(2), text(1)]))
    with pytest.raises(ConfigError, match="no answer"):
        Output(write(tmp_path / "text", ["hello"]))
    for theirs in ("my notes, without a line's end", '{"custom_id": 5}\n', "[1]\n"):
        notes = tmp_path / "notes"
        notes.write_text(theirs)
        with pytest.raises(ConfigError, match="no answer"):
            Output(notes)
        assert notes.read_text() == theirs
    with pytest.raises(ConfigError, match="--output"):
        Output(tmp_path / "none" / "out")
    with Output(tmp_path / "out"), pytest.raises(ConfigError, match="another process"):
        Output(tmp_path / "out")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again(tiny_model: MakeTiny, tmp_path: Path, kills: int) -> None:
    """Each of the lines is there once, at the end, and says what it says without interruptions."""
    model, target, count = tiny_model("llama3"), tmp_path / "out.jsonl", 50 * kills
    source = write(tmp_path / "in.jsonl", [text(number, 40) for number in range(count)])
    command = [sys.executable, "-c", RUN, *arguments(model, source, target)]
    for kill in range(kills):
        enough = len(target.read_bytes()) if target.exists() else 0
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and (not target.exists() or target.stat().st_size <= enough + 700 * kill):
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = answers(target)
    assert set(found) == {f"n{number}" for number in range(count)}
    alone = tmp_path / "alone.jsonl"
    write(tmp_path / "some.jsonl", [text(number, 40) for number in range(0, count, 10)])
    subprocess.run(
        [sys.executable, "-c", RUN, *arguments(model, tmp_path / "some.jsonl", alone)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ.copy(),
    )
    for key, answer in answers(alone).items():
        assert found[key]["body"]["choices"] == answer["body"]["choices"]
