"""Tab completion knows our flags and, by Hydra, groups and settings."""

from __future__ import annotations

import pytest

from helpers.settings import Jobs

TRITON = ("triton", "triton_fp8", "triton_w8a8")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("answer_me backend=", {f"backend={name}" for name in ("auto", "mine", "numba", "torch", *TRITON)}),
        ("answer_me sampling=to", {"sampling=top_k", "sampling=top_p"}),
        ("answer_me sampling.temp", {"sampling.temperature="}),
        ("answer_me backend.ops.r", {"backend.ops.rms_norm=", "backend.ops.rope="}),
        ("answer_me --prompt 'a b' --json max_", {"max_new_tokens="}),
        ("answer_me seed=1 --prom", {"--prompt", "--prompt-file"}),
        ("answer_me --mult", {"--multirun"}),
    ],
)
def test_query(line: str, words: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert Jobs().run(["-sc", "query=bash"]) == 0
    assert set(capsys.readouterr().out.split()) == words


def test_install(capsys: pytest.CaptureFixture[str]) -> None:
    Jobs().run(["-sc", "install=bash"])
    assert capsys.readouterr().out.rstrip().endswith("answer_me")
