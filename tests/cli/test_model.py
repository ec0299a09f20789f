"""From settings to a loaded model; what is refused before anything is fetched or bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore import llm as llm_module
from llmcore.cli.model import load, model_as_setting
from llmcore.config.schema import BackendConfig, Config, EngineConfig, ModelConfig, SamplingConfig
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import LlmcoreError, PluginError, UnsupportedModelError
from llmcore.weights.checkpoint import Checkpoint

CONFIG = Config(
    model=ModelConfig("nowhere/at-all"), backend=BackendConfig("auto", ["numba", "triton", "torch"]), threads=1
)


@pytest.mark.parametrize(
    "backend",
    [
        BackendConfig("nmba", ["nmba", "torch"]),
        BackendConfig("auto", ["numba"], {"rope": "nmba"}),
        BackendConfig("auto", ["nmba", "torch"]),
    ],
)
def test_backends_that_are_not_installed(backend: BackendConfig) -> None:
    with pytest.raises(PluginError, match="did you mean 'numba'"):
        load(replace(CONFIG, backend=backend))


def test_loads_the_model_of_the_family(tiny_model: Callable[..., TinyModel]) -> None:
    path = str(tiny_model("qwen2").path)
    config = replace(CONFIG, model=ModelConfig(path), engine=EngineConfig(max_context=32, max_seqs=2))
    with pytest.raises(UnsupportedModelError, match=r"is a qwen model, not a llama model\n  → qwen_infer runs it"):
        load(config, family="llama")
    llm = load(config, family="qwen")
    try:
        assert llm.family.name == "qwen"
        assert llm.threads == 1
        assert llm.runner.sizes.context == 32
        assert {row.backend for row in llm.explain().rows} == {"numba"}
    finally:
        llm.close()


@pytest.mark.parametrize("mistake", [{"family": "llama"}, {"max_context": 1 << 20}])
def test_a_model_that_is_not_taken_keeps_no_file_open(
    mistake: dict[str, Any], tiny_model: Callable[..., TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Checkpoint] = []
    closed: list[Checkpoint] = []
    opening, closing = llm_module.open_checkpoint, Checkpoint.close
    monkeypatch.setattr(llm_module, "open_checkpoint", lambda path: opened.append(opening(path)) or opened[-1])
    monkeypatch.setattr(Checkpoint, "close", lambda self: closed.append(self) or closing(self))
    engine = EngineConfig(max_context=mistake.pop("max_context", 32))
    with pytest.raises(LlmcoreError):
        load(replace(CONFIG, model=ModelConfig(str(tiny_model("qwen2").path)), engine=engine), **mistake)
    assert opened and opened == closed


def test_a_cache_dir_is_where_everything_goes(
    tiny_model: Callable[..., TinyModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCORE_CACHE", "/elsewhere")
    seen: list[str] = []
    monkeypatch.setattr("llmcore.llm.fetch", lambda ref, options: seen.append(str(options.cache_dir)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(replace(CONFIG, cache_dir=str(tmp_path / "cache")))
    assert seen == [str(tmp_path / "cache")]


def test_every_sampling_setting_arrives() -> None:
    chosen = SamplingConfig(0.5, 4, 0.9, 0.1, 1.1, 0.2, 0.3, ["x"], [7], True, 3)
    params = SamplingParams.from_config(replace(CONFIG, sampling=chosen, seed=9, max_new_tokens=11))
    assert {name: getattr(params, name) for name in vars(chosen)} == vars(chosen) | {
        "stop": ("x",),
        "stop_token_ids": (7,),
    }
    assert (params.seed, params.max_tokens) == (9, 11)


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["org/x", "seed=1"], ["model=org/x", "seed=1"]),
        (["model=x"], ["model=x"]),
        (["--json", "x"], ["--json", "x"]),
        ([], []),
    ],
)
def test_a_bare_model_is_a_setting(argv: list[str], wanted: list[str]) -> None:
    assert model_as_setting(argv) == wanted
