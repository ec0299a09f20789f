"""``llmcore bench sampling`` on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore.engine.load import EngineSettings
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import GenerationError
from llmcore.graph.program import Program
from llmcore.llm import LLM
from llmcore_tools.bench import sampling
from llmcore_tools.bench.sampling import Sample

MakeTiny = Callable[..., TinyModel]


@pytest.mark.parametrize("way", sampling.WAYS)
def test_every_way_is_one_that_requests_can_ask_for(way: str) -> None:
    params = replace(SamplingParams(), **sampling.WAYS[way][1])
    assert params.plain == (way == "greedy")


def test_json(tiny_model: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--batch", "2", "--repeats", "2", "--tokens", "3", "--only", "logprobs,filters", "--json"]
    assert main(["bench", "sampling", str(tiny_model("llama3").path), "backend=torch", "threads=1", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["results"]
    assert list(found["ways"]) == ["greedy", "filters", "logprobs"], "greedy steps are what others are compared with"
    assert len(found["ways"]["logprobs"]["step_s"]["samples"]) == 2
    for way in found["ways"].values():
        assert 0 < way["outside_s"]["median"] < way["step_s"]["median"]


def test_too_many_tokens(tiny_model: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sampling", str(tiny_model("llama3").path), "backend=torch", "--tokens", "100000"]) != 0
    assert "do not fit the context" in capsys.readouterr().err


def test_a_request_that_ends_early_is_no_sample(tiny_model: MakeTiny) -> None:
    llm = LLM(str(tiny_model("llama3").path), backend="torch", threads=1, engine=EngineSettings(max_seqs=2))
    run = Program.run
    try:
        with pytest.raises(GenerationError, match="ended by itself"):
            sampling.sample(llm, [[1, 2, 3]], {"max_tokens": 5}, 8)
        assert not llm.engine.busy and Program.run is run
    finally:
        llm.close()


def test_ratios_are_to_greedy_steps() -> None:
    found = {"greedy": [Sample(0.01, 1e-4)] * 2, "logprobs": [Sample(0.02, 3e-4)] * 2}
    shown = sampling.table(found, 8, 4, 2)
    assert shown.rows[0][4] == "" and shown.rows[1][4].startswith("2.00")
    assert shown.rows[1][-1] == "300"
    assert sampling.as_json(found)["logprobs"]["over_greedy"]["of_medians"] == 2
