"""What ``llama_infer`` and ``qwen_infer`` share: prompt in, text or one JSON object out."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_llm import FakeLLM
from llmcore.cli import infer
from llmcore.cli.console import BROKEN_PIPE, INTERRUPTED, REFUSED
from llmcore.cli.infer import infer_main
from llmcore.config.schema import Config
from llmcore.errors import CheckpointError

LITERAL = "Hello, мир! {a: 1e5} ${oc.env:HOME}"


class Loader:
    """Takes the place of loading; remembers the settings."""

    def __init__(self) -> None:
        self.llm = FakeLLM()
        self.configs: list[Config] = []
        self.caches: list[str | None] = []

    def __call__(self, config: Config, *, family: str) -> FakeLLM:
        assert family == "llama"
        self.configs.append(config)
        self.llm.backend = config.backend.name if config.backend.name != "auto" else "numba"
        self.caches.append(os.environ.get("LLMCORE_CACHE"))
        return self.llm


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loader:
    found = Loader()
    monkeypatch.setattr(infer, "load", found)
    monkeypatch.chdir(tmp_path)
    return found


def llama_infer(*argv: str) -> int:
    return infer_main("llama_infer", "llama", argv)


def test_streams_text_and_nothing_else(loader: Loader, capsys: pytest.CaptureFixture[str]) -> None:
    assert llama_infer("--prompt", LITERAL, "sampling=top_p", "seed=3", "sampling.stop=[x]") == 0
    assert capsys.readouterr() == ("Paris.\n", "")
    assert loader.llm.asked == [[{"role": "user", "content": LITERAL}]]
    params = loader.llm.params[0]
    assert (params.temperature, params.top_p, params.seed, params.stop, params.max_tokens) == (0.7, 0.9, 3, ("x",), 256)
    assert loader.llm.closed


@pytest.mark.parametrize(
    ("argv", "template", "asked"),
    [
        ([], "t", [{"role": "user", "content": "hi"}]),
        ([], None, "hi"),
        ([], "", "hi"),
        (["--raw"], "t", "hi"),
        (["--chat"], None, [{"role": "user", "content": "hi"}]),
        (["--system", "s"], "t", [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]),
        (["--system", ""], "t", [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]),
    ],
)
def test_chat_or_raw(argv: list[str], template: str | None, asked: Any, loader: Loader) -> None:
    loader.llm = FakeLLM(template=template)
    assert llama_infer("--prompt", "hi", *argv) == 0
    assert loader.llm.asked == [asked]


def test_json(loader: Loader, capsys: pytest.CaptureFixture[str]) -> None:
    assert llama_infer("--prompt", "hi", "--raw", "--json", "model=/models/x") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt_token_ids"] == [104, 105]
    assert found["token_ids"] == [0, 1, 2]
    assert found["text"] == "Paris."
    assert found["finish_reason"] == "length"
    assert found["model"] == "/models/x"
    assert found["backend"] == "numba"
    assert set(found["timings"]) == {"load_s", "ttft_s", "prefill_tok_s", "decode_tok_s"}
    assert all(value > 0 for value in found["timings"].values())
    wanted = {"arena_bytes": 100, "arena_lower_bound": 90, "kv_bytes": 80, "weights_mapped_bytes": 70}
    assert wanted.items() <= found["memory"].items()
    assert "logprobs" not in found


def test_json_of_a_single_token_has_no_decode_rate(loader: Loader, capsys: pytest.CaptureFixture[str]) -> None:
    loader.llm = FakeLLM(pieces=("x",))
    llama_infer("--prompt", "hi", "--json", "backend=torch")
    found = json.loads(capsys.readouterr().out)
    assert found["timings"]["decode_tok_s"] is None
    assert found["backend"] == "torch"


def test_the_backend_is_the_one_that_runs(loader: Loader) -> None:
    loader.llm.backend = "torch"  # whatever was asked for
    assert infer.backend_in_use(loader.llm) == "torch"
    loader.llm.backend = "numba"  # the head alone is torch's
    assert infer.backend_in_use(loader.llm) == "numba"


def test_four_jobs(loader: Loader, capsys: pytest.CaptureFixture[str]) -> None:
    assert llama_infer("-m", "backend=numba,torch", "seed=1,2", "--json", "--prompt", LITERAL) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["backend"] for line in out.splitlines()] == ["numba", "numba", "torch", "torch"]
    assert "[3] backend=torch seed=2" in err
    assert loader.llm.asked == [[{"role": "user", "content": LITERAL}]] * 4


def test_standard_input_serves_every_job(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert llama_infer("-m", "seed=1,2") == 0
    assert loader.llm.asked == [[{"role": "user", "content": "from a pipe"}]] * 2


def test_no_prompt_loads_nothing(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert llama_infer() == REFUSED
    assert not loader.configs


def test_a_wrong_setting_loads_nothing(loader: Loader, capsys: pytest.CaptureFixture[str]) -> None:
    assert llama_infer("--prompt", "hi", "sampling.temprature=1") == REFUSED
    out, err = capsys.readouterr()
    assert out == "" and "error: there is no setting" in err and "Traceback" not in err
    assert not loader.configs


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), INTERRUPTED),
        (BrokenPipeError(), BROKEN_PIPE),
        (CheckpointError("torn", file="x"), REFUSED),
    ],
)
def test_ends_of_a_stream(
    error: BaseException, code: int, loader: Loader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(text: str) -> None:
        raise error

    monkeypatch.setattr(infer, "_show", show)
    assert llama_infer("--prompt", "hi") == code
    assert loader.llm.closed
    assert "Traceback" not in capsys.readouterr().err


def test_no_cache_is_one_folder_and_gone_afterwards(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCORE_CACHE", "/the/users")
    llama_infer("--prompt", "hi", "--no-cache", "-m", "seed=1,2")
    first, second = loader.caches
    assert first == second != "/the/users"
    assert first is not None and not Path(first).exists()
    assert os.environ["LLMCORE_CACHE"] == "/the/users"
    assert [config.weights.cache_packed for config in loader.configs] == [False, False]


def test_logprobs_are_reported(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmcore.engine.request import Delta, TokenLogprobs

    delta = Delta(0, "x", (5,), (TokenLogprobs(5, -0.5, ((5, -0.5), (6, -2.0))),), "stop")
    stream: Callable[..., Any] = lambda *_, **__: iter([delta])  # noqa: E731
    monkeypatch.setattr(loader.llm, "stream", stream)
    llama_infer("--prompt", "hi", "--json", "sampling.logprobs=2")
    found = json.loads(capsys.readouterr().out)
    assert found["logprobs"] == [{"token_id": 5, "logprob": -0.5, "top": [[5, -0.5], [6, -2.0]]}]
