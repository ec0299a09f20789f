"""``llmcore bench`` on a tiny model: every figure that was asked for, and nothing that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore.llm import LLM
from llmcore_tools.bench import workloads
from llmcore_tools.bench.trials import Lengths, Trial, trials, workload_for
from llmcore_tools.bench.workloads import Took, Workload

SMALL = ("--prompts", "8,16", "--tokens", "3", "--depths", "0,16", "--batches", "2", "--batch-depth", "5")
SPEED = ("--only", "prefill,decode,batched")


def test_names_and_amounts() -> None:
    every = trials(Lengths((512,), 64, (0, 512), (8,), 128))
    assert [(trial.name, trial.amount) for trial in every] == [
        ("pp512", 512),
        ("tg64", 64),
        ("tg64 @ d512", 64),
        ("tg64 × 8 @ d128", 512),
    ]
    prefill, _, decode, batched = every
    assert workload_for(prefill, every) == decode.work == Workload(512, 64), "one request is timed at both ends"
    assert workload_for(batched, every) == Workload(128, 64, 8)
    assert prefill.rate([Took(2.0, 4.0)]).samples == (256.0,)
    assert decode.rate([Took(2.0, 4.0)]).samples == (16.0,)
    assert batched.rate([Took(2.0, 4.0)]).samples == (128.0,)


def test_prefill_alone_decodes_nothing() -> None:
    every = [Trial("prefill", Workload(512, 0)), Trial("decode", Workload(1, 64))]
    assert workload_for(every[0], every) == Workload(512, 0)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_json(backend: str, tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny_model("llama3").path)
    assert main(["bench", path, f"backend={backend}", "threads=1", "--repeats", "2", "--json", *SMALL, *SPEED]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["suite"], found["machine"]["threads"]) == (1, "model", 1)
    assert found["machine"]["model"]["backends"] == [backend]
    speed = found["results"]["speed"]
    assert [(row["test"], row["kind"], row["tokens"], row["depth"], row["batch"]) for row in speed] == [
        ("pp8", "prefill", 8, 0, 1),
        ("pp16", "prefill", 16, 0, 1),
        ("tg3", "decode", 3, 0, 1),
        ("tg3 @ d16", "decode", 3, 16, 1),
        ("tg3 × 2 @ d5", "batched", 6, 5, 2),
    ]
    for row in speed:
        rate = row["tokens_per_s"]
        assert len(rate["samples"]) == 2 and 0 < rate["min"] <= rate["median"] <= rate["max"]


def test_text_of_one_part(tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", str(tiny_model("qwen3").path), "backend=torch", "--repeats", "1", "--only", "decode", *SMALL]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "F32 (" in shown and "tg3 @ d16" in shown and "pp8" not in shown and "×" not in shown.split("pp:")[0]


def test_a_batch_larger_than_the_engine_makes_it_larger(tiny_model: Callable[..., TinyModel]) -> None:
    from llmcore.config.schema import Config, ModelConfig

    config = Config(ModelConfig(str(tiny_model("llama3").path)))
    assert workloads.fitted(config, [Workload(1, 1, 20)]).engine.max_seqs == 20
    assert workloads.fitted(config, [Workload(1, 1, 2)]).engine.max_seqs == config.engine.max_seqs
    assert workloads.fitted(config, []).engine == replace(config.engine, prefix_cache=False)


def test_steps_that_do_not_serve_everybody_are_not_timed(tiny_model: Callable[..., TinyModel]) -> None:
    from llmcore.engine.load import EngineSettings
    from llmcore.errors import ConfigError

    settings = EngineSettings(max_seqs=3, page_size=8, kv_pages=8)
    llm = LLM(str(tiny_model("llama3").path), backend="torch", threads=1, engine=settings)
    try:
        with pytest.raises(ConfigError, match=r"3 sequences of 20 \+ 30 tokens do not stay in the KV cache together"):
            workloads.run(llm, Workload(20, 30, 3), 0)
        assert not llm.engine.busy, "what failed is taken out of the engine"
        assert workloads.run(llm, Workload(20, 2, 2), 0).decode > 0
    finally:
        llm.close()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--repeats", "0"], "--repeats is '0'"),
        (["--prompts", "1,x"], "--prompts is 'x'"),
        (["--depths", "-1"], "--depths is '-1'"),
        (["--batches", ""], "--batches is ''"),
        (["--tokens", "1,2"], "--tokens is '1,2'"),
        (["--only", "prefil"], "did you mean 'prefill'"),
        (["--repeat", "3"], "did you mean --repeats"),
        (["--json", "--markdown"], "--markdown and --json exclude each other"),
        (["backend=nmba"], "did you mean 'numba'"),
        (["againts"], "did you mean 'against'"),
    ],
)
def test_refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = [] if "againts" in argv else ["model=/nowhere"]
    assert main(["bench", *argv, *model]) == 2
    assert words in capsys.readouterr().err


def test_lengths_that_do_not_fit(tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_model("llama3").path), "backend=torch", "--only", "prefill", "--prompts", "65"]) == 2
    assert "65 + 0 tokens do not fit the context of 64" in capsys.readouterr().err
