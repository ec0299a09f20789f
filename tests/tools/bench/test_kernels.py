"""``llmcore bench ops --backend X --against Y``: single ops, bound as a model's are, on both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.tiny import TinyModel
from llmcore import ops
from llmcore.cli.main import main
from llmcore.engine.load import EngineSettings
from llmcore.errors import RegistryError
from llmcore.llm import LLM
from llmcore.plugins import plugins
from llmcore.testing.operands import expected, make_values
from llmcore_tools.bench import kernels, roofline
from llmcore_tools.bench.single import Subject, single
from llmcore_tools.bench.steps import Step

BOTH = ("--backend", "numba", "--against", "torch")


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("name", ["linear", "gate_up_swiglu", "rope"])
def test_a_single_op_computes_what_it_should(name: str, backend: str) -> None:
    """A fused op that torch does not offer is run as its parts, and gives the same."""
    op = ops.get(name)
    case = list(op.cases())[3] if op.cases else None
    assert case is not None
    formats = {param.name: "F32" for param in op.of("weight") if param.type == "any"}
    with roofline.pool_of(1) as pool:
        made = single(Subject(op, case, tuple(formats.items())), backend, lambda: pool, 1)
        assert made.seconds(2) > 0 and made.runs() >= 1
    memory, step = made.memory
    values = make_values(op, case, formats, "float32", 0)
    for key, array in step.arrays.items():
        np.testing.assert_array_equal(array, values.arrays[key])
    values.arrays |= {key: tensor.numpy() for key, tensor in memory.weights.tensors.items() if key in values.arrays}
    for key, wanted in expected(op, values, op.coerce(case.attrs)).items():
        np.testing.assert_allclose(memory.outputs[key], wanted, rtol=1e-4, atol=1e-4)


def test_every_case_of_the_contract_runs_on_torch_or_says_why_not() -> None:
    with roofline.pool_of(1) as pool:
        for subject in kernels.of_contract(ops.NAMES, ("F32",)):
            single(subject, "torch", lambda: pool, 1)


def test_a_backend_without_the_op_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = next(kernels.of_contract(("attention",), ()))
    lacking = replace(plugins().backend("numba"), kernels=())
    monkeypatch.setitem(plugins().backends, "numba", lacking)
    with roofline.pool_of(1) as pool:
        with pytest.raises(RegistryError, match="attention"):
            single(subject, "numba", lambda: pool, 1)
        found = kernels.compared(subject, ("torch", "numba"), lambda: pool, 1, 1)
    assert found.ratio is None and "numba: does not offer it" in found.lacks
    assert "1 more that one of the two cannot run" in kernels.table([found], ("torch", "numba"), 1).note
    assert kernels.as_json(found)["lacks"] == found.lacks


def test_cases_that_do_not_fit_a_format_or_are_empty_are_left_out() -> None:
    found = list(kernels.of_contract(("linear", "add"), ("Q4_1", "F32")))
    assert all(subject.case.dims["K"] % 32 == 0 for subject in found if subject.weights == "Q4_1")
    assert {subject.weights for subject in found} == {"Q4_1", "F32", ""}
    assert all(0 not in subject.case.dims.values() for subject in found)


def test_sizes_of_a_model(tiny_model: Callable[..., TinyModel]) -> None:
    llm = LLM(str(tiny_model("llama3").path), backend="numba", threads=1, engine=EngineSettings(page_size=16))
    try:
        found = list(kernels.of_model(llm, Step(1, 2, 5), ops.NAMES))
        bound = {node.op.name for node, _ in llm.runner.bound("ids", 2)}
    finally:
        llm.close()
    assert {subject.op.name for subject in found} == bound
    assert len({(subject.op.name, subject.sizes, subject.formats) for subject in found}) == len(found)
    with roofline.pool_of(1) as pool:
        for subject in found:
            for backend in ("numba", "torch"):
                assert single(subject, backend, lambda: pool, 1).seconds(1) > 0


def test_json_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "ops", *BOTH, "--repeats", "2", "threads=1"]
    assert main([*argv, "--ops", "add,linear", "--formats", "Q4_1", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["suite"] == "kernels" and found["machine"]["model"] is None
    assert (found["results"]["backend"], found["results"]["against"]) == ("numba", "torch")
    assert {one["op"] for one in found["results"]["ops"]} == {"add", "linear"}
    assert all(len(one["seconds"]["ours"]["samples"]) == 2 for one in found["results"]["ops"])
    assert main([*argv, "--ops=add"]) == 0
    shown = capsys.readouterr().out
    assert "numba against torch" in shown and "numba times as fast" in shown


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--backend", "numba"], "--against is missing"),
        (["--against", "numba"], "--backend is missing"),
        (["--shapes", "model"], "--backend is missing"),
        (["--backend", "nmba", "--against", "torch"], "did you mean 'numba'"),
        (["--backend", "torch", "--against", "torch"], "torch against itself"),
        ([*BOTH, "--ops", "liner"], "did you mean 'linear'"),
        ([*BOTH, "--shapes", "modl"], "did you mean 'model'"),
        ([*BOTH, "--formats", "Q4_9"], "there is no 'Q4_9'"),
    ],
)
def test_refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops", *argv]) == 2
    assert words in capsys.readouterr().err
