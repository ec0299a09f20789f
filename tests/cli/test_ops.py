"""``llmcore ops``: the contract and who fulfils it."""

from __future__ import annotations

import json

import pytest

from llmcore import ops
from llmcore.cli.main import main
from llmcore.plugins import plugins


def test_every_op_and_every_backend_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert set(plugins().backends) <= set(head.split())
    assert {line.split()[0] for line in lines if line} >= set(ops.NAMES)
    linear = next(line for line in lines if line.startswith("linear "))
    assert "native, float32" in linear and "call, float32" in linear


def test_one_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "linear"]) == 0
    shown = capsys.readouterr().out
    assert ops.get("linear").signature() in shown
    assert "dims: M, K, N" in shown
    assert "Q4_1" in shown
    order = [shown.index(text) for text in ("0  x: act", "1  weight: any", "2  bias?", "3  y: act", "4  address of M")]
    assert order == sorted(order)


def test_json_agrees_with_the_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["ops"]
    assert [op["name"] for op in found] == list(ops.NAMES)
    kernels = sum(len(op["kernels"]) for op in found)
    assert kernels == sum(len(backend.kernels) for backend in plugins().backends.values())
    assert main(["ops", "--json", "rms_norm"]) == 0
    assert json.loads(capsys.readouterr().out)["operands"][-1] == "eps (attribute)"


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["rmsnorm"], "did you mean 'rms_norm'"), (["linear", "rope"], "'rope'"), (["--jsn"], "--json"), (["-x"], "'-x'")],
)
def test_refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", *argv]) == 2
    assert words in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--help"]) == 0
    assert "usage: llmcore ops [OP] [--json]" in capsys.readouterr().out
